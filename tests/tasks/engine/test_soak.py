"""Random deaths: the same seed does the same deeds at the same moments."""

from __future__ import annotations

import os
import random

from benchmarks.delivery.soak import SUMMARY_MODEL, Plan, Soak
from stack.redis import Redis
from tests.support.stack_under_test import Stack


async def test_nothing_is_lost_doubled_or_told_wrongly_whatever_dies(stack: Stack, redis_server: Redis) -> None:
    seed = int(os.environ.get("PROTOSTAR_TEST_SEED") or random.randrange(1_000_000))
    print(f"PROTOSTAR_TEST_SEED={seed}")
    stack.environment |= {
        "PROTOSTAR_LEASE": "3",
        "PROTOSTAR_SHUTDOWN_GRACE": "1",
        "PROTOSTAR_SUMMARY_MODEL": SUMMARY_MODEL,
        "PROTOSTAR_REINDEX_MINUTES": "0",
    }
    plan = Plan(jobs=150, sessions=20, seconds=12, kills=3, stops=2, redis_restarts=1, seed=seed)
    report = await Soak(stack, redis_server, plan).run()
    assert report.faultless, f"PROTOSTAR_TEST_SEED={seed} {report}\n{stack.logs()}"

"""The event log: an answer whose events cannot be appended neither waits for ever nor holds up the others."""

from __future__ import annotations

import asyncio

import pytest
from protostar_client import keys
from protostar_client.contract import JobError
from redis.asyncio import Redis

from tasks.engine.claim import Claim, LeaseLostError
from tasks.turn.event_log import EventLog


def claim(job_id: str) -> Claim:
    return Claim(id=job_id.encode(), attempt=1, spared=0, rank_ms=0, payload=None, aborted=False)


async def test_a_flush_that_raises_leaves_nobody_waiting(redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    log = EventLog(redis, owner="worker", ttl_s=60)
    try:
        async with asyncio.timeout(10):
            await redis.set(keys.RECORD_PREFIX + "broken", "not a hash")
            broken, other = (log.open(claim(name), user_uuid="u", session_id="s") for name in ("broken", "other"))
            broken.start("model")
            other.start("model")
            await broken.done(message_id=1, finish_reason="stop", usage={})
            with pytest.raises(LeaseLostError):  # appended, and refused: no worker holds the job
                await other.done(message_id=1, finish_reason="stop", usage={})
            with pytest.raises(JobError, match="could not be appended"):
                broken.append_text("more")
    finally:
        await log.close()
        await redis.aclose()

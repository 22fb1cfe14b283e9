"""Stock ARQ, at the poll delay that `DELIVERY_POLL_DELAY` names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq.connections import RedisSettings

from benchmarks.delivery.contenders.arq_producer import stock_producer
from benchmarks.delivery.contenders.common import (
    KEEP_RESULT_S,
    LONGEST_S,
    SLOTS,
    Enqueue,
    do_job,
    option,
    redis_url,
)

uvloop.install()


async def job(_: dict[Any, Any], number: int, hold_ms: int) -> None:
    await do_job(number, hold_ms)


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    async with stock_producer("job", None) as enqueue:
        yield enqueue


class WorkerSettings:
    functions = (job,)
    redis_settings = RedisSettings.from_dsn(redis_url())
    max_jobs = SLOTS
    job_timeout = LONGEST_S
    keep_result = KEEP_RESULT_S
    poll_delay = float(option("DELIVERY_POLL_DELAY", "0.5"))

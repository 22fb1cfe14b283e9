"""SAQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue  # type: ignore[import-not-found]

from benchmarks.delivery.contenders.common import KEEP_RESULT_S, LONGEST_S, SLOTS, Enqueue, do_job, redis_url

uvloop.install()

queue = RedisQueue(Redis.from_url(redis_url()))


async def job(_: Any, *, number: int, hold_ms: int) -> None:
    await do_job(number, hold_ms)


settings = {"queue": queue, "functions": [job], "concurrency": SLOTS}


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    await queue.connect()

    async def enqueue(number: int, hold_ms: int) -> object:
        return await queue.enqueue(
            "job", number=number, hold_ms=hold_ms, key=f"job-{number}", timeout=LONGEST_S, ttl=KEEP_RESULT_S
        )

    try:
        yield enqueue
    finally:
        await queue.disconnect()

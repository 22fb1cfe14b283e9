"""streaq."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker  # type: ignore[import-not-found]

from benchmarks.delivery.contenders.common import KEEP_RESULT_S, SLOTS, Enqueue, do_job, redis_url

worker = Worker(redis_url=redis_url(), concurrency=SLOTS, anyio_kwargs={"use_uvloop": True})


async def job(number: int, hold_ms: int) -> None:
    await do_job(number, hold_ms)


task = worker.task(name="job", ttl=KEEP_RESULT_S, silent=True)(job)


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    async with worker:

        async def enqueue(number: int, hold_ms: int) -> object:
            return await task.enqueue(number, hold_ms)

        yield enqueue

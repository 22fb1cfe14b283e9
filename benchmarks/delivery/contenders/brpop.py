"""A loop of BRPOP written by hand: the least that can run jobs. It loses every job that it runs when it dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import uvloop
from redis.asyncio import Redis

from benchmarks.delivery.contenders.common import SLOTS, Enqueue, do_job, redis_url

LIST: Final = "jobs"


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    redis: Redis = Redis.from_url(redis_url())

    async def enqueue(number: int, hold_ms: int) -> object:
        return await cast(Awaitable[int], redis.lpush(LIST, json.dumps([number, hold_ms])))

    try:
        yield enqueue
    finally:
        await redis.aclose()


async def serve() -> None:
    redis: Redis = Redis.from_url(redis_url())
    slots = asyncio.Semaphore(SLOTS)
    running: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        slots.release()

    while True:
        await slots.acquire()
        _, payload = await cast(Awaitable[Any], redis.brpop([LIST]))
        task = asyncio.create_task(do_job(*json.loads(payload)))
        running.add(task)
        task.add_done_callback(ended)


if __name__ == "__main__":
    uvloop.run(serve())

"""taskiq-redis: the broker that `DELIVERY_BROKER` names, with results unless `DELIVERY_RESULTS` is 0."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker  # type: ignore[import-not-found]

from benchmarks.delivery.contenders.common import KEEP_RESULT_S, Enqueue, do_job, option, redis_url

broker = {"list": ListQueueBroker, "stream": RedisStreamBroker}[option("DELIVERY_BROKER", "stream")](redis_url())
if option("DELIVERY_RESULTS", "1") == "1":
    broker = broker.with_result_backend(RedisAsyncResultBackend(redis_url(), result_ex_time=KEEP_RESULT_S))


async def job(number: int, hold_ms: int) -> None:
    await do_job(number, hold_ms)


task = broker.register_task(job, task_name="job")


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    await broker.startup()

    async def enqueue(number: int, hold_ms: int) -> object:
        return await task.kiq(number, hold_ms)

    try:
        yield enqueue
    finally:
        await broker.shutdown()

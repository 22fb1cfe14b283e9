"""ARQ's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool

from benchmarks.delivery.contenders.common import Enqueue, redis_url


@asynccontextmanager
async def stock_producer(function: str, serializer: Callable[[dict[str, Any]], bytes] | None) -> AsyncIterator[Enqueue]:
    """Enqueues calls of `function(ctx, number, hold_ms)`."""
    redis = ArqRedis(ConnectionPool.from_url(redis_url()), job_serializer=serializer)

    async def enqueue(number: int, hold_ms: int) -> object:
        return await redis.enqueue_job(function, number, hold_ms, _job_id=f"job-{number}")

    try:
        yield enqueue
    finally:
        await redis.aclose(close_connection_pool=True)

"""The worker's connections to Redis."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from tasks.engine.scripts import REDIS_TIMEOUT_S


class StartupError(Exception):
    """The worker can't start; the message is one line that says why and what to do."""


async def connect(redis_url: str | None, **arq_options: Any) -> ArqRedis:
    """ARQ's pool of connections, made and tried.

    Raises:
        StartupError: Redis can't be used.
    """
    if redis_url is None:
        raise StartupError("the worker was given no redis_url")
    # No retries inside the client: a claim that is sent twice would lose the first reply's jobs.
    # No socket_timeout either: with it redis-py sends under asyncio.wait_for, which before Python 3.12 can
    # swallow a cancellation. `asyncio.timeout` around the calls bounds them (`tasks.engine.scripts.REDIS_TIMEOUT_S`).
    redis = ArqRedis(ConnectionPool.from_url(redis_url, socket_connect_timeout=2.0), **arq_options)
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            await redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        await redis.close(close_connection_pool=True)
        raise StartupError(f"Redis can't be used: {error}; check REDIS_URL and the server") from None
    return redis

"""The commands' own connection to Redis, for operations that the client does not offer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from protostar_client.redis_connection.pool import async_pool
from redis.asyncio import Redis

from protostar.settings import RedisSettings

_TIMEOUT_S: Final = 5.0


@asynccontextmanager
async def redis_at(settings: RedisSettings) -> AsyncIterator[Redis]:
    """Open a connection with time limits; used inside `using_redis`."""
    pool = async_pool(
        settings.redis_url.get_secret_value(), socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S
    )
    redis: Redis = Redis.from_pool(pool)
    try:
        yield redis
    finally:
        await redis.aclose()

"""The worker's connections to Redis."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from arq.connections import ArqRedis, RedisSettings
from protostar_client.redis_connection.pool import async_pool
from protostar_client.redis_connection.url import parse
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
    redis = ArqRedis(async_pool(redis_url, socket_connect_timeout=2.0), **arq_options)
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            await redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        await redis.close(close_connection_pool=True)
        raise StartupError(f"Redis can't be used: {error}; check REDIS_URL and the server") from None
    return redis


_SAME_IN_ARQ: Final[tuple[str, ...]] = (
    *("ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_check_hostname"),
    *("host", "port", "username", "password", "max_connections", "retry_on_timeout"),
)


def arq_redis_settings(redis_url: str) -> RedisSettings:
    """Make ARQ's settings for commands of its own, such as `arq --check`.

    ARQ's `from_dsn` neither decodes percent-encoded passwords nor reads options. ARQ has no field for credentials of
    Sentinels.

    Raises:
        ValueError: the URL is wrong.
    """
    target = parse(redis_url)
    options = {name: target.options[name] for name in _SAME_IN_ARQ if name in target.options}
    if target.sentinels:
        options |= {"host": list(target.sentinels), "sentinel": True, "sentinel_master": target.service}
    return RedisSettings(
        database=target.options.get("db", 0),
        unix_socket_path=target.options.get("path"),
        ssl=target.uses_tls,
        **options,
    )

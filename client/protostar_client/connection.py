"""The client's connections to Redis, and patience with a Redis that is away for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib.resources import files
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from protostar_client.errors import ClientClosed, ConnectionLost, InvalidUrl, RedisRefused
from protostar_client.redis_connection.pool import async_pool
from protostar_client.redis_connection.url import SCHEMES

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 1.0
_CALLS_AT_ONCE: Final = 32  # more wait: a thousand readers that come at once must not open a thousand connections

_AWAY: Final = (RedisConnectionError, RedisTimeoutError, OSError)


class Connection:
    """A pool of connections to one Redis. Every call is made again while Redis is away, for `patience_s`.

    So every operation that is given to `call` must be idempotent, and done within `ANSWER_TIMEOUT_S`.
    """

    def __init__(self, redis_url: str, *, patience_s: float) -> None:
        self._redis = _redis_at(redis_url)
        self._is_closed = False
        self._patience_s = patience_s
        self._gate = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._scripts = {name: self._redis.register_script(_source(name)) for name in ("enqueue", "cancel")}

    async def open(self) -> None:
        """Reach Redis once.

        Raises:
            ConnectionLost: Redis is not there, or wants other credentials.
        """
        await self._call(lambda redis: redis.ping(), patience_s=0)

    async def close(self) -> None:
        """Close every connection, for good: redis-py would open new ones at the next call."""
        self._is_closed = True
        await self._redis.aclose()

    async def call(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """The result of an idempotent `operation`.

        Raises:
            ConnectionLost: Redis was away for longer than the patience.
            ClientClosed: the client was closed before or meanwhile.
            RedisRefused: Redis answered with an error.
        """
        return await self._call(operation, patience_s=self._patience_s, gate=self._gate)

    async def block(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """As `call`, but out of turn: for operations of which there is never more than one at a time."""
        return await self._call(operation, patience_s=self._patience_s)

    async def run_script(self, name: str, *, keys: list[str], args: list[str | bytes | int]) -> tuple[Any, bool]:
        """What one of the scripts in `lua/` returns, and whether it may have run before, unheard.

        Raises:
            ConnectionLost, ClientClosed, RedisRefused: as `call`.
        """
        script = self._scripts[name]
        tries = 0

        async def run(_: Redis) -> Any:
            nonlocal tries
            tries += 1
            return await script(keys=keys, args=args)

        return await self.call(run), tries > 1

    async def _call(
        self,
        operation: Callable[[Redis], Awaitable[T]],
        *,
        patience_s: float,
        gate: AbstractAsyncContextManager[Any] = nullcontext(),  # noqa: B008  (it holds nothing)
    ) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        delay_s = _FIRST_DELAY_S
        while True:
            if self._is_closed:
                raise ClientClosed()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S), gate:
                    return await operation(self._redis)
            except AuthenticationError as error:
                raise ConnectionLost(f"Redis refuses the credentials: {error}; check the URL") from error
            except _AWAY as error:
                if self._is_closed:
                    raise ClientClosed() from None
                if loop.time() + delay_s > deadline:
                    raise ConnectionLost(f"Redis can't be reached: {_reason(error)}") from error
            except RedisError as error:
                raise RedisRefused(f"Redis refused: {_reason(error)}") from error
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)


def _redis_at(url: str) -> Redis:
    try:
        pool = async_pool(
            url,
            # No socket_timeout: with it redis-py sends under asyncio.wait_for, which can lose a cancellation
            # before Python 3.12, and a reader that can't be cancelled reads for ever.
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            client_name="protostar-client",
        )
        redis: Redis = Redis.from_pool(pool)
        return redis
    except ValueError:  # its text may quote a piece of the password
        raise InvalidUrl(f"redis_url: {_what_is_wrong(url)}") from None


def _what_is_wrong(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "has no scheme; begin with redis://, rediss://, unix:// or sentinel://"
    if scheme.lower() not in SCHEMES:
        return f"has the scheme {scheme[:16]!r}; use redis, rediss, unix or sentinel"
    return "is not a URL; give the port and the database as numbers, and escape what is special in the password"


def _source(name: str) -> str:
    return (files("protostar_client") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
    text = str(error).rstrip(".")
    return text.splitlines()[0] if text else type(error).__name__

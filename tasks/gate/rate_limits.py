"""Requests and tokens a minute, counted in Redis for all workers together."""

from __future__ import annotations

import time
from typing import Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from protostar_client import keys
from redis.asyncio import Redis

_WINDOW_S: Final = 60.0
_SHORTEST_WAIT_S: Final = 0.1


class RateLimits:
    """What may be asked of one model in a minute; 0 is no limit.

    Requests are counted one by one. Tokens are counted by window, the last one weighted by what is left of it.
    """

    def __init__(self, redis: Redis, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        # Its own clients come from the URL; ours reconnect as the worker's do.
        pool: dict[str, object] = {"connection_pool": redis.connection_pool}
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=keys.LIMITS,
            **pool,  # type: ignore[arg-type]  # typed for the URL's options
        )
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._requests_window = MovingWindowRateLimiter(storage)
        self._tokens_window = SlidingWindowCounterRateLimiter(storage)

    async def take(self, model: str, *, tokens: int) -> float:
        """Take a request with so many tokens, if there is room; returns 0, or the seconds to wait for it."""
        if self._requests and (wait_s := await self._take_request(model)):
            return wait_s
        # A request larger than the whole minute has to go through at some time.
        cost = min(tokens, self._tokens)
        return await self._take_tokens(model, cost) if cost else 0.0

    async def left(self, model: str) -> tuple[int | None, int | None]:
        """The requests and the tokens that may still be asked now; None where there is no limit. Takes nothing."""
        requests = await self._left(self._requests_window, "requests", self._requests, model)
        return requests, await self._left(self._tokens_window, "tokens", self._tokens, model)

    async def _left(self, window: RateLimiter, name: str, limit: int, model: str) -> int | None:
        if not limit:
            return None
        stats = await window.get_window_stats(RateLimitItemPerMinute(limit), name, model)
        return max(0, stats.remaining)

    async def _take_request(self, model: str) -> float:
        limit = RateLimitItemPerMinute(self._requests)
        if await self._requests_window.hit(limit, "requests", model):
            return 0.0
        stats = await self._requests_window.get_window_stats(limit, "requests", model)
        return _between(stats.reset_time - time.time())

    async def _take_tokens(self, model: str, cost: int) -> float:
        limit = RateLimitItemPerMinute(self._tokens)
        if await self._tokens_window.hit(limit, "tokens", model, cost=cost):
            return 0.0
        stats = await self._tokens_window.get_window_stats(limit, "tokens", model)
        return _between((cost - stats.remaining) * _WINDOW_S / self._tokens)


def _between(wait_s: float) -> float:
    return min(_WINDOW_S, max(_SHORTEST_WAIT_S, wait_s))

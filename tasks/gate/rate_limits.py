"""Requests and tokens a minute, counted in Redis for all workers together."""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis

from tasks.engine.scripts import Script

_SHORTEST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 60.0
_LIMITS: Final = Script.beside(__file__, "limits")


class RateLimits:
    """What may be asked of one model in a minute; 0 is no limit."""

    def __init__(self, redis: Redis, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        self._redis = redis
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute

    async def take(self, model: str, *, tokens: int) -> float:
        """Take a request with so many tokens, if there is room; returns 0, or the seconds to wait for it."""
        if not self._requests and not self._tokens:
            return 0.0
        wait_ms, _, _ = await _LIMITS.run(self._redis, model, self._requests, self._tokens, tokens)
        return min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, wait_ms / 1000)) if wait_ms else 0.0

    async def left(self, model: str) -> tuple[int | None, int | None]:
        """The requests and the tokens that may still be asked now; None where there is no limit. Takes nothing."""
        if not self._requests and not self._tokens:
            return None, None
        _, requests, tokens = await _LIMITS.run(self._redis, model, self._requests, self._tokens, "")
        return requests if self._requests else None, tokens if self._tokens else None

"""Counting a model's tokens: what its provider has said of earlier prompts, shared by all workers through Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from protostar_client import keys
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rag.corpus.tokens import TokenCounter
from rag.prompt.token_memo import TokenMemo
from rag.prompt.token_ratio import CorrectedCount, TokenRatio
from tasks.engine.scripts import Script

logger = structlog.stdlib.get_logger("protostar.calibration")

FRESH_S: Final = 5.0
"""How long what was read from Redis is used, and how long Redis is left alone after it failed."""
READ_TIMEOUT_S: Final = 0.5

_SWAP: Final = Script.beside(__file__, "swap")

Change = Callable[[TokenRatio], TokenRatio]


class TokenRatios:
    """The token ratio of one model. Where Redis fails, what was known last is used: no answer waits for it long.

    Args:
        redis: where the ratios are.
        tokens: counts the model's tokens, exactly or not.
        model: the model's name.
    """

    def __init__(self, redis: Redis, tokens: TokenCounter, model: str) -> None:
        self._redis = redis
        self._model = model
        self._is_exact = tokens.exact
        self._count = TokenMemo(tokens).count
        self._line = ""
        self._read_at_s = -FRESH_S
        self._unwritten: list[Change] = []
        self._writer: asyncio.Task[None] | None = None

    async def count(self) -> CorrectedCount:
        """What counts the model's tokens now."""
        if self._is_exact:
            return CorrectedCount(self._count)
        if time.monotonic() - self._read_at_s >= FRESH_S:
            await self._read()
        return self._corrected(TokenRatio.parse(self._line))

    def said(self, input_tokens: int, *, counted: int) -> None:
        """Learn from a provider how many tokens a prompt had, of which we counted `counted`, uncorrected."""
        if not self._is_exact:
            self._change(lambda ratio: ratio.reported(input_tokens, counted=counted))

    def overflowed(self, input_tokens: int | None, *, counted: int, factor: float) -> CorrectedCount:
        """Learn that a prompt counted with `factor` was too long, of `input_tokens` if the provider says so.

        Returns:
            What counts the model's tokens from now on.
        """
        if self._is_exact:
            return CorrectedCount(self._count)

        def change(ratio: TokenRatio) -> TokenRatio:
            if input_tokens is None:
                return ratio.overflowed(factor=factor)
            return ratio.reported(input_tokens, counted=counted)

        return self._corrected(self._change(change))

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            await self._writer

    def _corrected(self, ratio: TokenRatio) -> CorrectedCount:
        return CorrectedCount(self._count, ratio.factor)

    def _change(self, change: Change) -> TokenRatio:
        """Change the ratio here at once, and in Redis soon."""
        held, ratio = self._line, change(TokenRatio.parse(self._line))
        self._line = ratio.dump()
        self._unwritten.append(change)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(held), name="token-ratio")
        return ratio

    async def _read(self) -> None:
        self._read_at_s = time.monotonic()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                line = await self._redis.hget(keys.TOKEN_RATIOS, self._model)  # type: ignore[misc]
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("token_ratio_read_failed", model=self._model, error=error)
            return
        self._line = _text(line)

    async def _write(self, held: str) -> None:
        """Make the changes to what Redis holds, which other workers change, too."""
        while changes := self._unwritten[:]:
            ratio = TokenRatio.parse(held)
            for change in changes:
                ratio = change(ratio)
            try:
                other = await _SWAP.run(self._redis, keys.TOKEN_RATIOS, self._model, held, ratio.dump())
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("token_ratio_write_failed", model=self._model, error=error)
                self._unwritten.clear()
                return
            if other is None:
                del self._unwritten[: len(changes)]
            held = ratio.dump() if other is None else _text(other)


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""

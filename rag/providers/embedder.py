"""Embeds texts through a provider, within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog

from protostar.settings import CorpusSettings
from rag.providers.factory import provider_from
from rag.providers.protocol import (
    ContextLengthError,
    FatalProviderError,
    Provider,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
)

logger = structlog.stdlib.get_logger("protostar.embedding")

Vectors = npt.NDArray[np.float32]

BATCH_TEXTS: Final = 64
BATCH_CHARACTERS: Final = 60_000
"""The most texts and characters of one request: OpenAI takes 2,048 texts and 300,000 tokens, others less."""

TEXT_CHARACTERS: Final = 8000
"""Only the start of a longer text is embedded: models take 8,191 tokens or fewer, and a syllable may be a token."""

_AT_ONCE: Final = 4
_TRIES: Final = 5
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
QUESTION_S: Final = 5.0


class Embedder:
    """One embedding model of one provider."""

    def __init__(self, provider: Provider, model: str) -> None:
        self.model = model
        self.question_error = ""
        """The error of the last question; empty after a success."""
        self._provider = provider
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one row of length 1 per text, in the same order. Waits and tries again where the provider asks for it.

        Raises:
            ProviderError: the provider returned an error.
        """
        batches = [asyncio.create_task(self._embed_batch(batch)) for batch in _batches(texts)]
        try:
            return _unit_rows([row for rows in await asyncio.gather(*batches) for row in rows])
        finally:
            for batch in batches:
                batch.cancel()

    async def embed_question(self, question: str) -> Vectors | None:
        """Return the vector of a question, or None after an error or a timeout: words alone can answer it."""
        self.question_error = ""
        try:
            async with asyncio.timeout(QUESTION_S):
                rows = await self._provider.embed([question[:TEXT_CHARACTERS]], model=self.model)
            return np.asarray(_unit_rows(rows)[0])
        except (ProviderError, TimeoutError) as error:
            self.question_error = str(error) or f"no answer within {QUESTION_S:g} s"
            logger.warning("question_embedding_failed", error=type(error).__name__, reason=error)
            return None

    async def _embed_batch(self, texts: Sequence[str]) -> list[list[float]]:
        try:
            return await self._patiently(texts)
        except (ContextLengthError, FatalProviderError):
            # Servers differ in how much they take at once, and in how they say that it was too much.
            if len(texts) == 1:
                raise
        half = len(texts) // 2
        return await self._embed_batch(texts[:half]) + await self._embed_batch(texts[half:])

    async def _patiently(self, texts: Sequence[str]) -> list[list[float]]:
        delay_s = _FIRST_DELAY_S
        for tries in range(1, _TRIES + 1):
            try:
                async with self._slots:
                    return await self._provider.embed(texts, model=self.model)
            except (RateLimitedError, ProviderUnavailableError, StalledError) as error:
                asked_s = getattr(error, "retry_after_s", None) or 0.0
                if tries == _TRIES or asked_s > _LONGEST_DELAY_S:
                    raise
                await asyncio.sleep(max(delay_s, asked_s))
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        raise AssertionError("the last try returns or raises")


def make_embedder(settings: CorpusSettings, *, provider: Provider) -> Embedder | None:
    """Make the embedder that the settings name; None without an embedding model."""
    return Embedder(provider, settings.embedding_model) if settings.embedding_model else None


@asynccontextmanager
async def embedding(settings: CorpusSettings) -> AsyncIterator[Embedder | None]:
    """The embedder that the settings name, with a provider of its own, for as long as it takes.

    Raises:
        FatalProviderError: the provider can't be made of the settings.
    """
    if not settings.embedding_model:
        yield None
        return
    provider = _provider(settings)
    try:
        yield make_embedder(settings, provider=provider)
    finally:
        await provider.close()


def _provider(settings: CorpusSettings) -> Provider:
    is_openrouter = settings.provider == "openrouter"
    key = settings.openrouter_api_key if is_openrouter else settings.openai_api_key
    if key is None:
        name = "OPENROUTER_API_KEY" if is_openrouter else "OPENAI_API_KEY"
        raise FatalProviderError(f"{name} is not set; PROTOSTAR_EMBEDDING_MODEL needs it")
    return provider_from(settings)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    room = BATCH_CHARACTERS
    for text in texts:
        cut = text[:TEXT_CHARACTERS] or " "
        if batch and (len(batch) == BATCH_TEXTS or len(cut) > room):
            yield batch
            batch, room = [], BATCH_CHARACTERS
        batch.append(cut)
        room -= len(cut)
    if batch:
        yield batch


def _unit_rows(rows: Sequence[Sequence[float]]) -> Vectors:
    if len({len(row) for row in rows}) > 1:
        raise ProviderError("the provider gave vectors of different lengths for one model")
    vectors = np.asarray(rows, dtype=np.float32).reshape(len(rows), -1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))

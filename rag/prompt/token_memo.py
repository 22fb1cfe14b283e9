"""Counting the tokens of prompts, and no part of them twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from rag.corpus.tokens import TokenCounter

_PIECES: Final = 4096
_LONGEST_PIECE_CHARACTERS: Final = 4_000
"""A longer piece is not kept: together with their number this bounds the memory, to some 30 MB at worst."""


class TokenMemo:
    """Counts as its `TokenCounter` does, to the token.

    A prompt is counted part by part while it is put together and once more as it is sent, and the next prompt of its
    session holds most of its texts again, between other tags: each of them costs the tokenizer once.
    """

    def __init__(self, tokens: TokenCounter) -> None:
        self._count = tokens.count
        self._count_kept = lru_cache(_PIECES)(tokens.count)

    def count(self, text: str) -> int:
        """The number of tokens of `text`."""
        total = 0
        for piece in _pieces(text):
            total += self._count_kept(piece) if len(piece) <= _LONGEST_PIECE_CHARACTERS else self._count(piece)
        return total


def _pieces(text: str) -> Iterator[str]:
    """Lines that begin with a tag, and what stands between them.

    OpenAI's encodings cut there as well: only white space and a slash make one token with the line break before them.
    """
    start = at = 0 if text.startswith("<") else text.find("\n<") + 1
    if start:
        yield text[:start]
    while text.startswith("<", at):
        if at > start:
            yield text[start:at]
            start = at
        end = text.find("\n", at) + 1
        if end == 0:
            break
        if end < len(text) and text[end] != "/" and not text[end].isspace():
            yield text[start:end]
            start = end
        at = text.find("\n<", end - 1) + 1
        if at == 0:
            break
    if start < len(text):
        yield text[start:]

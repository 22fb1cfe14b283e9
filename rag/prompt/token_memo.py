"""Counts the tokens of prompts, each part once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from rag.corpus.tokens import TokenCounter

_PIECES: Final = 4096
_LONGEST_PIECE_CHARACTERS: Final = 4_000
"""Longer pieces are not kept. Together with the number of pieces this bounds the memory to about 30 MB."""


class TokenMemo:
    """Counts exactly as its `TokenCounter` does, and remembers the counts of pieces.

    A prompt is counted part by part while it is built and once more as a whole, and the next prompt of the session
    contains most of its texts again. The tokenizer reads each of them once.
    """

    def __init__(self, tokens: TokenCounter) -> None:
        self._count = tokens.count
        self._count_kept = lru_cache(_PIECES)(tokens.count)

    def count(self, text: str) -> int:
        """Count the tokens of `text`."""
        total = 0
        for piece in _pieces(text):
            total += self._count_kept(piece) if len(piece) <= _LONGEST_PIECE_CHARACTERS else self._count(piece)
        return total


def _pieces(text: str) -> Iterator[str]:
    """Split a text into lines that begin with a tag, and the texts between them.

    OpenAI's encodings split there as well: only white space and a slash share a token with the line break before them.
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

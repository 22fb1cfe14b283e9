"""Cuts text that does not fit into one chunk, and finds where an overlap begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

from rag.corpus.graphemes import previous_boundary
from rag.corpus.tokens import TokenCounter

# The places to cut, best first. A sentence ends with a stop and a space in Korean ("했다. ") as in
# English, and without a space in Chinese and Japanese.
_SENTENCE_END: Final = r"[.!?]{1,16}+[\"'”’)\]]{0,16}+\s+|[。！？…]+[」』”’）]*\s*"
_SEPARATORS: Final = (r"\n[ \t\r]*\n\s*", r"\n", _SENTENCE_END, r"[,;:]\s+|[、，；：·]\s*", r"\s+")
_COMPILED: Final = tuple(re.compile(separator) for separator in _SEPARATORS)

_LONG_RUN: Final = re.compile(r"\S{16}")

# An overlap must be from half to twice what is configured; aiming inside these leaves room for a cut's tokens.
_LEAST: Final = 0.6
_MOST: Final = 1.5


def least_overlap(overlap: int) -> int:
    """The number of shared tokens that guarantees at least half of `overlap`."""
    return -(-overlap * 6 // 10)


def split(text: str, counter: TokenCounter, limit: int, measure: Callable[[str], int]) -> list[str]:
    """Cut `text` into parts of about `limit` tokens at most, between sentences or words where it has them.

    The joined parts are the text. `measure` estimates the tokens of a part, so a part can have more.
    """
    # Imported here, because it takes 0.15 s, and what only searches does not cut.
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        separators=list(_SEPARATORS),
        is_separator_regex=True,
        keep_separator="end",
        strip_whitespace=False,
        chunk_size=limit,
        chunk_overlap=0,
        # It measures every sentence several times.
        length_function=cache(measure),
    )
    parts: list[str] = []
    for part in splitter.split_text(text):
        if _LONG_RUN.search(part) and counter.count(part) > limit:
            parts.extend(counter.pieces(part, limit))
        else:
            parts.append(part)
    return parts


def best_overlap(text: str, counter: TokenCounter, overlap: int) -> int:
    """Find where the overlap with the next chunk begins: about `overlap` tokens before the end of `text`.

    The best kind of separator within reach wins, then the nearest. Returns `len(text)` for no overlap.
    """
    if overlap <= 0:
        return len(text)
    first, aim, last = counter.tail_starts(text, (int(overlap * _MOST), overlap, least_overlap(overlap)))
    for separator in _COMPILED:
        places = [match.end() for match in separator.finditer(text, max(first - 2, 0), last)]
        places = [place for place in places if first <= place <= last and place > 0]
        if places:
            return min(places, key=lambda place: abs(place - aim))
    at = _after_space(text, aim)
    if counter.count(text[at:]) * 2 < overlap:
        # One long cluster (an emoji of many parts) stands in the way: share it whole if that is not too much.
        before = previous_boundary(text, aim - 1)
        return before if counter.count(text[before:]) <= 2 * overlap else at
    return at


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at

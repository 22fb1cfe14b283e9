"""Where a text may be cut without breaking a character as its reader sees it: accents, emoji, flags, Jamo, CRLF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import regex  # type: ignore[import-untyped]

_LONGEST_CLUSTER: Final = 32
_CLUSTER: Final = regex.compile(r"\X")


def is_boundary(text: str, at: int) -> bool:
    """Whether `text[:at]` and `text[at:]` are whole characters for a reader."""
    return previous_boundary(text, at) == at


def previous_boundary(text: str, at: int) -> int:
    """The nearest boundary at or before `at`; `at` itself inside a cluster of more than 32 code points."""
    if at <= 0 or at >= len(text) or _is_simple(text, at):
        return at
    start, is_certain = _window_start(text, at)
    found = max(boundary for boundary in _boundaries(text, start, at + 1) if boundary <= at)
    return found if found > start or is_certain else at


def next_boundary(text: str, at: int) -> int:
    """The nearest boundary at or after `at`; `at` itself inside a cluster of more than 32 code points."""
    if at <= 0 or at >= len(text) or _is_simple(text, at):
        return at
    start, _ = _window_start(text, at)
    end = at + _LONGEST_CLUSTER
    found = next(boundary for boundary in _boundaries(text, start, end) if boundary >= at)
    return found if found < end or end >= len(text) else at


def _is_simple(text: str, at: int) -> bool:
    """Whether neither neighbour of a place ever combines with the other: Latin letters, composed syllables."""
    before, after = text[at - 1], text[at]
    if after >= "\u0300" and not "가" <= after <= "힣":
        return False
    return "가" <= before <= "힣" or (before < "\u0300" and not (before == "\r" and after == "\n"))


def _window_start(text: str, at: int) -> tuple[int, bool]:
    """Where to begin to look for the clusters around `at`, and whether that is a boundary for certain."""
    earliest = max(at - _LONGEST_CLUSTER, 0)
    for place in range(at - 1, earliest, -1):
        if _is_simple(text, place):
            return place, True
    return earliest, earliest == 0


def _boundaries(text: str, start: int, end: int) -> Iterator[int]:
    yield start
    # A slice: in a long row of flags, regex would count those before `start` for each match.
    for cluster in _CLUSTER.finditer(text[start:end]):
        yield start + cluster.end()

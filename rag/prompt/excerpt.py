"""Cuts a passage that does not fit whole to the sentences around its best match with the question. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from rag.analysis.terms import terms
from rag.corpus.graphemes import previous_boundary
from rag.prompt.sentences import pieces

LEAST_CHARACTERS: Final = 20
"""A shorter excerpt is not useful."""
_QUESTION_CHARACTERS: Final = 2_000


class PassageLike(Protocol):
    """The fields of a passage that a prompt needs.

    A passage is a dataclass. A `chunk_id`, where it has one, goes into the prompt's parts; a `start_offset` and
    `end_offset`, where it has them, are those of its text in the document and follow a cut.
    """

    @property
    def document(self) -> str: ...  # noqa: D102
    @property
    def heading(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


P = TypeVar("P", bound=PassageLike)


def excerpt(passage: P, question: str, room: int, count: Callable[[str], int]) -> P | None:
    """Cut a passage to the sentences around its best match with a question that have at most `room` tokens.

    The best match is the sentence with the most of the question's terms, the rarer in the passage the more; the
    sentences after and before it follow as long as they fit. A sentence that alone is too long is cut itself.

    Returns:
        The passage with a shorter text and the offsets of that; None where nothing useful fits.
    """
    text = passage.text
    spans = _spans(text)
    if not spans:
        return None
    best = _best_match([text[start:end] for start, end in spans], question)
    start, end = spans[best]
    left = room - count(text[start:end])
    if left < 0:
        start, _ = _trimmed(text, start, end)
        end = _fitting_end(text, start, end, room, count)
    else:
        start, end = _grown(text, spans, best, left, count)
    start, end = _trimmed(text, start, end)
    return _cut(passage, start, end) if end - start >= LEAST_CHARACTERS else None


def _grown(
    text: str, spans: Sequence[tuple[int, int]], best: int, left: int, count: Callable[[str], int]
) -> tuple[int, int]:
    """A span with those after and before it, by turns, as far as `left` tokens reach."""
    first = last = best
    is_open = {+1: True, -1: True}
    while any(is_open.values()):
        for step in is_open:
            beside = last + 1 if step > 0 else first - 1
            if is_open[step] and 0 <= beside < len(spans) and (size := count(text[slice(*spans[beside])])) <= left:
                left -= size
                first, last = min(first, beside), max(last, beside)
            else:
                is_open[step] = False
    return spans[first][0], spans[last][1]


def _spans(text: str) -> list[tuple[int, int]]:
    ends = [end for end, _ in pieces(text)]
    spans = zip([0, *ends], ends, strict=False)
    return [(start, end) for start, end in spans if text[start:end].strip()]


def _best_match(sentences: Sequence[str], question: str) -> int:
    """Find the sentence with the most of the question's terms; the first one where none has any."""
    asked = frozenset(terms(question[:_QUESTION_CHARACTERS]))
    found = [asked.intersection(terms(sentence)) for sentence in sentences]
    sentences_with = Counter(term for each in found for term in each)
    weights = [sum(1 / sentences_with[term] for term in each) for each in found]
    return weights.index(max(weights))


def _fitting_end(text: str, start: int, end: int, room: int, count: Callable[[str], int]) -> int:
    """Where the longest beginning of `text[start:end]` ends that fits, between words if it has any."""
    fits, too_long = start, end
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if count(text[start:middle]) <= room:
            fits = middle
        else:
            too_long = middle
    space = text.rfind(" ", start + (fits - start) // 2, fits)
    fits = space if space > start else previous_boundary(text, fits)
    while fits > start and count(text[start:fits]) > room:  # a shorter text may have more tokens
        fits = previous_boundary(text, fits - 1)
    return fits


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _cut(passage: P, start: int, end: int) -> P:
    changes: dict[str, Any] = {"text": passage.text[start:end]}
    offset: int | None = getattr(passage, "start_offset", None)
    if offset is not None:
        changes |= {"start_offset": offset + start, "end_offset": offset + end}
    cut: P = replace(passage, **changes)  # type: ignore[type-var]
    return cut

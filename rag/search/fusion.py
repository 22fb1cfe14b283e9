"""One ranking out of two: words and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rag.search.query import Question

DENSE_WEIGHT_HANGUL: Final = 0.25
DENSE_WEIGHT: Final = 0.5
"""The vectors' part of a score. Word for word, Korean questions and texts meet often: bigrams see through endings."""


def dense_weight(question: Question) -> float:
    """The vectors' part of a chunk's score for this question."""
    return DENSE_WEIGHT_HANGUL if question.has_hangul else DENSE_WEIGHT


def fuse(words: Mapping[int, float], vectors: Mapping[int, float], weight: float) -> dict[int, float]:
    """The weighted sum of both standard scores of every chunk that has one.

    A standard score counts deviations from the mean of the whole index: so the way decides for which a chunk stands
    out, by a rare word, or by a meaning that no other has.
    """
    return {
        chunk_id: (1 - weight) * words.get(chunk_id, 0.0) + weight * vectors.get(chunk_id, 0.0)
        for chunk_id in words.keys() | vectors.keys()
    }

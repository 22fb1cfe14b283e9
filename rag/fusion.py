"""One ranking out of two: words and vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

DENSE_WEIGHT_HANGUL: Final = 0.3
DENSE_WEIGHT: Final = 0.6
"""The vectors' part of a score. Word for word, Korean questions and texts meet often: bigrams see through endings."""

_HANGUL = re.compile("[가-힣]")


def dense_weight(question: str) -> float:
    """The vectors' part of a chunk's score for this question."""
    return DENSE_WEIGHT_HANGUL if _HANGUL.search(question) else DENSE_WEIGHT


def fuse(lexical: Mapping[int, float], dense: Mapping[int, float], weight: float) -> dict[int, float]:
    """The weighted sum of both scores, each brought to 0..1 over its own list, for every chunk in either."""
    words, vectors = _scaled(lexical), _scaled(dense)
    return {
        chunk_id: (1 - weight) * words.get(chunk_id, 0.0) + weight * vectors.get(chunk_id, 0.0)
        for chunk_id in words.keys() | vectors.keys()
    }


def _scaled(scores: Mapping[int, float]) -> dict[int, float]:
    if not scores:
        return {}
    least, most = min(scores.values()), max(scores.values())
    span = most - least
    return {id_: (score - least) / span if span > 0 else 1.0 for id_, score in scores.items()}

"""Find the passages of the corpus that speak of a question."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tortoise import Tortoise

from rag.lexical import LENGTHS, QUERY, terms

TOP_K: Final = 8
K1: Final = 1.2
B: Final = 0.75
FLOOR: Final = 0.3
"""The least share of a question's weight that its best passage must hold, if any passage is to be given."""

_CANDIDATES: Final = 3
_FOLLOW_UP_TERMS: Final = 4
_HISTORY_QUESTIONS: Final = 3
_HISTORY_WEIGHT: Final = 0.4
_SAME_SHARE: Final = 0.8
_QUESTION_WORDS = re.compile(
    r"무엇\w*|무슨|뭐\w*|뭔\w*|어떻게|어떤|어때\w*|어떠\w*|어디\w*|언제\w*|누가|누구\w*|얼마\w*|왜\w*|그건|그것\w*|그게|"
    r"이건|이것\w*|이게|저것\w*|거기\w*|여기\w*|알려\s?\w*|설명\s?해\w*|말해\w*|궁금\w*|대해서?|관해서?|"
    r"(?:하|되|있|없|인|한|된|는)(?:나요|가요|까요|습니까|니까|지요|죠)|(?:합|됩|입|습)니까|할까요?|될까요?|주세요|줘요?|"
    r"안녕\w*|고마워\w*|감사\w*|해\s?줘\w*|인가요?|이야|뭐야|건가요?"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found. `score` orders the passages of one question, higher is better."""

    chunk_id: int
    document: str
    heading: str
    text: str
    score: float
    start_offset: int
    end_offset: int
    token_count: int


async def retrieve(
    question: str, *, top_k: int = TOP_K, floor: bool = True, history: Sequence[str] = ()
) -> list[Passage]:
    """The best passages for a question, best first; none where the corpus does not speak of it.

    `history` are the session's earlier questions, oldest first: they help a question that says too little alone
    ("그건 왜?"). Without `floor`, whatever shares a term with the question is given.
    """
    weights = query_weights(question, history)
    if not weights or top_k < 1:
        return []
    rows = await Tortoise.get_connection("default").execute_query_dict(
        QUERY, [list(weights), list(weights.values()), K1, B, LENGTHS, top_k * _CANDIDATES]
    )
    if not rows or (floor and max(row["share"] for row in rows) < FLOOR):
        return []
    return _distinct(rows)[:top_k]


def query_weights(question: str, history: Sequence[str] = ()) -> dict[str, float]:
    """The terms to look for, with how much each counts."""
    weights: dict[str, float] = dict(Counter(_content_terms(question)))
    if len(weights) >= _FOLLOW_UP_TERMS:
        return weights
    share = 1.0 if not weights else _HISTORY_WEIGHT
    for earlier in reversed(history[-_HISTORY_QUESTIONS:]):
        found = _content_terms(earlier)
        for term in found:
            weights[term] = max(weights.get(term, 0.0), share)
        if found:
            share *= _HISTORY_WEIGHT
    return weights


def _content_terms(question: str) -> list[str]:
    """The terms of what a question asks about, without the words that make it a question, unless it has no others."""
    return terms(_QUESTION_WORDS.sub(" ", question)) or []


def _distinct(rows: Sequence[dict[str, Any]]) -> list[Passage]:
    """Passages in order, without those that say what a better one says."""
    found: list[Passage] = []
    shingles: list[frozenset[str]] = []
    for row in rows:
        words = frozenset(terms(row["text"]))
        if any(_is_same(words, other) for other in shingles):
            continue
        shingles.append(words)
        found.append(Passage(**{name: row[name] for name in Passage.__slots__}))
    return found


def _is_same(words: frozenset[str], other: frozenset[str]) -> bool:
    return len(words & other) >= _SAME_SHARE * max(len(words | other), 1)

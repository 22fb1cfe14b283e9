"""Find the passages of the corpus that speak of a question."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rag.lexical import search, terms

TOP_K: Final = 8
FLOOR: Final = 0.27
"""The least share of a question's weight that its best passage must hold, if any passage is to be given."""

_CANDIDATES: Final = 3
_FOLLOW_UP_TERMS: Final = 4
_HISTORY_QUESTIONS: Final = 3
_HISTORY_WEIGHT: Final = 0.4
_SAME_SHARE: Final = 0.8
_PARTICLE_WEIGHT: Final = 0.3
_PARTICLE_ENDINGS = re.compile(
    r"([가-힣]+?)(에서는|으로는|에게서|이라는|에서|에게|에는|으로|까지|부터|하고|이나|라는|이랑|보다|처럼|은|는|이|가|을|를|의|에|도|로|와|과|만)"
    r"(?![가-힣])"
)
_QUESTION_WORDS = re.compile(
    r"무엇\w*|무슨|뭐\w*|뭔\w*|어떻게|어떤|어때\w*|어떠\w*|어디\w*|언제\w*|누가|누구\w*|얼마\w*|왜\w*|"
    r"그건|그것\w*|그게|그래\w*|이건|이것\w*|이게|저것\w*|거기\w*|여기\w*|대해서?|관해서?|궁금\w*|"
    r"알려\s?\w*|설명\s?해\w*|말해\w*|해\s?줘\w*|해\s?주세요|주세요|안녕\w*|고마워\w*|감사\w*|"
    # A verb's last syllable and its interrogative ending: "쓰나요", "실행되나요".
    r"[가-힣](?:나요|가요|까요|습니까|니까|지요|죠)(?![가-힣])"
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
    rows = await search(weights, top_k * _CANDIDATES)
    if not rows or (floor and max(row["share"] for row in rows) < FLOOR):
        return []
    return _distinct(rows, top_k)


def query_weights(question: str, history: Sequence[str] = ()) -> dict[str, float]:
    """The terms to look for, with how much each counts."""
    weights = _weights(question)
    if len(weights) >= _FOLLOW_UP_TERMS:
        return weights
    share = _HISTORY_WEIGHT if weights else 1.0
    for earlier in reversed(history[-_HISTORY_QUESTIONS:]):
        found = _weights(earlier)
        for term, weight in found.items():
            weights[term] = max(weights.get(term, 0.0), share * weight)
        if found:
            share *= _HISTORY_WEIGHT
    return weights


def _weights(question: str) -> dict[str, float]:
    """The weights of one question's terms, without the words that only make it a question."""
    asked = _QUESTION_WORDS.sub(" ", question)
    weights: dict[str, float] = dict(Counter(terms(asked)))
    for word, particle in _PARTICLE_ENDINGS.findall(asked):
        # A noun with another particle is the same noun, so the bigrams that reach into the particle say little.
        for start in range(len(word) - 1, len(word) + len(particle) - 1):
            bigram = (word + particle)[start : start + 2]
            if bigram in weights:
                weights[bigram] *= _PARTICLE_WEIGHT
    return weights


def _distinct(rows: Sequence[dict[str, Any]], top_k: int) -> list[Passage]:
    """The first `top_k` passages, without those that say what a better one says."""
    found: list[Passage] = []
    words_of_found: list[frozenset[str]] = []
    for row in rows:
        words = frozenset(row["text"].split())
        if any(len(words & other) >= _SAME_SHARE * len(words | other) for other in words_of_found):
            continue
        words_of_found.append(words)
        found.append(Passage(**{name: row[name] for name in Passage.__slots__}))
        if len(found) == top_k:
            break
    return found

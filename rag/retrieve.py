"""Find the passages of the corpus that speak of a question."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from tortoise import Tortoise

from rag.bm25 import Found, Live, PostingsCache
from rag.embedding import Embedder
from rag.fusion import dense_weight, fuse
from rag.lexical import terms
from rag.snapshot import read_chunks, read_live, snapshot
from rag.vectors import Near, VectorCache

TOP_K: Final = 8
FLOOR: Final = 0.27
"""The least share of a question's weight that its best passage must hold, if any passage is to be given."""

_CANDIDATES: Final = 3
_MORE_CANDIDATES: Final = 8
_POOL: Final = 100
_COLUMNS: Final = ("chunk_id", "document", "heading", "text", "start_offset", "end_offset", "token_count")
_ENOUGH: Final = 4.0
_HISTORY_QUESTIONS: Final = 3
_HISTORY_WEIGHT: Final = 0.6
_SAME_SHARE: Final = 0.8
_PARTICLE_WEIGHT: Final = 0.3
_PARTICLE_ENDINGS = re.compile(
    r"([가-힣]+?)(에서는|으로는|에게서|이라는|에서|에게|에는|으로|까지|부터|하고|이나|라는|이랑|보다|처럼|은요|는요|은|는|이|가|을|를|의|에|도|로|와|과|만)"
    r"(?![가-힣])"
)
_QUESTION_WORDS = re.compile(
    r"무엇\w*|무슨|뭐\w*|뭔\w*|어떻게|어떤|어때\w*|어떠\w*|어디\w*|언제\w*|누가|누구\w*|얼마\w*|왜\w*|"
    r"그건|그것\w*|그게|그래\w*|이건|이것\w*|이게|저것\w*|거기\w*|여기\w*|대해서?|관해서?|궁금\w*|"
    r"너는|너희\w*|나는|저는|내가|제가|우리는|잘\s?지냈\w*|반가\w*|반갑\w*|"
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
    question: str,
    *,
    top_k: int = TOP_K,
    floor: bool = True,
    history: Sequence[str] = (),
    embedder: Embedder | None = None,
) -> list[Passage]:
    """The best passages for a question, best first; none where the corpus does not speak of it.

    `history` are the session's earlier questions, oldest first: they help a question that says too little alone
    ("그건 왜?"). Without `floor`, whatever shares a term with the question, or is near it, is given. With an
    `embedder`, vectors help to rank where the index has those of its model; where it fails, words alone decide.
    """
    asked_for = _Asked(query_weights(question, history), alone=_weights(question))
    if not asked_for.weights or top_k < 1:
        return []
    if embedder is None:
        return await _by_words(asked_for, top_k, floor=floor)
    asked = asyncio.create_task(embedder.embed_question(_in_session(question, history)))
    pool = max(_POOL, top_k * _CANDIDATES)
    try:
        async with snapshot() as connection:
            live = await read_live(connection)
            candidates = await _candidates(connection, live, asked_for, pool)
        is_embedded = live is not None and live.embedding_model == embedder.model
        vector = await asked if is_embedded else None
    finally:
        asked.cancel()
    if live is None or vector is None:
        return candidates.passages(top_k, floor=floor)
    near = await _kept().vectors.search(live, vector, pool)
    return await _by_both(question, live, candidates, near, top_k, floor=floor)


async def _by_words(asked: _Asked, top_k: int, *, floor: bool) -> list[Passage]:
    limit = top_k * _CANDIDATES
    async with snapshot() as connection:
        live = await read_live(connection)
        while True:
            candidates = await _candidates(connection, live, asked, limit)
            passages = candidates.passages(top_k, floor=floor)
            # Chunks that were deleted since, or say the same, may have filled the list.
            if not passages or len(passages) == top_k or len(candidates.scores) < limit:
                return passages
            limit *= _MORE_CANDIDATES


async def _candidates(connection: Any, live: Live | None, asked: _Asked, limit: int) -> _Candidates:
    if live is None:
        return _Candidates({}, {}, 0.0)
    found = await _kept().postings.search(connection, live, asked.weights, limit)
    rows = await read_chunks(connection, live.generation_id, found.chunk_ids)
    share = _greatest_share(found, rows)
    if share < FLOOR and asked.alone and len(asked.alone) < len(asked.weights):
        # What was asked before speaks of something else: that must not hide what this question finds.
        found_alone = await _kept().postings.search(connection, live, asked.alone, limit)
        share = max(share, _greatest_share(found_alone, rows))
    return _Candidates(rows, dict(zip(found.chunk_ids, found.scores, strict=True)), share)


def _greatest_share(found: Found, rows: Container[int]) -> float:
    return max((share for id_, share in zip(found.chunk_ids, found.shares, strict=True) if id_ in rows), default=0.0)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The terms to look for with their weights; `alone` are those of the question without its session."""

    weights: Mapping[str, float]
    alone: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What this process has read of one database's index."""

    postings: PostingsCache = field(default_factory=PostingsCache)
    vectors: VectorCache = field(default_factory=VectorCache)


_kept_by_database: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def _kept() -> _Kept:
    return _kept_by_database.setdefault(Tortoise.get_connection("default"), _Kept())


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Chunks by their ids, with the greatest share of the question's weight that one of them holds."""

    rows: Mapping[int, Mapping[str, Any]]
    scores: Mapping[int, float]
    share: float

    def passages(self, top_k: int, *, floor: bool) -> list[Passage]:
        return [] if floor and self.share < FLOOR else _distinct(self.rows, self.scores, top_k)


async def _by_both(
    question: str, live: Live, words: _Candidates, near: Near | None, top_k: int, *, floor: bool
) -> list[Passage]:
    if near is None or (floor and words.share < FLOOR and near.scores[0] < near.level):
        # What the corpus is about is nearer to a part of it than its parts are to each other, whatever the model.
        return words.passages(top_k, floor=floor)
    further = [id_ for id_ in near.chunk_ids if id_ not in words.rows]
    async with snapshot() as connection:
        rows = {**words.rows, **await read_chunks(connection, live.generation_id, further)}
    dense = {id_: score for id_, score in zip(near.chunk_ids, near.scores, strict=True) if id_ in rows}
    lexical = {id_: score for id_, score in words.scores.items() if id_ in rows}
    return _distinct(rows, fuse(lexical, dense, dense_weight(question)), top_k)


def _in_session(question: str, history: Sequence[str]) -> str:
    """The question for the embedding: one that says too little comes with the one before."""
    return question if not history or _says_enough(_weights(question)) else f"{history[-1]}\n{question}"


def _says_enough(weights: Mapping[str, float]) -> bool:
    return sum(weights.values()) >= _ENOUGH


def query_weights(question: str, history: Sequence[str] = ()) -> dict[str, float]:
    """The terms to look for, with how much each counts."""
    weights = _weights(question)
    if _says_enough(weights):
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


def _distinct(rows: Mapping[int, Mapping[str, Any]], scores: Mapping[int, float], top_k: int) -> list[Passage]:
    """The first `top_k` passages by score, without those that say what a better one says."""
    found: list[Passage] = []
    words_of_found: list[frozenset[str]] = []
    for row in sorted(rows.values(), key=lambda row: (-scores[row["chunk_id"]], row["document"], row["position"])):
        words = frozenset(row["text"].split())
        if any(len(words & other) >= _SAME_SHARE * len(words | other) for other in words_of_found):
            continue
        words_of_found.append(words)
        found.append(Passage(**{name: row[name] for name in _COLUMNS}, score=scores[row["chunk_id"]]))
        if len(found) == top_k:
            break
    return found

"""Find the passages of the corpus that speak of a question."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
from tortoise import Tortoise

from rag.analysis.morphemes import MissingAnalyserError
from rag.analysis.synonyms import NO_SYNONYMS, Synonyms
from rag.analysis.terms import heading_terms
from rag.providers.embedder import Embedder
from rag.search.bm25 import Found, Hit, score
from rag.search.document_filter import DocumentFilter
from rag.search.fusion import dense_weight, fuse
from rag.search.postings import Ids, Live, PostingsCache
from rag.search.query import Query, Question
from rag.search.rerank import CANDIDATES, Reranker
from rag.search.scope import ScopeCache
from rag.search.snapshot import read_chunks, read_live, snapshot
from rag.search.vectors import VectorCache

logger = structlog.stdlib.get_logger("protostar.retrieval")

ALL_DOCUMENTS: Final = DocumentFilter()
TOP_K: Final = 8
FLOOR: Final = 0.3
"""The least share of a question's importance that some passage must have, if any passage is to be given."""

FLOOR_WITH_VECTORS: Final = 0.38
"""The least sum of that share and of a passage's nearness, where there are vectors."""

_CANDIDATES: Final = 3
_MORE_CANDIDATES: Final = 8
_POOL: Final = 100
_COLUMNS: Final = ("chunk_id", "document", "heading", "text", "start_offset", "end_offset", "token_count")
_HEADING_BOOST: Final = 0.6
_SAME_SHARE: Final = 0.8
_CONTENTS_SHARE: Final = 0.6
_LEAST_ENTRIES: Final = 3
_OVERVIEWS: Final = frozenset(("readme.md", "index.md"))

Rows = dict[int, dict[str, Any]]


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
    documents: DocumentFilter = ALL_DOCUMENTS,
    synonyms: Synonyms = NO_SYNONYMS,
    reranker: Reranker | None = None,
) -> list[Passage]:
    """The best passages for a question, best first; none where the corpus does not speak of it.

    `history` are the session's earlier questions, oldest first: they help a question that says too little alone
    ("그건 왜?"). Without `floor`, whatever shares a term with the question, or is near it, is given. With an
    `embedder`, vectors help to rank where the index has those of its model; where it fails, words alone decide.
    Only `documents` are searched, as if there were no others. `synonyms` are those of the corpus.
    A `reranker` orders the best candidates; where it fails, their order stays.
    """
    asked = Question(question, history, synonyms)
    if not asked.query().weights or top_k < 1:
        return []
    if reranker is None:
        return await _search_index(asked, documents, embedder, top_k, floor=floor)
    decides_floor = floor and reranker.threshold is not None
    most = max(top_k, CANDIDATES)
    candidates = await _search_index(asked, documents, embedder, most, floor=floor and not decides_floor)
    texts = [f"{passage.heading}\n\n{passage.text}" for passage in candidates[:CANDIDATES]]
    scores = await reranker.scores(asked.in_session(), texts)
    if scores is not None:
        return _in_order(candidates, scores, reranker.threshold if floor else None)[:top_k]
    if decides_floor and candidates:
        candidates = await _search_index(asked, documents, embedder, top_k, floor=True)
    return candidates[:top_k]


def _in_order(candidates: Sequence[Passage], scores: Mapping[int, float], threshold: float | None) -> list[Passage]:
    """Order candidates by a reranker's scores, those without one behind the others, without those below a threshold."""
    least = min(scores.values())
    order = sorted(range(len(candidates)), key=lambda place: (place not in scores, -scores.get(place, 0.0), place))
    return [
        replace(candidates[place], score=scores.get(place, least))
        for place in order
        if threshold is None or scores.get(place, -math.inf) >= threshold
    ]


async def _search_index(
    asked: Question, documents: DocumentFilter, embedder: Embedder | None, top_k: int, *, floor: bool
) -> list[Passage]:
    if embedder is None:
        return await _by_words(asked, documents, top_k, floor=floor)
    return await _by_both(asked, documents, embedder, top_k, floor=floor)


async def _by_words(asked: Question, documents: DocumentFilter, top_k: int, *, floor: bool) -> list[Passage]:
    async with snapshot() as connection:
        live = await read_live(connection)
        if live is None:
            return []
        words = await _search_words(connection, live, asked, documents)
        return await _best_by_words(connection, live, words, top_k, floor=floor)


async def _best_by_words(connection: Any, live: Live, words: _Words, top_k: int, *, floor: bool) -> list[Passage]:
    limit = top_k * _CANDIDATES
    while True:
        ranked = words.found.ranked(limit)
        rows = words.allowed(await read_chunks(connection, live.generation_id, list(ranked)))
        passages = words.passages(rows, ranked, top_k, floor=floor)
        # Chunks that were deleted since, or say the same, may have filled the list.
        if not passages or len(passages) == top_k or len(ranked) < limit:
            return passages
        limit *= _MORE_CANDIDATES


async def _by_both(
    asked: Question, documents: DocumentFilter, embedder: Embedder, top_k: int, *, floor: bool
) -> list[Passage]:
    pool = max(_POOL, top_k * _CANDIDATES)
    embedding = asyncio.create_task(embedder.embed_question(asked.in_session()))
    try:
        async with snapshot() as connection:
            live = await read_live(connection)
            if live is None:
                return []
            words = await _search_words(connection, live, asked, documents)
            if live.embedding_model != embedder.model:
                return await _best_by_words(connection, live, words, top_k, floor=floor)
            found = words.found.best(pool)
        vector = await embedding
    finally:
        embedding.cancel()
    near = None
    if vector is not None:
        near = await _kept().vectors.search(live, vector, pool, also=found, within=words.scope_ids())
    if near is None:
        return await _by_words(asked, documents, top_k, floor=floor)
    hits = words.of([*found, *near.cosines])
    scores = fuse(words.found.standard(hits), near.standard(), dense_weight(asked))
    evidence = {id_: hit.share + near.nearness(id_) for id_, hit in hits.items()} if floor else None
    passages = await _best_by_both(live, words, scores, evidence, top_k)
    return await _by_words(asked, documents, top_k, floor=floor) if passages is None else passages


async def _best_by_both(
    live: Live, words: _Words, scores: Mapping[int, float], evidence: Mapping[int, float] | None, top_k: int
) -> list[Passage] | None:
    """The best chunks that are still there, none if none has evidence enough; None if their generation is gone."""
    limit = top_k * _CANDIDATES
    best = sorted(scores, key=lambda id_: -scores[id_])
    while True:
        async with snapshot() as connection:
            rows = words.allowed(await read_chunks(connection, live.generation_id, best[:limit]))
        if not rows:
            return None
        if evidence and max(evidence[id_] for id_ in rows) < FLOOR_WITH_VECTORS:
            return []
        passages = _distinct(rows, scores, top_k)
        if len(passages) == top_k or limit >= len(best):
            return passages
        limit *= _MORE_CANDIDATES


@dataclass(frozen=True, slots=True)
class _Words:
    """What was found by a question's words; `alone` by those of the question without its session, if they differ."""

    found: Found
    alone: Found | None
    documents: DocumentFilter

    def scope_ids(self) -> Ids | None:
        """The only chunks that may be found; None where all may."""
        return self.found.chunk_ids if self.documents else None

    def allowed(self, rows: Rows) -> Rows:
        """The rows of documents that may be found: whatever the caches say, no other leaves this module."""
        if not self.documents:
            return rows
        return {id_: row for id_, row in rows.items() if self.documents.allows(row["document"])}

    def of(self, chunk_ids: Iterable[int]) -> Mapping[int, Hit]:
        """What the words say of some chunks."""
        return self.with_alone(self.found.of(chunk_ids))

    def with_alone(self, hits: Mapping[int, Hit]) -> Mapping[int, Hit]:
        """The hits, each with the larger of its shares: in the session, and of the question alone."""
        if self.alone is None:
            return hits
        # What was asked before may speak of something else: that must not hide what this question finds.
        alone = self.alone.of(hits)
        return {id_: Hit(hit.score, max(hit.share, alone[id_].share)) for id_, hit in hits.items()}

    def passages(self, rows: Rows, found: Mapping[int, Hit], top_k: int, *, floor: bool) -> list[Passage]:
        """The best of some chunks; none below the floor."""
        hits = self.with_alone({id_: found[id_] for id_ in rows})
        if floor and not any(hit.share >= FLOOR or self._is_in_heading(rows[id_]) for id_, hit in hits.items()):
            return []
        return _distinct(rows, {id_: hit.score * self._use_of(rows[id_]) for id_, hit in hits.items()}, top_k)

    def _use_of(self, row: Mapping[str, Any]) -> float:
        """How much of a chunk's score counts: more where its headings have the question's words."""
        return _use_of(row) * (1 + _HEADING_BOOST * self.found.share_in(heading_terms(row["heading"], "")))

    def _is_in_heading(self, row: Mapping[str, Any]) -> bool:
        """Whether the question's rarest content word is in the chunk's headings."""
        words = self.found.rarest
        return bool(words) and any(word.is_in(heading_terms(row["heading"], "")) for word in words)


async def _search_words(connection: Any, live: Live, asked: Question, documents: DocumentFilter) -> _Words:
    query, alone = await _queries(live, asked)
    found = await _search(connection, live, query, documents)
    found_alone = await _search(connection, live, alone, documents) if alone != query else None
    return _Words(found, found_alone, documents)


async def _queries(live: Live, asked: Question) -> tuple[Query, Query]:
    """What a question asks for in its session, and alone."""
    if live.has_morphemes:
        try:
            return await asyncio.to_thread(lambda: (asked.query(with_morphemes=True), asked.alone(with_morphemes=True)))
        except MissingAnalyserError as error:
            logger.warning("morphemes_not_searched", error=error)
    query = asked.query()
    return query, asked.alone() if asked.history else query


async def _search(connection: Any, live: Live, query: Query, documents: DocumentFilter) -> Found:
    postings = await _kept().postings.read(connection, live, [*query.weights, *query.morphemes])
    if documents:
        scope = await _kept().scopes.read(connection, live, postings.chunks, documents)
        return await asyncio.to_thread(lambda: score(scope.narrow(postings), query))
    return await asyncio.to_thread(score, postings, query)


def _use_of(row: Mapping[str, Any]) -> float:
    """How much of a chunk's score counts: a table of contents comes behind the pages that it names."""
    is_overview = row["document"].rpartition("/")[2].lower() in _OVERVIEWS
    if not is_overview and "](" not in row["text"]:
        return 1.0
    lines = [line.lstrip() for line in row["text"].splitlines() if line.strip()]
    entries = sum("](" in line or (is_overview and line[0] in "|-*") for line in lines)
    return _CONTENTS_SHARE if entries >= _LEAST_ENTRIES and 2 * entries >= len(lines) else 1.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """What this process has read of one database's index."""

    postings: PostingsCache = field(default_factory=PostingsCache)
    vectors: VectorCache = field(default_factory=VectorCache)
    scopes: ScopeCache = field(default_factory=ScopeCache)


_kept_by_database: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def _kept() -> _Kept:
    return _kept_by_database.setdefault(Tortoise.get_connection("default"), _Kept())


def _distinct(rows: Rows, scores: Mapping[int, float], top_k: int) -> list[Passage]:
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

"""The part of the index that a question with a document filter searches, as if there were no other documents."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rag.search.document_filter import DocumentFilter
from rag.search.postings import Chunks, Ids, Ints, Live, Postings, Row, int_array

CACHE_BYTES: Final = 32 * 1024 * 1024
"""The most that one process keeps of scopes."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The chunks of the documents that a filter allows: where each is among them, by its place in the whole index."""

    live: Live
    chunks: Chunks
    _new_places: Ints

    def narrow(self, postings: Postings) -> Postings:
        """The entries of these chunks alone, their places counted anew."""
        return Postings(self.live, {term: self._row(row) for term, row in postings.rows.items()}, self.chunks)

    def _row(self, row: Row) -> Row:
        places = self._new_places[row.places]
        kept = places >= 0
        return Row((), {}, places[kept], row.factors[kept])

    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self._new_places.nbytes + self.chunks.ids.nbytes + self.chunks.order.nbytes


@dataclass(frozen=True, slots=True)
class _Segment:
    """The documents of a segment's chunks, 0 where a chunk is gone, and the length of each in terms."""

    document_ids: Ids
    term_counts: Ints


@dataclass(frozen=True, slots=True)
class _Layout:
    """The documents of all chunks by place, as numbers of the sorted paths; -1 where a document is gone."""

    segments: Mapping[int, _Segment]
    paths: tuple[str, ...]
    documents: Ints
    term_counts: Ints


class ScopeCache:
    """The scopes of one database's index that this process has made."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._scopes: OrderedDict[DocumentFilter, Scope] = OrderedDict()
        self._layout: _Layout | None = None
        self._made_of: tuple[int, datetime, tuple[int, ...]] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def read(self, connection: Any, live: Live, chunks: Chunks, wanted: DocumentFilter) -> Scope:
        """The scope of a filter in the index that serves."""
        async with self._one_at_a_time:
            layout = await self._current(connection, live)
            scope = self._scopes.pop(wanted, None)
            if scope is None:
                scope = await asyncio.to_thread(_make, live, chunks, layout, wanted)
            self._keep(wanted, scope)
            return scope

    def _keep(self, wanted: DocumentFilter, scope: Scope) -> None:
        self._scopes[wanted] = scope
        while sum(kept.size_bytes() for kept in self._scopes.values()) > self._max_bytes and len(self._scopes) > 1:
            self._scopes.popitem(last=False)

    async def _current(self, connection: Any, live: Live) -> _Layout:
        made_of = (live.generation_id, live.created_at, live.segment_ids)
        if self._layout is None or made_of != self._made_of:
            is_same_generation = self._made_of is not None and self._made_of[:2] == made_of[:2]
            known = self._layout.segments if self._layout is not None and is_same_generation else {}
            self._scopes.clear()
            self._layout = await _read_layout(connection, live, known)
            self._made_of = made_of
        return self._layout


async def _read_layout(connection: Any, live: Live, known: Mapping[int, _Segment]) -> _Layout:
    missing = [id_ for id_ in live.segment_ids if id_ not in known]
    read = await connection.fetch(_SEGMENTS, missing) if missing else []
    fresh = {
        row["id"]: _Segment(
            int_array(row["document_ids"], 8).astype(np.int64), int_array(row["term_counts"], 4).astype(np.int32)
        )
        for row in read
    }
    rows = await connection.fetch(_DOCUMENTS)
    segments = {id_: known.get(id_) or fresh[id_] for id_ in live.segment_ids}
    return await asyncio.to_thread(_lay_out, segments, [(row["path"], row["id"]) for row in rows])


def _lay_out(segments: Mapping[int, _Segment], documents: list[tuple[str, int]]) -> _Layout:
    documents.sort()
    ids = np.asarray([id_ for _, id_ in documents], dtype=np.int64)
    order = np.argsort(ids)
    of_places = np.concatenate([*(each.document_ids for each in segments.values()), np.zeros(0, np.int64)])
    numbers = np.full(len(of_places), -1, dtype=np.int32)
    if len(ids):
        at = order[np.minimum(np.searchsorted(ids, of_places, sorter=order), len(ids) - 1)]
        is_known = ids[at] == of_places
        numbers[is_known] = at[is_known]
    term_counts = np.concatenate([*(each.term_counts for each in segments.values()), np.zeros(0, np.int32)])
    return _Layout(segments, tuple(path for path, _ in documents), numbers, term_counts)


def _make(live: Live, chunks: Chunks, layout: _Layout, wanted: DocumentFilter) -> Scope:
    is_allowed = np.zeros(len(layout.paths) + 1, dtype=np.bool_)  # the last one is of documents that are gone
    is_allowed[wanted.choose(layout.paths)] = True
    places = np.flatnonzero(is_allowed[layout.documents])
    new_places = np.full(len(layout.documents), -1, dtype=np.int32)
    new_places[places] = np.arange(len(places), dtype=np.int32)
    ids: Ids = chunks.ids[places]
    narrowed: npt.NDArray[np.intp] = np.argsort(ids)
    term_count = int(layout.term_counts[places].sum())
    inside = replace(live, segment_ids=(0,), chunk_counts=(len(places),), term_count=term_count)
    return Scope(inside, Chunks({}, ids, narrowed), new_places)


_SEGMENTS: Final = """
SELECT segments.id, array_send(array_agg(coalesce(chunks.document_id, 0) ORDER BY listed.place)) AS document_ids,
    array_send(array_agg(coalesce(chunks.term_count, 0) ORDER BY listed.place)) AS term_counts
FROM segments CROSS JOIN unnest(segments.chunk_ids) WITH ORDINALITY AS listed (chunk_id, place)
LEFT JOIN chunks ON chunks.id = listed.chunk_id
WHERE segments.id = ANY ($1::bigint[]) GROUP BY segments.id
"""
_DOCUMENTS: Final = "SELECT id, path FROM documents"

"""Postings as they are searched: read from PostgreSQL once, and kept in this process while they last.

A segment's rows never change, so what was read of one is true for as long as the segment lives; which segments live
is asked anew for every question.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Factors = npt.NDArray[np.uint16]

CACHE_BYTES: Final = 96 * 1024 * 1024
"""The most that one process keeps of postings."""

_FACTOR_BITS: Final = 12  # of an entry, below its ordinal: see `rag.search.postings_draft`
_FACTOR_MASK: Final = (1 << _FACTOR_BITS) - 1
_ROW_OVERHEAD_BYTES: Final = 400
_ARRAY_HEADER: Final = 20
_INT8_BYTES: Final = 8
_INT4_ELEMENT: Final = np.dtype([("size", ">i4"), ("value", ">i4")])
_INT8_ELEMENT: Final = np.dtype([("size", ">i4"), ("value", ">i8")])


@dataclass(frozen=True, slots=True)
class Live:
    """The index that serves, as one snapshot shows it.

    `embedding_model` is empty until its vectors are complete; `has_vector_index` says whether PostgreSQL indexes them,
    and `has_morphemes` whether morphemes are terms of it.
    """

    generation_id: int
    created_at: datetime
    embedding_model: str
    vectors_version: int
    has_vector_index: bool
    segment_ids: tuple[int, ...]
    chunk_counts: tuple[int, ...]
    term_count: int
    has_morphemes: bool

    @property
    def chunk_count(self) -> int:
        """Chunks in its segments, with those that were deleted since."""
        return sum(self.chunk_counts)


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of all live segments: their ids by place, and the places in the order of their ids."""

    by_segment: Mapping[int, Ids]
    ids: Ids
    order: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Row:
    """A term's entries in all live segments: chunks by their places in the row of all segments' chunks.

    `pieces` says of a segment where its entries start and stop, and the place of its first chunk.
    """

    layout: tuple[int, ...]
    pieces: Mapping[int, tuple[int, int, int]]
    places: Ints
    factors: Factors

    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.places.nbytes + self.factors.nbytes + _ROW_OVERHEAD_BYTES

    def piece(self, segment_id: int) -> tuple[Ints, Factors]:
        """A segment's entries, its chunks counted from 0."""
        start, stop, base = self.pieces[segment_id]
        return self.places[start:stop] - np.int32(base), self.factors[start:stop]


@dataclass(frozen=True, slots=True)
class Postings:
    """Some terms' rows, and the chunks that their places mean."""

    live: Live
    rows: Mapping[str, Row]
    chunks: Chunks


class PostingsCache:
    """What this process has read of the postings of one database."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._chunks = _NO_CHUNKS
        self._made_of: tuple[int, datetime] | None = None

    async def read(self, connection: Any, live: Live, terms: Sequence[str]) -> Postings:
        """The entries of some terms in all segments of `live`, and its chunks."""
        if (made_of := (live.generation_id, live.created_at)) != self._made_of:
            self._clear(made_of)
        rows = await self._read(connection, live, terms)
        return Postings(live, rows, await self._read_chunks(connection, live))

    def _clear(self, made_of: tuple[int, datetime]) -> None:
        """Forget a generation that is over; its creation tells it from one of a database that was made anew."""
        self._rows.clear()
        self._chunks = _NO_CHUNKS
        self._size_bytes = 0
        self._made_of = made_of

    async def _read(self, connection: Any, live: Live, terms: Sequence[str]) -> dict[str, Row]:
        """Every term's row in the layout of `live`; only segments that it has not got are read."""
        lacking: dict[tuple[int, ...], list[str]] = {}
        for term in terms:
            layout = self._rows[term].layout if term in self._rows else ()
            if layout != live.segment_ids or term not in self._rows:
                lacking.setdefault(layout, []).append(term)
        fresh: dict[str, Row] = {}
        for layout, group in lacking.items():
            missing = [id_ for id_ in live.segment_ids if id_ not in layout]
            read = await connection.fetch(_POSTINGS, group, missing) if missing else []
            entries = {(row["term"], row["segment_id"]): _entries(row["entries"]) for row in read}
            fresh |= {term: _join(live, term, self._rows.get(term), entries) for term in group}
        rows = {term: fresh[term] if term in fresh else self._rows[term] for term in terms}
        for term, row in rows.items():
            self._keep(term, row)
        return rows

    def _keep(self, term: str, row: Row) -> None:
        before = self._rows.pop(term, None)
        self._size_bytes += row.size_bytes() - (before.size_bytes() if before else 0)
        self._rows[term] = row
        while self._size_bytes > self._max_bytes and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self._size_bytes -= oldest.size_bytes()

    async def _read_chunks(self, connection: Any, live: Live) -> Chunks:
        known = self._chunks
        if tuple(known.by_segment) != live.segment_ids:
            missing = [id_ for id_ in live.segment_ids if id_ not in known.by_segment]
            read = await connection.fetch(_CHUNK_IDS, missing) if missing else []
            fresh = {row["id"]: _array(row["chunk_ids"], _INT8_ELEMENT).astype(np.int64) for row in read}
            known = self._chunks = await asyncio.to_thread(_lay_out, live, {**known.by_segment, **fresh})
        return known


def _lay_out(live: Live, by_segment: Mapping[int, Ids]) -> Chunks:
    kept = {id_: by_segment[id_] for id_ in live.segment_ids}
    ids = np.concatenate([*kept.values(), np.zeros(0, np.int64)])
    return Chunks(kept, ids, np.argsort(ids))


def _join(live: Live, term: str, before: Row | None, entries: Mapping[tuple[str, int], Ints]) -> Row:
    """A term's row in the layout of `live`, from the segments it was in before and those read now."""
    pieces: dict[int, tuple[int, int, int]] = {}
    places, factors = [_NO_INTS], [_NO_FACTORS]
    base = size = 0
    for segment_id, chunk_count in zip(live.segment_ids, live.chunk_counts, strict=True):
        if before is not None and segment_id in before.pieces:
            ordinals, bits = before.piece(segment_id)
        else:
            values = entries.get((term, segment_id), _NO_INTS)
            ordinals, bits = values >> _FACTOR_BITS, (values & _FACTOR_MASK).astype(np.uint16)
        pieces[segment_id] = (size, size + len(ordinals), base)
        places.append(ordinals + np.int32(base))
        factors.append(bits)
        size += len(ordinals)
        base += chunk_count
    return Row(live.segment_ids, pieces, np.concatenate(places), np.concatenate(factors))


def _entries(data: bytes) -> Ints:
    return _array(data, _INT4_ELEMENT).astype(np.int32)


def int_array(data: bytes, width: int) -> npt.NDArray[Any]:
    """The numbers of so many bytes in an array that PostgreSQL has sent in binary form."""
    return _array(data, _INT8_ELEMENT if width == _INT8_BYTES else _INT4_ELEMENT)


def _array(data: bytes, element: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values of an array of one dimension without nulls, from PostgreSQL's binary form of it."""
    return np.frombuffer(data, dtype=element, offset=_ARRAY_HEADER)["value"]


_NO_INTS: Final = np.zeros(0, np.int32)
_NO_FACTORS: Final = np.zeros(0, np.uint16)
_NO_CHUNKS: Final = Chunks({}, np.zeros(0, np.int64), np.zeros(0, np.intp))

# Decoding an array into Python's integers would cost more than all the rest.
_POSTINGS: Final = """
SELECT term, segment_id, array_send(entries) AS entries FROM postings
WHERE term = ANY ($1::text[] COLLATE "C") AND segment_id = ANY ($2::bigint[])
"""
_CHUNK_IDS: Final = "SELECT id, array_send(chunk_ids) AS chunk_ids FROM segments WHERE id = ANY ($1::bigint[])"

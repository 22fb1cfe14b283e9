"""From a draft of a segment to rows, in the caller's transaction."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import Any, Final

from tortoise.backends.base.client import BaseDBAsyncClient

from rag.index.prepared import PACKED_COLUMNS, Draft
from rag.search.postings_draft import COPY_BEGIN, COPY_END, number_postings

_DELETED_AT_ONCE: Final = 20_000
_ROWS_AT_ONCE: Final = 200
_CHUNK_COLUMNS: Final = ("id", "document_id", "generation_id", *PACKED_COLUMNS)
_ROW_HEAD: Final = struct.Struct("!hiqiqiq")


async def write(connection: BaseDBAsyncClient, draft: Draft, generation_id: int) -> None:
    """Write a draft's rows; what it makes stale goes in the same transaction."""
    database: Any = connection._connection  # asyncpg's, for COPY
    if draft.added:
        await _write_segment(database, draft, generation_id)
    if draft.kept:
        await database.execute(
            "UPDATE chunks SET position = kept.position, start_offset = kept.start_offset, "
            "end_offset = kept.end_offset FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::bigint[]) "
            "AS kept (id, position, start_offset, end_offset) WHERE chunks.id = kept.id "
            "AND (chunks.position, chunks.start_offset, chunks.end_offset) "
            "<> (kept.position, kept.start_offset, kept.end_offset)",
            *map(list, zip(*draft.kept, strict=True)),
        )
    await delete_chunks(database, draft.stale)


async def delete_chunks(database: Any, chunk_ids: Sequence[int]) -> None:
    """Delete chunks and count them as dead in their segments, in statements that no time limit cuts short."""
    for start in range(0, len(chunk_ids), _DELETED_AT_ONCE):
        ids = chunk_ids[start : start + _DELETED_AT_ONCE]
        await database.execute(
            "UPDATE segments SET dead_count = dead_count + gone.size FROM ("
            "  SELECT segments.id, count(*) AS size FROM segments, unnest(chunk_ids) AS chunk_id"
            "  WHERE chunk_id = ANY($1::bigint[]) GROUP BY segments.id"
            ") AS gone WHERE segments.id = gone.id",
            ids,
        )
        await database.execute("DELETE FROM chunks WHERE id = ANY($1::bigint[])", ids)


async def _write_segment(database: Any, draft: Draft, generation_id: int) -> None:
    document_ids = await _document_ids(database, {path for path, _ in draft.added})
    ids = await _new_chunk_ids(database, len(draft.added))
    rows = [
        (_ROW_HEAD.pack(len(_CHUNK_COLUMNS), 8, id_, 8, document_ids[path], 8, generation_id), packed)
        for id_, (path, packed) in zip(ids, draft.added, strict=True)
    ]
    await database.copy_to_table("chunks", columns=_CHUNK_COLUMNS, source=_rows_data(rows), format="binary")
    segment_id = await database.fetchval(
        "INSERT INTO segments (generation_id, chunk_ids, chunk_count, dead_count, term_count) "
        "VALUES ($1, $2, $3, 0, $4) RETURNING id",
        generation_id,
        ids,
        len(ids),
        draft.term_count,
    )
    await database.copy_to_table("postings", source=_numbered(draft.postings, segment_id), format="binary")


async def _rows_data(rows: Sequence[tuple[bytes, bytes]]) -> AsyncIterator[bytes]:
    yield COPY_BEGIN
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield b"".join(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE]))
    yield COPY_END


async def _numbered(postings: Sequence[bytes], segment_id: int) -> AsyncIterator[bytes]:
    for piece in postings:
        yield number_postings(piece, segment_id)


async def _document_ids(database: Any, paths: Iterable[str]) -> dict[str, int]:
    ordered = sorted(paths)
    await database.execute(
        "INSERT INTO documents (path) SELECT * FROM unnest($1::text[]) ON CONFLICT (path) DO NOTHING",
        ordered,
    )
    rows = await database.fetch("SELECT path, id FROM documents WHERE path = ANY($1::text[])", ordered)
    return {row["path"]: row["id"] for row in rows}


async def _new_chunk_ids(database: Any, count: int) -> list[int]:
    rows = await database.fetch(_NEW_CHUNK_IDS, count)
    return [row["id"] for row in rows]


# Looking the sequence up for every number would take longer than the numbers.
_NEW_CHUNK_IDS: Final = """
WITH sequence AS MATERIALIZED (SELECT pg_get_serial_sequence('chunks', 'id')::regclass AS name)
SELECT nextval(name) AS id FROM sequence, generate_series(1, $1)
"""

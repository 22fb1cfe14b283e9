"""The lexical index in PostgreSQL: chunks and postings in segments, which are merged so that they stay few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.index.drafts import Draft

MOST_SEGMENTS: Final = 12
MERGED_CHUNKS: Final = 10_000
_DEAD_SHARE: Final = 0.3
_SMALL_CHUNKS: Final = 1000  # a smaller segment is rewritten for any dead chunk: in a small corpus each counts
_DELETED_AT_ONCE: Final = 20_000
_ROWS_AT_ONCE: Final = 1000
"""Rows that are encoded at once on the event loop: about 5 ms."""

_CHUNK_COLUMNS: Final = (
    "id", "document_id", "generation_id", "position", "heading", "text", "start_offset", "end_offset", "token_count",
    "term_count", "content_hash",
)  # fmt: skip


async def write(connection: BaseDBAsyncClient, draft: Draft, generation_id: int) -> None:
    """Write a draft's rows and delete those that it makes stale, in the caller's transaction."""
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
    """Delete chunks and count them as dead in their segments, in statements shorter than the statement timeout."""
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


async def merge_segments(generation_id: int) -> None:
    """Merge small segments where there are too many, and rewrite those with many dead chunks."""
    rows = await Tortoise.get_connection("default").execute_query_dict(
        "SELECT id, chunk_count, dead_count FROM segments WHERE generation_id = $1 "
        "ORDER BY chunk_count - dead_count, id",
        [generation_id],
    )
    rotten = {row["id"] for row in rows if row["dead_count"] > _dead_allowed(row["chunk_count"])}
    too_many = len(rows) > MOST_SEGMENTS
    group: list[int] = []
    size = 0
    for row in rows:
        live = row["chunk_count"] - row["dead_count"]
        if live > MERGED_CHUNKS // 2 and row["id"] not in rotten:
            continue
        if not too_many and row["id"] not in rotten:
            continue
        if group and size + live > MERGED_CHUNKS:
            await _merge(generation_id, group)
            group, size = [], 0
        group.append(row["id"])
        size += live
    if len(group) > 1 or set(group) & rotten:
        await _merge(generation_id, group)


async def _write_segment(database: Any, draft: Draft, generation_id: int) -> None:
    document_ids = await _document_ids(database, {chunk.path for chunk in draft.added})
    ids = await _new_chunk_ids(database, len(draft.added))
    chunks = (
        (id_, document_ids[path], generation_id, *columns)
        for id_, (path, *columns) in zip(ids, draft.added, strict=True)
    )
    await _copy(database, "chunks", chunks, _CHUNK_COLUMNS)
    segment_id = await database.fetchval(
        "INSERT INTO segments (generation_id, chunk_ids, chunk_count, term_count) VALUES ($1, $2, $3, $4) RETURNING id",
        generation_id,
        ids,
        len(ids),
        draft.term_count,
    )
    postings = ((term, segment_id, entries) for term, entries in draft.postings.rows())
    await _copy(database, "postings", postings, ("term", "segment_id", "entries"))


async def _copy(database: Any, table: str, rows: Iterable[tuple[Any, ...]], columns: Sequence[str]) -> None:
    remaining = iter(rows)
    while some := list(islice(remaining, _ROWS_AT_ONCE)):
        await database.copy_records_to_table(table, records=some, columns=columns)


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


def _dead_allowed(chunk_count: int) -> float:
    return 0 if chunk_count <= _SMALL_CHUNKS else chunk_count * _DEAD_SHARE


async def _merge(generation_id: int, segment_ids: Sequence[int]) -> None:
    """Replace segments by one that holds their live chunks."""

    async def work(connection: BaseDBAsyncClient) -> None:
        database: Any = connection._connection
        merged = await database.fetchval(_INSERT_SEGMENT, generation_id, segment_ids)
        if merged is not None:
            await database.execute(_INSERT_POSTINGS, merged, segment_ids)
        await database.execute("DELETE FROM segments WHERE id = ANY($1::bigint[])", segment_ids)

    await transact(work)


_INSERT_SEGMENT: Final = """
INSERT INTO segments (generation_id, chunk_ids, chunk_count, dead_count, term_count)
SELECT $1, array_agg(chunks.id ORDER BY chunks.id), count(*), 0, sum(chunks.term_count)
FROM segments, unnest(segments.chunk_ids) AS chunk_id JOIN chunks ON chunks.id = chunk_id
WHERE segments.id = ANY($2::bigint[])
HAVING count(*) > 0
RETURNING id
"""

# 12: the bits of an entry below its ordinal, see `rag.search.postings_draft`.
_INSERT_POSTINGS: Final = """
WITH places AS MATERIALIZED (
    SELECT old.id AS segment_id, old_place.ordinal - 1 AS old_ordinal, new_place.ordinal - 1 AS ordinal
    FROM segments AS new, unnest(new.chunk_ids) WITH ORDINALITY AS new_place (chunk_id, ordinal),
         segments AS old, unnest(old.chunk_ids) WITH ORDINALITY AS old_place (chunk_id, ordinal)
    WHERE new.id = $1 AND old.id = ANY($2::bigint[]) AND old_place.chunk_id = new_place.chunk_id
), entries AS (
    SELECT term, segment_id, unnest(entries) AS entry FROM postings WHERE segment_id = ANY($2::bigint[])
)
INSERT INTO postings (term, segment_id, entries)
SELECT term, $1, array_agg((places.ordinal << 12 | (entry & 4095))::int ORDER BY places.ordinal)
FROM entries JOIN places ON places.segment_id = entries.segment_id AND places.old_ordinal = entry >> 12
GROUP BY term
"""

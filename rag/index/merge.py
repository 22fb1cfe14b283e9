"""Keep the segments few and free of dead chunks, so that a query stays fast however the corpus came to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact

MOST_SEGMENTS: Final = 12
MERGED_CHUNKS: Final = 10_000
_DEAD_SHARE: Final = 0.3
_SMALL_CHUNKS: Final = 1000  # of a segment that is written anew for any dead chunk: in a small corpus each counts


async def merge_segments(generation_id: int) -> None:
    """Merge small segments where there are too many, and write anew those with many dead chunks."""
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


def _dead_allowed(chunk_count: int) -> float:
    return 0 if chunk_count <= _SMALL_CHUNKS else chunk_count * _DEAD_SHARE


async def _merge(generation_id: int, segment_ids: Sequence[int]) -> None:
    """Replace segments by one that holds their living chunks."""

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

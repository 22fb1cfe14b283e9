"""What one question sees of the index: one generation, at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from tortoise import Tortoise

from rag.search.postings import Live


@asynccontextmanager
async def snapshot() -> AsyncIterator[Any]:
    """A connection of asyncpg that shows the same rows to every statement, whatever an indexer does meanwhile."""
    database = Tortoise.get_connection("default")
    async with (
        database.acquire_connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


async def read_live(connection: Any) -> Live | None:
    """The index that serves; None before the first one."""
    row = await connection.fetchrow(_LIVE)
    return row and Live(
        generation_id=row["id"],
        created_at=row["created_at"],
        embedding_model=row["embedding_model"],
        vectors_version=row["vectors_version"],
        has_vector_index=row["has_vector_index"],
        segment_ids=tuple(row["segment_ids"]),
        chunk_counts=tuple(row["chunk_counts"]),
        term_count=row["term_count"],
        has_morphemes=row["has_morphemes"],
    )


async def read_chunks(connection: Any, generation_id: int, chunk_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Those of some chunks that are still in a generation, each with the columns of a passage and its position."""
    rows = await connection.fetch(_CHUNKS, list(chunk_ids), generation_id)
    return {row["chunk_id"]: dict(row) for row in rows}


async def read_around(connection: Any, chunk_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The chunks right before and right after each of some chunks, where they are of the same section."""
    around: dict[int, list[dict[str, Any]]] = {}
    for row in await connection.fetch(_AROUND, list(chunk_ids)):
        around.setdefault(row["of"], []).append(dict(row))
    return around


_LIVE: Final = """
SELECT generations.id, generations.created_at, generations.vectors_version,
    to_regclass('vectors_of_' || generations.id) IS NOT NULL AS has_vector_index,
    generations.settings LIKE '% morphemes=%' AS has_morphemes,
    CASE WHEN generations.has_vectors THEN generations.embedding_model ELSE '' END AS embedding_model,
    coalesce(array_agg(segments.id ORDER BY segments.id) FILTER (WHERE segments.id IS NOT NULL), '{}') AS segment_ids,
    coalesce(array_agg(segments.chunk_count ORDER BY segments.id) FILTER (WHERE segments.id IS NOT NULL), '{}')
        AS chunk_counts,
    coalesce(sum(segments.term_count), 0)::bigint AS term_count
FROM generations LEFT JOIN segments ON segments.generation_id = generations.id
WHERE generations.is_current GROUP BY generations.id
"""

_CHUNKS: Final = """
SELECT chunks.id AS chunk_id, documents.path AS document, chunks.heading, chunks.text, chunks.start_offset,
    chunks.end_offset, chunks.token_count, chunks.position, chunks.document_id
FROM chunks JOIN documents ON documents.id = chunks.document_id
WHERE chunks.id = ANY ($1::bigint[]) AND chunks.generation_id = $2
"""

_AROUND: Final = """
SELECT found.id AS of, found.start_offset AS anchor,
    beside.text, beside.start_offset, beside.end_offset, beside.token_count
FROM chunks AS found JOIN chunks AS beside ON beside.document_id = found.document_id
    AND beside.position IN (found.position - 1, found.position + 1)
    AND beside.generation_id = found.generation_id AND beside.heading = found.heading
WHERE found.id = ANY ($1::bigint[]) ORDER BY found.id, beside.position
"""

"""Reads the status of the outbox and the index from PostgreSQL."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict
from tortoise.backends.base.client import BaseDBAsyncClient

from rag.index.runs import IS_LOCKED


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class OutboxStatus(_Part):
    """Follow-up jobs that are committed and not yet in the queue."""

    depth: int
    oldest_s: float | None


class IndexStatus(_Part):
    """The index that serves. `generation` is None before the first reindex."""

    generation: int | None
    built_s: float | None
    """The age of this generation in seconds."""
    indexed_s: float | None
    """The seconds since the last successful reindex."""
    is_reindexing: bool
    last_error: str | None
    """The error of the newest reindex; None where it succeeded."""
    documents: int
    failed_documents: int
    chunks: int


class StoreStatus(_Part):
    """The status of the outbox and the index."""

    outbox: OutboxStatus
    index: IndexStatus


_OUTBOX: Final = """
SELECT count(*)::int AS depth, extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest_s
FROM outbox_jobs
"""
# Chunks are counted by segment: a corpus may have millions of them.
_INDEX: Final = f"""
WITH current AS (SELECT id, created_at FROM generations WHERE is_current),
newest AS (SELECT error FROM reindex_runs WHERE ended_at IS NOT NULL ORDER BY id DESC LIMIT 1)
SELECT (SELECT id FROM current) AS generation,
  (SELECT extract(epoch FROM clock_timestamp() - created_at) FROM current)::float8 AS built_s,
  (SELECT extract(epoch FROM clock_timestamp() - max(ended_at)) FROM reindex_runs WHERE error IS NULL)::float8
    AS indexed_s,
  {IS_LOCKED} AS is_reindexing,
  (SELECT error FROM newest) AS last_error,
  (SELECT count(content_hash) FROM documents)::int AS documents,
  (SELECT count(error) FROM documents)::int AS failed_documents,
  (SELECT coalesce(sum(chunk_count - dead_count), 0) FROM segments WHERE generation_id IN (SELECT id FROM current))::int
    AS chunks
"""


async def read_store(database: BaseDBAsyncClient) -> StoreStatus:
    """A snapshot of the outbox and the index.

    Raises:
        asyncpg.PostgresError, tortoise.exceptions.BaseORMException, OSError: PostgreSQL can't be asked.
    """
    [outbox] = await database.execute_query_dict(_OUTBOX)
    [index] = await database.execute_query_dict(_INDEX)
    return StoreStatus(outbox=OutboxStatus(**outbox), index=IndexStatus(**index))

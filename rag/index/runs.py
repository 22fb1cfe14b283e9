"""The rows of `reindex_runs`: progress, and the lock that allows one run at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact

LOCK_KEY: Final = 0x7265696E646578  # "reindex"
_FENCE_KEY: Final = LOCK_KEY + 1
_WRITTEN_EVERY_S: Final = 1.0
_KEPT: Final = 20


class ReindexRunning(Exception):  # noqa: N818  # it is not an error
    """Another process is reindexing this database; this one has stopped."""

    def __init__(self, how_far: str = "") -> None:
        super().__init__(f"a reindex is already running{f' ({how_far})' if how_far else ''}; wait for it to end")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a run. Documents that were unchanged at its start count as done."""

    id: int
    is_running: bool
    started_at: datetime
    elapsed_s: float
    documents_done: int
    documents_total: int
    documents_unchanged: int
    chunks: int
    error: str | None

    @property
    def documents_a_second(self) -> float:
        """Documents indexed per second so far."""
        return (self.documents_done - self.documents_unchanged) / max(self.elapsed_s, 1e-3)

    @property
    def eta_s(self) -> float | None:
        """Remaining seconds at this rate; None while there is no rate."""
        rate = self.documents_a_second
        return (self.documents_total - self.documents_done) / rate if rate > 0 else None

    def __str__(self) -> str:
        rest = f", about {self.eta_s:.0f} s left" if self.eta_s is not None else ""
        return (
            f"{self.documents_done} of {self.documents_total} documents, {self.chunks} chunks, "
            f"{self.documents_a_second:.1f} documents/s{rest}"
        )


async def read_progress() -> RunProgress | None:
    """Read the progress of the newest run, of any process; None before the first run."""
    rows = await Tortoise.get_connection("default").execute_query_dict(_NEWEST)
    return RunProgress(**rows[0]) if rows else None


IS_LOCKED: Final = f"""EXISTS (
        SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE locktype = 'advisory' AND classid::bigint = {LOCK_KEY >> 32} AND objid::bigint = {LOCK_KEY & 0xFFFFFFFF}
            AND objsubid = 1 AND datname = current_database()
    )"""
"""SQL condition: a process holds the lock of a run."""

_NEWEST: Final = f"""
SELECT id, started_at, documents_done, documents_total, documents_unchanged, chunks, error,
    extract(epoch FROM coalesce(ended_at, clock_timestamp()) - started_at)::float8 AS elapsed_s,
    ended_at IS NULL AND {IS_LOCKED} AS is_running
FROM reindex_runs ORDER BY id DESC LIMIT 1
"""


class RunRecord:
    """Stores the progress of a run, at most once a second."""

    def __init__(self, run_id: int) -> None:
        self.id = run_id
        self._next_s = 0.0

    @classmethod
    async def open(cls) -> RunRecord:
        """Begin a run; runs whose process died get an error."""

        async def work(connection: BaseDBAsyncClient) -> int:
            database: Any = connection._connection
            await database.execute("SELECT pg_advisory_xact_lock($1)", _FENCE_KEY)
            await database.execute("DELETE FROM index_units")
            await database.execute(
                "UPDATE reindex_runs SET ended_at = now(), error = 'its process died' WHERE ended_at IS NULL"
            )
            await database.execute(
                "DELETE FROM reindex_runs WHERE id <= (SELECT max(id) FROM reindex_runs) - $1::bigint", _KEPT
            )
            return int(await database.fetchval("INSERT INTO reindex_runs DEFAULT VALUES RETURNING id"))

        return cls(await transact(work))

    async def hold(self, connection: BaseDBAsyncClient) -> None:
        """Prevent the start of another run until this transaction ends.

        Raises:
            ReindexRunning: another run has begun, because this one lost the connection that held the lock.
        """
        # The row is not locked: other workers of this run update its progress.
        await connection.execute_query("SELECT pg_advisory_xact_lock_shared($1)", [_FENCE_KEY])
        rows = await connection.execute_query_dict(
            "SELECT 1 FROM reindex_runs WHERE id = $1 AND ended_at IS NULL", [self.id]
        )
        if not rows:
            raise ReindexRunning

    async def progress(self, done: int, total: int, unchanged: int, chunks: int) -> None:
        """Store the progress, unless it was stored less than a second ago."""
        now_s = time.monotonic()
        if now_s < self._next_s and done < total:
            return
        self._next_s = now_s + _WRITTEN_EVERY_S
        await self._update(
            "documents_done = $2, documents_total = $3, documents_unchanged = $4, chunks = $5",
            done,
            total,
            unchanged,
            chunks,
        )

    async def progress_of_units(self) -> None:
        """Store the progress of a shared run, unless it was stored less than a second ago."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _WRITTEN_EVERY_S
        # Two workers may write at once: the higher numbers stay.
        await self._update(
            "documents_done = greatest(documents_done, documents_unchanged + seen.documents), "
            "chunks = greatest(reindex_runs.chunks, seen.chunks) FROM (SELECT "
            "coalesce(sum(documents), 0) AS documents, coalesce(sum(chunks), 0) AS chunks "
            "FROM index_units WHERE run_id = $1 AND done_at IS NOT NULL) AS seen"
        )

    async def end(self, error: str | None) -> None:
        """End the run, with the error that ended it, if any."""
        await self._update("ended_at = clock_timestamp(), error = $2", error)

    async def _update(self, columns: str, *values: Any) -> None:
        async def work(connection: BaseDBAsyncClient) -> None:
            statement = f"UPDATE reindex_runs SET {columns} WHERE reindex_runs.id = $1"
            await connection.execute_query(statement, [self.id, *values])

        await transact(work)

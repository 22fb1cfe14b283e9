"""Reindexes the corpus folder: only changed documents are written, and the index is searchable all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncpg
import structlog
from tortoise import Tortoise

from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import IGNORED, MAX_FILE_BYTES, SourceFile, Walk, walk
from rag.index.carry_over import carry_over
from rag.index.documents import DocumentState, is_current, load_documents, load_folders, remember_folders, remove
from rag.index.generations import Generation, finish_generation, keep_encoding, open_generation
from rag.index.results import Reindexed, Tally
from rag.index.runs import LOCK_KEY, ReindexRunning, RunRecord, read_progress
from rag.index.segments import merge_segments
from rag.index.shared_runs import Claims, Plan, share_units
from rag.index.units import UNITS, Unit, UnitWriter, make_units
from rag.providers.embedder import Embedder
from rag.search.vector_index import keep_vector_index
from rag.search.vectors import complete_vectors, lend_vectors

__all__ = ["FanOut", "Progress", "ReindexRunning", "Reindexed", "reindex"]

logger = structlog.stdlib.get_logger("protostar.index")

Progress = Callable[[int, int, int], None]
"""Called with the documents done, all documents, and the chunks written so far."""


@dataclass(frozen=True, slots=True)
class FanOut:
    """How a run with at least `least_bytes` of changed files is shared with helpers.

    `on_units` is called with the run and the number of its units, to start helpers. `worker` is the name of this
    process; its claims are valid for `lease_s` after the last renewal.
    """

    least_bytes: int
    worker: str
    lease_s: float
    on_units: Callable[[int, int], Awaitable[None]]


async def reindex(
    corpus_dir: Path,
    *,
    settings: ChunkSettings,
    full: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    ignore: tuple[str, ...] = IGNORED,
    on_progress: Progress | None = None,
    embedder: Embedder | None = None,
    vector_index: bool = True,
    fan_out: FanOut | None = None,
) -> Reindexed:
    """Index the changed files of `corpus_dir`, or with `full` all of them, while the current index stays searchable.

    A document is replaced in one transaction. Changed settings build a new generation, which becomes current when it
    is complete, with an `embedder` when every chunk has its vector too; the next run continues an interrupted build.
    Settings without a model keep the encoding of the current index.

    With `vector_index` the vectors of a large corpus get an index in PostgreSQL where pgvector is installed. With
    `fan_out` a large run is shared with helpers.

    Raises:
        CorpusError: the folder can't be used; nothing was changed.
        ReindexRunning: another process is reindexing.
        ProviderError: all texts are indexed, but not all could be embedded.
    """
    started = time.monotonic()
    started_ns = time.time_ns()
    found = await asyncio.to_thread(walk, corpus_dir, max_file_bytes=max_file_bytes, ignore=ignore)
    async with _only_one():
        record = await RunRecord.open()
        run = _Run(
            found, await keep_encoding(settings), record, on_progress or _no_progress, embedder, corpus_dir, fan_out
        )
        try:
            generation = await run.index(full=full, started_ns=started_ns)
            await keep_vector_index(generation.id, wanted=vector_index)
        except BaseException as error:
            with suppress(Exception):
                await record.end(str(error) or type(error).__name__)
            raise
        await record.end(None)
    done = run.tally.reindexed(started, run.unproved)
    logger.info("corpus_reindexed", **run.tally.counts)
    for failure in done.failures:
        logger.warning("document_failed", path=failure.path, reason=failure.reason)
    return done


def _no_progress(_done: int, _total: int, _chunks: int) -> None:
    pass


@asynccontextmanager
async def _only_one() -> AsyncIterator[None]:
    database = Tortoise.get_connection("default")
    async with database.acquire_connection() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
            running = await read_progress()
            raise ReindexRunning(str(running) if running and running.is_running else "")
        try:
            yield
        finally:
            # A connection that was lost has lost the lock too.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)


@dataclass(slots=True)
class _Run:
    """A reindex in progress."""

    found: Walk
    settings: ChunkSettings
    record: RunRecord
    on_progress: Progress
    embedder: Embedder | None
    corpus_dir: Path
    fan_out: FanOut | None
    tally: Tally = field(default_factory=Tally)
    unproved: list[str] = field(default_factory=list)

    async def index(self, *, full: bool, started_ns: int) -> Generation:
        model = self.embedder.model if self.embedder else ""
        generation = await open_generation(self.settings, full=full, embedding_model=model)
        documents = await load_documents()
        await self._index_changed(UnitWriter(self.record, generation, self.settings, documents, started_ns))
        if self.embedder:
            await lend_vectors(generation.id, self.embedder.model)  # also from documents that are deleted below
        await self._remove_absent(documents)
        if not generation.is_current and await carry_over(self.record, generation, self.settings) and self.embedder:
            await lend_vectors(generation.id, self.embedder.model)
        await merge_segments(generation.id)
        if self.embedder:
            await complete_vectors(generation.id, self.embedder)
        if not generation.is_current:
            await finish_generation(generation)
        return generation

    async def _index_changed(self, writer: UnitWriter) -> None:
        documents, generation = writer.documents, writer.generation
        self.tally.add(await writer.fail(self.found.failures), documents)
        todo = [file for file in self.found.files if not is_current(documents.get(file.path), file, generation)]
        done = unchanged = len(self.found.files) - len(todo)
        self.tally.counts["unchanged"] += unchanged
        await self._report(done, unchanged)
        if units := self._worth_sharing(todo):
            await self._index_together(writer, units)
            done = len(self.found.files)
            await self._report(done, unchanged)
            return
        async with aclosing(writer.index(_each(make_units(todo)))) as indexed:
            async for unit, written in indexed:
                self.tally.add(written, documents)
                done += len(unit.files)
                await self._report(done, unchanged)

    def _worth_sharing(self, todo: Sequence[SourceFile]) -> list[Unit]:
        """The units of a run that is large enough to share; empty otherwise."""
        if self.fan_out is None or sum(file.size_bytes for file in todo) < self.fan_out.least_bytes:
            return []
        units = make_units(todo, self.fan_out.least_bytes // UNITS)
        return units if len(units) > 1 else []

    async def _index_together(self, writer: UnitWriter, units: Sequence[Unit]) -> None:
        assert self.fan_out
        plan = Plan(writer.generation, writer.settings, writer.started_ns)
        await share_units(self.record, plan, units, self.corpus_dir)
        await self.fan_out.on_units(self.record.id, len(units))
        lease_s = self.fan_out.lease_s
        claims = Claims(self.record, self.corpus_dir, worker=self.fan_out.worker, leads=True, lease_s=lease_s)
        async with claims, aclosing(replace(writer, claims=claims).index(claims.units())) as indexed:
            async for _ in indexed:
                await self.record.progress_of_units()
        self.tally.add_tally(await claims.total())

    async def _remove_absent(self, documents: Mapping[str, DocumentState]) -> None:
        known = await load_folders()
        self.unproved = self.found.unproved(known, documents)
        absent = self.found.absent(documents, self.unproved)
        await remove([documents[path].id for path in absent])
        self.tally.counts["removed"] += len(absent)
        await remember_folders(self.found, known)

    async def _report(self, done: int, unchanged: int) -> None:
        total, chunks = len(self.found.files), self.tally.counts["chunks"]
        self.on_progress(done, total, chunks)
        await self.record.progress(done, total, unchanged, chunks)


async def _each(units: Sequence[Unit]) -> AsyncIterator[Unit]:
    for unit in units:
        yield unit

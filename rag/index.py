"""Bring the index up to date with the corpus folder, at the cost of what changed and without a moment of downtime."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
from protostar_client.contract import ReindexResult
from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.chunking import ChunkSettings
from rag.corpus import MAX_FILE_BYTES, Failure, SourceFile, UnreadableFileError, Walk, walk
from rag.documents import DocumentState, load_documents, load_known, record, remove
from rag.generations import Generation, finish_generation, open_generation
from rag.merging import merge_segments
from rag.segments import Draft, prepare, write

logger = logging.getLogger("protostar.index")

Progress = Callable[[int, int, int], None]
"""Called with documents done, documents in all, and chunks written so far."""

_LOCK_KEY: Final = 0x7265696E646578  # "reindex"
_STREAMED_BYTES: Final = 1024 * 1024
_LEAST_UNIT_BYTES: Final = 1024 * 1024
_MOST_UNIT_BYTES: Final = 8 * 1024 * 1024
_UNITS: Final = 8
_UNIT_FILES: Final = 1000


class ReindexRunning(Exception):  # noqa: N818  # it is no error
    """Another process is indexing this database; nothing was done."""

    def __init__(self) -> None:
        super().__init__("a reindex is already running; wait for it to end")


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What a reindex did: its counts, the files it could not index, and folders whose documents it kept.

    A folder in `unproved` could not be read or is empty, so nothing proves that its documents are gone.
    """

    result: ReindexResult
    failures: list[Failure]
    unproved: list[str]


async def reindex(
    corpus_dir: Path,
    *,
    settings: ChunkSettings,
    full: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    on_progress: Progress | None = None,
) -> Reindexed:
    """Index what changed in `corpus_dir`, or with `full` all of it, beside the index that serves.

    A document is swapped in one transaction. Other settings than those of the index in use build a new
    generation, which takes over when it is complete; killed in between, the next run goes on.

    Raises:
        CorpusError: the folder can't be used; nothing was changed.
        ReindexRunning: another process is at it.
    """
    started = time.monotonic()
    found = await asyncio.to_thread(walk, corpus_dir, max_file_bytes=max_file_bytes)
    async with _only_one():
        run = _Run(found, settings, on_progress or _no_progress)
        await run.index(full=full)
    run.counts["seconds"] = round(time.monotonic() - started, 3)
    result = ReindexResult.model_validate(run.counts)
    logger.info("reindexed %s", " ".join(f"{name}={count}" for name, count in result.model_dump().items()))
    for failure in run.failures:
        logger.warning("document_failed path=%r reason=%s", failure.path, failure.reason)
    return Reindexed(result, run.failures, found.unproved)


def _no_progress(_done: int, _total: int, _chunks: int) -> None:
    pass


@asynccontextmanager
async def _only_one() -> AsyncIterator[None]:
    database = Tortoise.get_connection("default")
    async with database.acquire_connection() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):
            raise ReindexRunning
        try:
            yield
        finally:
            # A connection that was lost has lost the lock too.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)


def _no_counts() -> dict[str, Any]:
    return dict.fromkeys(("added", "changed", "removed", "unchanged", "failed", "chunks", "seconds"), 0)


@dataclass(slots=True)
class _Run:
    """One reindex on its way."""

    found: Walk
    settings: ChunkSettings
    on_progress: Progress
    counts: dict[str, Any] = field(default_factory=_no_counts)
    failures: list[Failure] = field(default_factory=list)
    _started_ns: int = field(default_factory=time.time_ns)
    _done: int = 0

    async def index(self, *, full: bool) -> None:
        generation = await open_generation(self.settings, full=full)
        documents = await load_documents()
        await self._fail(self.found.failures, generation)
        todo = [file for file in self.found.files if not self._is_current(documents.get(file.path), file, generation)]
        self.counts["unchanged"] += len(self.found.files) - len(todo)
        self._done = len(self.found.files) - len(todo)
        self._report()
        await self._index_units(_units(todo), documents, generation)
        await self._remove_absent(documents)
        await merge_segments(generation.id)
        if not generation.is_current:
            await finish_generation(generation)

    def _is_current(self, document: DocumentState | None, file: SourceFile, generation: Generation) -> bool:
        if document is None or document.error or not document.stamp:
            return False
        return document.stamp == file.stamp and document.hash_in(generation) is not None

    async def _index_units(
        self, units: Sequence[Sequence[SourceFile]], documents: Mapping[str, DocumentState], generation: Generation
    ) -> None:
        """Write one unit while the next is being prepared."""
        upcoming = [asyncio.create_task(self._prepare(units[0], documents, generation))] if units else []
        try:
            for index, unit in enumerate(units):
                drafts = await upcoming.pop()
                if index + 1 < len(units):
                    upcoming.append(asyncio.create_task(self._prepare(units[index + 1], documents, generation)))
                await self._write_unit(unit, drafts, documents, generation)
        finally:
            for task in upcoming:
                task.cancel()

    async def _prepare(
        self, unit: Sequence[SourceFile], documents: Mapping[str, DocumentState], generation: Generation
    ) -> list[Draft] | None:
        """The drafts of a unit; None for a large file, whose drafts are made one by one as they are written."""
        if _is_streamed(unit):
            return None
        known = await load_known([file.path for file in unit], documents, generation)
        return await asyncio.to_thread(lambda: list(prepare(unit, known, self.settings)))

    async def _write_unit(
        self,
        unit: Sequence[SourceFile],
        drafts: list[Draft] | None,
        documents: Mapping[str, DocumentState],
        generation: Generation,
    ) -> None:
        async def work(connection: BaseDBAsyncClient) -> list[Draft]:
            written = []
            async for draft in self._drafts(unit, drafts, documents, generation):
                await write(connection, draft, generation.id)
                await record(connection, draft, generation, self._started_ns)
                written.append(draft.summary())
            return written

        try:
            written = await transact(work)
        except UnreadableFileError as error:
            await self._fail([Failure(unit[0].path, str(error))], generation)
            written = []
        self._count(written, documents)
        self._done += len(unit)
        self._report()

    async def _drafts(
        self,
        unit: Sequence[SourceFile],
        drafts: list[Draft] | None,
        documents: Mapping[str, DocumentState],
        generation: Generation,
    ) -> AsyncIterator[Draft]:
        if drafts is not None:
            for draft in drafts:
                yield draft
            return
        known = await load_known([file.path for file in unit], documents, generation)
        stream = prepare(unit, known, self.settings)
        more: Draft | None
        while (more := await asyncio.to_thread(_next_draft, stream)) is not None:
            yield more

    def _count(self, drafts: Iterable[Draft], documents: Mapping[str, DocumentState]) -> None:
        for draft in drafts:
            self.counts["chunks"] += draft.added_count
            self.counts["unchanged"] += len(draft.unchanged)
            self.counts["failed"] += len(draft.failures)
            self.failures += draft.failures
            for finished in draft.finished:
                before = documents.get(finished.file.path)
                if before is None or before.content_hash is None:
                    self.counts["added"] += 1
                else:
                    self.counts["unchanged" if before.content_hash == finished.content_hash else "changed"] += 1

    async def _fail(self, failures: Sequence[Failure], generation: Generation) -> None:
        draft = Draft(failures=list(failures))

        async def work(connection: BaseDBAsyncClient) -> None:
            await record(connection, draft, generation, self._started_ns)

        if failures:
            await transact(work)
            self._count([draft], {})

    async def _remove_absent(self, documents: Mapping[str, DocumentState]) -> None:
        present = {file.path for file in self.found.files} | {failure.path for failure in self.found.failures}
        absent = [path for path in documents if path not in present and self.found.proves_absence(path)]
        if absent:
            await remove([documents[path].id for path in absent])
            self.counts["removed"] += len(absent)

    def _report(self) -> None:
        self.on_progress(self._done, len(self.found.files), self.counts["chunks"])


def _next_draft(stream: Iterator[Draft]) -> Draft | None:
    # A StopIteration can't pass through a future.
    return next(stream, None)


def _is_streamed(unit: Sequence[SourceFile]) -> bool:
    return len(unit) == 1 and unit[0].size_bytes >= _STREAMED_BYTES


def _units(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Files that are indexed together, a large file alone; larger units for larger runs, so that segments stay few."""
    total = sum(file.size_bytes for file in files)
    limit = min(max(total // _UNITS, _LEAST_UNIT_BYTES), _MOST_UNIT_BYTES)
    units: list[list[SourceFile]] = []
    room = 0
    for file in files:
        if file.size_bytes >= _STREAMED_BYTES:
            units.append([file])
            room = 0
        elif not units or room < file.size_bytes or len(units[-1]) >= _UNIT_FILES:
            units.append([file])
            room = limit - file.size_bytes
        else:
            units[-1].append(file)
            room -= file.size_bytes
    return units

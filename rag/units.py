"""Files that are indexed together: preparing them, and writing them so that each document is swapped at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.chunking import ChunkSettings
from rag.content import UnreadableFileError
from rag.corpus import Failure, SourceFile
from rag.documents import DocumentState, load_known, record
from rag.generations import Generation
from rag.runs import RunRecord
from rag.segments import Draft, prepare, write

Unit = Sequence[SourceFile]

LONGEST_READ_S: Final = 900.0
"""How long a disk may take for a part of a large file before PostgreSQL gives its transaction up."""

_STREAMED_BYTES: Final = 1024 * 1024
_LEAST_UNIT_BYTES: Final = 1024 * 1024
_MOST_UNIT_BYTES: Final = 8 * 1024 * 1024
_UNITS: Final = 8
_UNIT_FILES: Final = 1000


def make_units(files: Sequence[SourceFile]) -> list[Unit]:
    """Files in units, a large file alone; larger units for larger runs, so that segments stay few."""
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
    return list(units)


@dataclass(slots=True)
class UnitWriter:
    """Indexes units into a generation. `started_ns` is when the walk began that found their files."""

    run: RunRecord
    generation: Generation
    settings: ChunkSettings
    documents: Mapping[str, DocumentState]
    started_ns: int

    async def index(self, units: Sequence[Unit]) -> AsyncIterator[tuple[Unit, list[Draft]]]:
        """Write units one after the other, each while the next is prepared; gives what was written of each."""
        upcoming = [asyncio.create_task(self._prepare(units[0]))] if units else []
        try:
            for index, unit in enumerate(units):
                drafts = await upcoming.pop()
                if index + 1 < len(units):
                    upcoming.append(asyncio.create_task(self._prepare(units[index + 1])))
                yield unit, await self._write(unit, drafts)
        finally:
            for task in upcoming:
                task.cancel()

    async def fail(self, failures: Sequence[Failure]) -> list[Draft]:
        """Write down why files can't be indexed."""
        draft = Draft(failures=list(failures))

        async def work(connection: BaseDBAsyncClient) -> None:
            await record(connection, draft, self.generation, self.started_ns)

        if failures:
            await transact(work)
        return [draft]

    async def _prepare(self, unit: Unit) -> list[Draft] | None:
        """The drafts of a unit; None for a large file, whose drafts are made while they are written."""
        if len(unit) == 1 and unit[0].size_bytes >= _STREAMED_BYTES:
            return None
        known = await load_known([file.path for file in unit], self.documents, self.generation)
        return await asyncio.to_thread(lambda: list(prepare(unit, known, self.settings)))

    async def _write(self, unit: Unit, drafts: list[Draft] | None) -> list[Draft]:
        async def work(connection: BaseDBAsyncClient) -> list[Draft]:
            await self.run.hold(connection)
            written = []
            async for draft in _at_hand(drafts) if drafts is not None else self._stream(unit):
                await write(connection, draft, self.generation.id)
                await record(connection, draft, self.generation, self.started_ns)
                written.append(draft.summary())
            return written

        try:
            return await transact(work, longest_pause_s=LONGEST_READ_S if drafts is None else None)
        except UnreadableFileError as error:
            return await self.fail([Failure(unit[0].path, str(error))])

    async def _stream(self, unit: Unit) -> AsyncIterator[Draft]:
        """The drafts of a large file, each made while the one before is written."""
        known = await load_known([file.path for file in unit], self.documents, self.generation)
        drafts = prepare(unit, known, self.settings)
        upcoming = asyncio.create_task(asyncio.to_thread(_next_draft, drafts))
        try:
            while (draft := await upcoming) is not None:
                upcoming = asyncio.create_task(asyncio.to_thread(_next_draft, drafts))
                yield draft
        finally:
            # A thread can't be cancelled, and two of them can't share a generator.
            with suppress(Exception):
                await upcoming


async def _at_hand(drafts: Sequence[Draft]) -> AsyncIterator[Draft]:
    for draft in drafts:
        yield draft


def _next_draft(drafts: Iterator[Draft]) -> Draft | None:
    # A StopIteration can't pass through a future.
    return next(drafts, None)

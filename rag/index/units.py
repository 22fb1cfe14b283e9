"""Units of work: files that are prepared together and written in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.corpus.chunk import ChunkSettings
from rag.corpus.read import UnreadableFileError
from rag.corpus.walk import Failure, SourceFile
from rag.index.documents import DocumentState, load_known, record
from rag.index.drafts import Draft
from rag.index.generations import Generation
from rag.index.preparer import Preparer
from rag.index.results import Tally
from rag.index.runs import RunRecord
from rag.index.segments import write

LONGEST_READ_S: Final = 900.0
"""Seconds that reading a part of a large file may take before PostgreSQL ends the idle transaction."""

_STREAMED_BYTES: Final = 1024 * 1024
_LEAST_UNIT_BYTES: Final = 1024 * 1024
_MOST_UNIT_BYTES: Final = 8 * 1024 * 1024
UNITS: Final = 8
_UNIT_FILES: Final = 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that are indexed together; `id` is the id of their row in `index_units` where the run is shared."""

    files: Sequence[SourceFile]
    id: int = 0

    @property
    def is_streamed(self) -> bool:
        """Whether it is one large file, which is written while it is read."""
        return len(self.files) == 1 and self.files[0].size_bytes >= _STREAMED_BYTES


class UnitClaims(Protocol):
    """Lets exactly one process write a unit of a shared run (`rag.index.shared_runs`)."""

    async def has_files(self, unit: Unit) -> bool:
        """Whether this process has the unit's files."""
        ...

    async def leave(self, unit: Unit) -> None:
        """Release a unit to the coordinator."""
        ...

    async def hold(self, connection: BaseDBAsyncClient, unit: Unit) -> bool:
        """Lock the unit until the transaction ends; false if another process holds it or has finished it."""
        ...

    async def finish(self, connection: BaseDBAsyncClient, unit: Unit, tally: Tally) -> None:
        """Mark a unit done, in the transaction of its chunks."""
        ...


def make_units(files: Sequence[SourceFile], least_bytes: int = _LEAST_UNIT_BYTES) -> list[Unit]:
    """Group files into units. A large file is alone; a larger run has larger units, so that segments stay few."""
    total = sum(file.size_bytes for file in files if file.size_bytes < _STREAMED_BYTES)
    limit = min(max(total // UNITS, least_bytes), _MOST_UNIT_BYTES)
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
    return [Unit(unit) for unit in units]


@dataclass(slots=True)
class UnitWriter:
    """Indexes units into a generation. `started_ns` is when the walk that found the files began.

    `claims` is set where the run is shared.
    """

    run: RunRecord
    generation: Generation
    settings: ChunkSettings
    documents: Mapping[str, DocumentState]
    started_ns: int
    claims: UnitClaims | None = None
    _preparer: Preparer = field(default_factory=Preparer, init=False)

    async def index(self, units: AsyncIterator[Unit]) -> AsyncGenerator[tuple[Unit, list[Draft]], None]:
        """Write units one after the other, each while the next is prepared; yield each unit with its written drafts."""
        upcoming = asyncio.create_task(self._next(units))
        try:
            while (ready := await upcoming) is not None:
                upcoming = asyncio.create_task(self._next(units))
                unit, drafts = ready
                written = await self._write(unit, drafts)
                if written is not None:
                    yield unit, written
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
            await self._preparer.close()

    async def fail(self, failures: Sequence[Failure]) -> list[Draft]:
        """Store why files can't be indexed."""
        draft = Draft(failures=list(failures))

        async def work(connection: BaseDBAsyncClient) -> None:
            await self.run.hold(connection)
            await record(connection, draft, self.generation, self.started_ns)

        if failures:
            await transact(work)
        return [draft]

    async def _next(self, units: AsyncIterator[Unit]) -> tuple[Unit, list[Draft] | None] | None:
        unit = await anext(units, None)
        return None if unit is None else (unit, await self._prepare(unit))

    async def _prepare(self, unit: Unit) -> list[Draft] | None:
        """Prepare the drafts of a unit; None for a large file, whose drafts are prepared while they are written."""
        if unit.is_streamed:
            return None
        return [draft async for draft in self._drafts(unit)]

    async def _write(self, unit: Unit, drafts: list[Draft] | None) -> list[Draft] | None:
        """Write a unit and its outcome in one transaction; None if another process has the unit."""
        if self.claims and not await self.claims.has_files(unit):
            await self.claims.leave(unit)
            return None
        try:
            return await self._swap(unit, drafts)
        except UnreadableFileError as error:
            if self.claims and not await self.claims.has_files(unit):
                await self.claims.leave(unit)
                return None
            return await self._swap(unit, [Draft(failures=[Failure(unit.files[0].path, str(error))])])

    async def _swap(self, unit: Unit, drafts: list[Draft] | None) -> list[Draft] | None:
        async def work(connection: BaseDBAsyncClient) -> list[Draft] | None:
            await self.run.hold(connection)
            if self.claims and not await self.claims.hold(connection, unit):
                return None
            written = []
            async with aclosing(self._drafts(unit) if drafts is None else _at_hand(drafts)) as to_write:
                async for draft in to_write:
                    await write(connection, draft, self.generation.id)
                    await record(connection, draft, self.generation, self.started_ns)
                    written.append(draft.summary())
            if self.claims:
                tally = Tally()
                tally.add(written, self.documents)
                await self.claims.finish(connection, unit, tally)
            return written

        return await transact(work, longest_pause_s=LONGEST_READ_S if drafts is None else None)

    async def _drafts(self, unit: Unit) -> AsyncGenerator[Draft, None]:
        paths = [file.path for file in unit.files]
        drafts = self._preparer.prepare(
            unit.files, await load_known(paths, self.documents, self.generation), self.settings
        )
        async with aclosing(drafts):
            async for draft in drafts:
                yield draft


async def _at_hand(drafts: Sequence[Draft]) -> AsyncGenerator[Draft, None]:
    for draft in drafts:
        yield draft

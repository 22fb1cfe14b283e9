"""Shared runs: several workers claim the units of a large reindex, and each unit is written at most once.

The coordinator holds the lock of the run and may claim any unit. A helper claims only units that no worker has
tried, and releases those that it can't index to the coordinator: a unit that kills its worker kills one helper.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Self

import structlog
from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import RETRY_FOR_S, transact
from rag.analysis import morphemes
from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import SourceFile, is_as_walked
from rag.index.documents import load_documents
from rag.index.generations import Generation, fingerprint
from rag.index.results import Tally
from rag.index.runs import IS_LOCKED, ReindexRunning, RunRecord
from rag.index.units import Unit, UnitWriter

logger = structlog.stdlib.get_logger("protostar.index")

_LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a shared run. `started_ns` is when its walk began."""

    generation: Generation
    settings: ChunkSettings
    started_ns: int

    def dump(self) -> str:
        """Serialise to JSON."""
        fields = {**asdict(self), "fingerprint": fingerprint(self.settings)}
        if not self.settings.morphemes:
            del fields["settings"]["morphemes"]  # older workers don't know the field
        return json.dumps(fields)

    @classmethod
    def load(cls, text: str) -> Self | None:
        """Read the JSON of `dump`; None if this version would cut the files differently."""
        fields = json.loads(text)
        settings = ChunkSettings(**fields["settings"])
        if settings.morphemes and not morphemes.is_installed():
            return None
        if fields["fingerprint"] != fingerprint(settings):
            return None
        return cls(Generation(**fields["generation"]), settings, fields["started_ns"])


async def read_plan(run_id: int) -> Plan | None:
    """Read the plan of a shared run; None if the run has ended or this version can't help."""
    rows = await Tortoise.get_connection("default").execute_query_dict(
        "SELECT plan FROM reindex_runs WHERE id = $1 AND ended_at IS NULL", [run_id]
    )
    return Plan.load(rows[0]["plan"]) if rows and rows[0]["plan"] else None


async def share_units(run: RunRecord, plan: Plan, units: Sequence[Unit], root: Path) -> None:
    """Store the units of a run, so that workers can claim them."""

    async def work(connection: BaseDBAsyncClient) -> None:
        await run.hold(connection)
        database: Any = connection._connection  # asyncpg's, for executemany
        await database.execute("DELETE FROM index_units")
        await database.executemany(
            "INSERT INTO index_units (run_id, files) VALUES ($1, $2)",
            [(run.id, _dump_files(unit.files, root)) for unit in units],
        )
        await database.execute("UPDATE reindex_runs SET plan = $2 WHERE id = $1", run.id, plan.dump())

    await transact(work)


async def help_index(run_id: int, corpus_dir: Path, *, worker: str, lease_s: float) -> int:
    """Index units of a run until there are none to claim; returns the number of units written.

    Units whose files differ from what the coordinator found are released to it. A run that has ended, or whose
    coordinator is gone or has another version of the splitter, is not touched.
    """
    plan = await read_plan(run_id)
    if plan is None:
        return 0
    run = RunRecord(run_id)
    documents = await load_documents()
    written = 0
    async with Claims(run, corpus_dir, worker=worker, leads=False, lease_s=lease_s) as claims:
        writer = UnitWriter(run, plan.generation, plan.settings, documents, plan.started_ns, claims)
        try:
            async with aclosing(writer.index(claims.units())) as indexed:
                async for _ in indexed:
                    written += 1
                    await run.progress_of_units()
        except ReindexRunning:
            logger.info("index_run_over", run=run_id)
    return written


def _dump_files(files: Sequence[SourceFile], root: Path) -> str:
    # A location may hold surrogates, as the name of a file that is not UTF-8 does: escaped, they are text.
    return json.dumps(
        [[file.path, relpath(file.location, root), file.size_bytes, file.stamp, file.changed_ns] for file in files]
    )


def _load_files(text: str, root: Path) -> list[SourceFile]:
    return [SourceFile(path, f"{root}/{location}", *rest) for path, location, *rest in json.loads(text)]


class Claims:
    """Claims units of a run for one process; on leaving the context it releases unfinished units.

    Args:
        run: the run.
        root: this process's corpus folder.
        worker: the name of this process.
        leads: whether this process is the coordinator, which ends only when every unit is done.
        lease_s: seconds after the last renewal for which a claim is valid.
    """

    def __init__(self, run: RunRecord, root: Path, *, worker: str, leads: bool, lease_s: float) -> None:
        self._run = run
        self._root = root
        self._owner = f"{worker}/{token_hex(4)}"
        self._leads = leads
        self._lease_s = lease_s
        self._claimed: list[int] = []

    async def __aenter__(self) -> Self:
        self._beat = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beat.cancel()
        await asyncio.gather(self._beat, return_exceptions=True)
        with suppress(Exception):  # the lease ends by itself
            await self._leave("TRUE", retry_for_s=0)

    async def units(self) -> AsyncIterator[Unit]:
        """Claim units until there are none; the coordinator waits for the units of others."""
        while True:
            unit = await self._claim()
            if unit is None:
                if not self._leads or not await self._is_any_left():
                    return
                await self._run.progress_of_units()
                await asyncio.sleep(_LOOK_EVERY_S)
            elif await self.has_files(unit):
                yield unit
            else:
                await self.leave(unit)

    async def has_files(self, unit: Unit) -> bool:
        """Whether the unit's files are here as the coordinator found them; the coordinator accepts changed files."""
        if self._leads:
            return True
        return await asyncio.to_thread(lambda: all(map(is_as_walked, unit.files)))

    async def leave(self, unit: Unit) -> None:
        """Release a unit to the coordinator."""
        logger.warning("index_unit_left", run=self._run.id, unit=unit.id, path=unit.files[0].path)
        await self._leave("id = $3", unit.id)

    async def finish(self, connection: BaseDBAsyncClient, unit: Unit, tally: Tally) -> None:
        """Mark a unit done, in the transaction of its chunks."""
        await connection.execute_query(
            "UPDATE index_units SET done_at = clock_timestamp(), files = '', documents = $2, chunks = $3, outcome = $4 "
            "WHERE id = $1",
            [unit.id, len(unit.files), tally.counts["chunks"], tally.dump()],
        )

    async def hold(self, connection: BaseDBAsyncClient, unit: Unit) -> bool:
        """Lock the unit until the transaction ends; false if another process holds it or has finished it."""
        rows = await connection.execute_query_dict(
            "SELECT 1 FROM index_units WHERE id = $1 AND owner = $2 AND done_at IS NULL FOR UPDATE",
            [unit.id, self._owner],
        )
        return bool(rows)

    async def total(self) -> Tally:
        """The tally of all units, of every worker."""
        rows = await Tortoise.get_connection("default").execute_query_dict(
            "SELECT outcome FROM index_units WHERE run_id = $1 AND done_at IS NOT NULL ORDER BY id", [self._run.id]
        )
        total = Tally()
        for row in rows:
            total.add_tally(Tally.load(row["outcome"]))
        return total

    async def _claim(self) -> Unit | None:
        async def work(connection: BaseDBAsyncClient) -> list[dict[str, Any]]:
            return await connection.execute_query_dict(
                _CLAIM_ANY if self._leads else _CLAIM_NEW, [self._run.id, self._owner, self._lease_s]
            )

        rows = await transact(work)
        if not rows:
            return None
        self._claimed.append(rows[0]["id"])
        return Unit(_load_files(rows[0]["files"], self._root), rows[0]["id"])

    async def _is_any_left(self) -> bool:
        rows = await Tortoise.get_connection("default").execute_query_dict(
            "SELECT 1 FROM index_units WHERE run_id = $1 AND done_at IS NULL LIMIT 1", [self._run.id]
        )
        return bool(rows)

    async def _renew(self) -> None:
        """Renew the leases of claimed units. A unit that is being written needs no renewal: its row is locked."""

        async def work(connection: BaseDBAsyncClient) -> None:
            await connection.execute_query(_RENEW, [self._claimed, self._owner, self._lease_s])

        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await transact(work, retry_for_s=self._lease_s)
            except Exception as error:
                logger.warning("index_lease_not_renewed", run=self._run.id, error=error)

    async def _leave(self, which: str, *values: Any, retry_for_s: float = RETRY_FOR_S) -> None:
        async def work(connection: BaseDBAsyncClient) -> None:
            await connection.execute_query(
                "UPDATE index_units SET owner = NULL, lease_until = NULL, is_left = TRUE "
                f"WHERE run_id = $1 AND owner = $2 AND done_at IS NULL AND {which}",
                [self._run.id, self._owner, *values],
            )

        await transact(work, retry_for_s=retry_for_s)


_CLAIM: Final = """
UPDATE index_units SET owner = $2, lease_until = clock_timestamp() + make_interval(secs => $3) WHERE id = (
    SELECT id FROM index_units WHERE run_id = $1 AND done_at IS NULL AND {free}
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
) AND EXISTS (SELECT 1 FROM reindex_runs WHERE id = $1 AND ended_at IS NULL)
RETURNING id, files
"""
_CLAIM_ANY: Final = _CLAIM.format(free="(owner IS NULL OR lease_until < clock_timestamp())")
_CLAIM_NEW: Final = _CLAIM.format(free=f"owner IS NULL AND NOT is_left AND {IS_LOCKED}")

_RENEW: Final = """
UPDATE index_units SET lease_until = clock_timestamp() + make_interval(secs => $3) WHERE id IN (
    SELECT id FROM index_units WHERE id = ANY($1::bigint[]) AND owner = $2 AND done_at IS NULL FOR UPDATE SKIP LOCKED
)
"""

"""A large reindex is shared by workers: who writes what, and what is left where one of them dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from arq.jobs import Job

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import walk
from rag.index.documents import load_documents
from rag.index.generations import open_generation
from rag.index.preview import preview
from rag.index.reindex import FanOut, reindex
from rag.index.runs import LOCK_KEY, ReindexRunning, RunRecord, read_progress
from rag.index.shared_runs import Claims, Plan, help_index, share_units
from rag.index.units import UnitWriter, make_units
from rag.search.retrieve import retrieve
from tests.support.stack_under_test import Stack, until

SETTINGS: Final = ChunkSettings(400, 60, "test-model")
SHARING: Final = {"PROTOSTAR_REINDEX_MINUTES": "0", "PROTOSTAR_FAN_OUT_MB": "0.01", "PROTOSTAR_LEASE": "1"}
FILES: Final = 240
COUNTS: Final = ("added", "changed", "removed", "unchanged", "failed", "chunks", "failures")
_CHUNKS: Final = (
    "SELECT path, position, heading, text, start_offset, end_offset FROM chunks JOIN documents "
    "ON documents.id = document_id JOIN generations ON generations.id = generation_id AND is_current "
    "ORDER BY path, position"
)


def fill(corpus: Path, files: int = FILES) -> None:
    """Small files of two chunks, a large one, and one that can't be indexed."""
    for number in range(files):
        text = f"# 문서 {number}\n\n큐는 작업 {number} 하나를 받는다.\n\n## 재시도 {number}\n\n세 번까지 한다.\n"
        (corpus / f"{number:03}.md").write_text(text)
    (corpus / "large.md").write_text("임대는 시간이 지나면 만료된다. " * 30_000)
    (corpus / "bad.md").write_bytes(b"caf\xe9 \xff\xfe")


@asynccontextmanager
async def holding_writes(stack: Stack) -> AsyncIterator[None]:
    """Let nobody write chunks; everything can be read."""
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE chunks IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def start_reindex(stack: Stack, **arguments: Any) -> Job:
    job = await stack.redis.enqueue_job("reindex_corpus", **arguments)
    assert job is not None
    return job


async def claimers(stack: Stack) -> set[str]:
    rows = await stack.rows("SELECT DISTINCT owner FROM index_units WHERE owner IS NOT NULL")
    return {row["owner"].split("/")[0] for row in rows}


async def until_shared(stack: Stack) -> None:
    """Wait until two workers have claimed units."""

    async def shared() -> bool:
        return len(await claimers(stack)) == 2

    await until(shared, "two workers have units", stack.logs)


async def kill(stack: Stack, job_id: str) -> str:
    """Kill the worker that runs a job; returns its name."""
    owner = str((await stack.redis.get(f"arq:in-progress:{job_id}")).decode())
    os.kill(int(owner.split("-")[-2]), signal.SIGKILL)
    return owner


async def helper_job(stack: Stack) -> str:
    [run] = await stack.rows("SELECT max(id) AS id FROM reindex_runs")
    return f"index:{run['id']}:0"


async def check_same_as_alone(stack: Stack, expected: dict[str, Any], result: dict[str, Any]) -> None:
    """The result, and the index, are those of one process that works alone."""
    assert {name: result[name] for name in COUNTS} == {name: expected[name] for name in COUNTS}
    shared = await stack.rows(_CHUNKS)
    async with connect(stack.database_url):
        await reindex(stack.corpus, settings=SETTINGS, full=True)
    assert shared == await stack.rows(_CHUNKS)


async def expected_result(stack: Stack) -> dict[str, Any]:
    async with connect(stack.database_url):
        return (await preview(stack.corpus, settings=SETTINGS)).reindexed.result.model_dump()


async def test_two_workers_write_what_one_alone_would(stack: Stack) -> None:
    fill(stack.corpus)
    expected = await expected_result(stack)
    for _ in range(2):
        await stack.start_worker(**SHARING)
    async with holding_writes(stack):
        job = await start_reindex(stack)
        await until_shared(stack)
    result = (await stack.result(job.job_id))["r"]
    writers = await stack.rows("SELECT owner, count(*) FROM index_units WHERE done_at IS NOT NULL GROUP BY owner")
    assert len(writers) == 2
    assert not await stack.rows("SELECT 1 FROM index_units WHERE done_at IS NULL OR files <> ''")
    async with connect(stack.database_url):
        progress = await read_progress()
    assert progress is not None
    assert (progress.documents_done, progress.documents_total) == (FILES + 3, FILES + 3)
    assert (progress.chunks, progress.is_running, progress.error) == (expected["chunks"], False, None)
    assert result["added"] == FILES + 2
    await check_same_as_alone(stack, expected, result)


async def test_a_run_ends_where_a_helper_is_killed(stack: Stack) -> None:
    fill(stack.corpus)
    expected = await expected_result(stack)
    for _ in range(2):
        await stack.start_worker(**SHARING)
    async with holding_writes(stack):
        job = await start_reindex(stack)
        await until_shared(stack)
        helper = await kill(stack, await helper_job(stack))
    result = (await stack.result(job.job_id))["r"]
    assert helper not in await claimers(stack)
    await check_same_as_alone(stack, expected, result)


async def test_the_index_serves_while_a_coordinator_is_killed_and_the_next_run_completes(stack: Stack) -> None:
    fill(stack.corpus)
    expected = await expected_result(stack)
    async with connect(stack.database_url):
        await reindex(stack.corpus, settings=SETTINGS)
        before = await retrieve("재시도 7")
        assert before
        for _ in range(2):
            await stack.start_worker(**SHARING)
        async with holding_writes(stack):
            job = await start_reindex(stack, full=True)
            await until_shared(stack)
            await kill(stack, job.job_id)
            assert await retrieve("재시도 7") == before
        result = await stack.result(job.job_id)
        after = await retrieve("재시도 7")
    assert result["t"] == 2
    assert after[0].text == before[0].text
    assert {passage.chunk_id for passage in after}.isdisjoint(passage.chunk_id for passage in before)
    chunks = await stack.rows(_CHUNKS)
    assert len(chunks) == expected["chunks"] >= result["r"]["chunks"]
    errors = [run["error"] for run in await stack.rows("SELECT error FROM reindex_runs ORDER BY id")]
    assert errors == [None, "its process died", None]


async def test_a_helper_with_another_folder_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    fill(stack.corpus)
    expected = await expected_result(stack)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(0, FILES, 2):  # the same names and sizes, and half of them
        (other / f"{number:03}.md").write_bytes(b"x" * (stack.corpus / f"{number:03}.md").stat().st_size)
    await stack.start_worker(**SHARING)
    async with holding_writes(stack):
        job = await start_reindex(stack)

        async def claimed() -> object:
            return await stack.rows("SELECT 1 FROM index_units WHERE owner IS NOT NULL")

        await until(claimed, "the coordinator has a unit", stack.logs)
        await stack.start_worker(**SHARING, PROTOSTAR_CORPUS_DIR=str(other))
        # The second worker came too late to be called.
        await stack.redis.enqueue_job("index_documents", run=int((await helper_job(stack)).split(":")[1]))

        async def all_left() -> bool:
            return not await stack.rows("SELECT 1 FROM index_units WHERE owner IS NULL AND NOT is_left")

        await until(all_left, "the helper has left every unit", stack.logs)
    result = (await stack.result(job.job_id))["r"]
    assert len(await claimers(stack)) == 1
    await check_same_as_alone(stack, expected, result)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[str]:
    async with connect(database_url):
        yield database_url


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    fill(root, 20)
    (root / "bad.md").unlink()
    return root


@asynccontextmanager
async def shared_run(database: str, root: Path) -> AsyncIterator[tuple[RunRecord, UnitWriter]]:
    """A run whose units wait to be claimed."""
    lock = await asyncpg.connect(database)
    try:
        await lock.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        run = await RunRecord.open()
        plan = Plan(await open_generation(SETTINGS, full=False), SETTINGS, time.time_ns())
        await share_units(run, plan, make_units(walk(root).files, 256), root)
        yield run, UnitWriter(run, plan.generation, SETTINGS, await load_documents(), plan.started_ns)
    finally:
        await lock.close()


def claims_of(run: RunRecord, root: Path, *, leads: bool, lease_s: float = 60) -> Claims:
    return Claims(run, root, worker="lead" if leads else "help", leads=leads, lease_s=lease_s)


async def chunk_count(database: str) -> int:
    connection = await asyncpg.connect(database)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM chunks"))
    finally:
        await connection.close()


async def test_a_helper_of_a_run_that_was_superseded_writes_nothing(database: str, corpus: Path) -> None:
    async with shared_run(database, corpus) as (run, writer):
        claims = claims_of(run, corpus, leads=False)
        units = claims.units()
        unit = await anext(units)
        await RunRecord.open()
        writer.claims = claims
        with pytest.raises(ReindexRunning):
            await anext(writer.index(one(unit)))
        assert await anext(units, None) is None
        assert await help_index(run.id, corpus, worker="late", lease_s=60) == 0
    assert await chunk_count(database) == 0


async def one(unit: Any) -> AsyncIterator[Any]:
    yield unit


async def test_a_unit_that_two_have_claimed_is_written_once(database: str, corpus: Path) -> None:
    async with shared_run(database, corpus) as (run, writer):
        slow, lead = claims_of(run, corpus, leads=False, lease_s=0), claims_of(run, corpus, leads=True)
        unit = await anext(slow.units())
        same = await anext(lead.units())
        assert same.id == unit.id
        writer.claims = lead
        assert [done.id async for done, _ in writer.index(one(same))] == [unit.id]
        written = await chunk_count(database)
        writer.claims = slow
        assert [done async for done, _ in writer.index(one(unit))] == []
        assert await chunk_count(database) == written > 0


async def test_helpers_stop_where_the_coordinator_is_gone(database: str, corpus: Path) -> None:
    async with shared_run(database, corpus) as (run, _):
        pass

    async def stopped() -> bool:
        progress = await read_progress()
        return progress is not None and not progress.is_running

    await until(stopped, "the lock is free")
    assert await help_index(run.id, corpus, worker="late", lease_s=60) == 0
    assert await chunk_count(database) == 0


async def test_units_that_helpers_wrote_are_kept_by_the_next_run(database: str, corpus: Path) -> None:
    async with shared_run(database, corpus) as (run, _):
        assert await help_index(run.id, corpus, worker="helper", lease_s=60) > 1
    written = await chunk_count(database)
    progress = await read_progress()
    assert progress is not None
    assert progress.documents_done > 0
    assert progress.chunks > 0

    async def alone() -> Any:
        try:
            return await reindex(corpus, settings=SETTINGS)
        except ReindexRunning:
            return None

    done = await until(alone, "the lock is free")
    assert (done.result.unchanged, done.result.chunks) == (21, 0)
    assert await chunk_count(database) == written


async def test_without_helpers_a_shared_run_is_done_by_its_coordinator(database: str, corpus: Path) -> None:
    told: list[tuple[int, int]] = []

    async def on_units(run: int, units: int) -> None:
        told.append((run, units))

    done = await reindex(corpus, settings=SETTINGS, fan_out=FanOut(1024, "alone", 60, on_units))
    assert len(told) == 1
    assert told[0][1] > 1
    assert (done.result.added, done.result.chunks) == (21, await chunk_count(database))
    again = await reindex(corpus, settings=SETTINGS, fan_out=FanOut(10**9, "alone", 60, on_units))
    assert again.result.unchanged == 21
    assert len(told) == 1

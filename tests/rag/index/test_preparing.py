"""Files are prepared in a process of its own: the same drafts, and nothing left or lost whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.corpus.read import UnreadableFileError
from rag.corpus.walk import SourceFile, walk
from rag.index.drafts import Draft, Known, KnownChunks, prepare
from rag.index.preparer import LEAST_BYTES, Preparer, PreparingError
from rag.index.reindex import reindex
from rag.search.retrieve import retrieve
from tests.cli.test_cli import ROOT, environment, protostar
from tests.support.rows import fetch_values
from tests.support.stack_under_test import until

SETTINGS: Final = ChunkSettings(400, 60, "gpt-4o")


def fill(folder: Path, files: int, file_bytes: int) -> list[SourceFile]:
    folder.mkdir(exist_ok=True)
    for number in range(files):
        sentence = f"{number}번째 큐는 작업을 순서대로 처리한다. A worker renews its lease. "
        text = sentence * (file_bytes // len(sentence.encode()))
        (folder / f"{number:03}.md").write_text(f"# 문서 {number}\n\n{text}")
    return walk(folder).files


def children(pid: int) -> set[int]:
    """The living processes that a process has started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return {child for child in found if is_alive(child)}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
async def preparer() -> AsyncIterator[Preparer]:
    """One whose child must be gone afterwards."""
    before = children(os.getpid())
    preparer = Preparer()
    yield preparer
    await preparer.close()
    assert children(os.getpid()) <= before


async def drafts_of(preparer: Preparer, files: list[SourceFile], known: dict[str, Known] | None = None) -> list[Draft]:
    return [draft async for draft in preparer.prepare(files, known or {}, SETTINGS)]


async def use(preparer: Preparer, files: list[SourceFile], at_each: Callable[[], object]) -> None:
    async with aclosing(preparer.prepare(files, {}, SETTINGS)) as drafts:
        async for _ in drafts:
            at_each()


async def test_the_child_makes_the_drafts_that_this_process_would(tmp_path: Path, preparer: Preparer) -> None:
    files = fill(tmp_path, 3, 1_500_000)
    (tmp_path / "bad.md").write_bytes(b"caf\xe9 \xff\xfe")
    files = walk(tmp_path).files
    first = next(prepare(files, {}, SETTINGS))

    def known() -> dict[str, Known]:
        chunks = KnownChunks()
        for id_, digest in enumerate(sorted(chunk.content_hash for chunk in first.added[:50])):
            chunks.add(digest, id_)
        return {files[0].path: Known(None, chunks)}

    drafts = await drafts_of(preparer, files, known())
    assert drafts == list(prepare(files, known(), SETTINGS))
    assert len(drafts) > 2
    assert sum(len(draft.kept) for draft in drafts) == 50
    assert [failure.path for draft in drafts for failure in draft.failures] == ["bad.md"]


async def test_little_needs_no_child_and_one_child_does_the_rest(tmp_path: Path, preparer: Preparer) -> None:
    small, large = fill(tmp_path / "small", 3, 1000), fill(tmp_path / "large", 1, 5_000_000)
    before = children(os.getpid())
    expected = await drafts_of(preparer, small)
    assert children(os.getpid()) == before
    found = await asyncio.gather(*(drafts_of(preparer, files) for files in (large, small, large)))
    assert found[1] == expected
    assert found[0] == found[2]
    assert len(found[0]) > 2
    assert len(children(os.getpid()) - before) == 1


async def test_a_file_that_changes_meanwhile_is_told_as_such(tmp_path: Path, preparer: Preparer) -> None:
    files = fill(tmp_path, 1, 20_000_000)
    with pytest.raises(UnreadableFileError, match="changed while it was read"):
        await use(preparer, files, lambda: Path(files[0].location).write_text("다른 글"))
    assert len(await drafts_of(preparer, fill(tmp_path, 2, LEAST_BYTES))) == 1


async def test_half_used_drafts_leave_the_next_request_alone(tmp_path: Path, preparer: Preparer) -> None:
    files = fill(tmp_path, 1, 20_000_000)
    async with aclosing(preparer.prepare(files, {}, SETTINGS)) as drafts:
        assert await anext(drafts)
    [draft] = await drafts_of(preparer, fill(tmp_path / "other", 2, LEAST_BYTES))
    assert [done.file.path for done in draft.finished] == ["000.md", "001.md"]


async def test_a_killed_child_is_told_as_such(tmp_path: Path, preparer: Preparer) -> None:
    files = fill(tmp_path, 1, 20_000_000)
    before = children(os.getpid())

    def kill() -> None:
        for child in children(os.getpid()) - before:
            os.kill(child, signal.SIGKILL)

    with pytest.raises(PreparingError, match=r"was killed by SIGKILL; .* run again"):
        await use(preparer, files, kill)


async def test_what_ends_a_whole_service_is_left_to_the_parent(tmp_path: Path, preparer: Preparer) -> None:
    files = fill(tmp_path, 1, 5_000_000)
    before = children(os.getpid())

    def terminate() -> None:
        for child in children(os.getpid()) - before:
            os.kill(child, signal.SIGTERM)

    await use(preparer, files, terminate)


async def test_a_run_ends_its_child(database_url: str, tmp_path: Path) -> None:
    fill(tmp_path, 2, LEAST_BYTES)
    before = children(os.getpid())
    seen: set[int] = set()
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS, on_progress=lambda *_: seen.update(children(os.getpid())))
    assert len(seen - before) == 1
    assert children(os.getpid()) <= before


# As a user sees it


@dataclass(frozen=True, slots=True)
class Held:
    """A run, its child, and the connection whose end lets the run write."""

    run: Process
    child: int
    holding: asyncpg.Connection


@asynccontextmanager
async def held_run(database_url: str, corpus: Path) -> AsyncIterator[Held]:
    """`protostar reindex --full` that waits to write, and the child that prepares more for it."""
    variables = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(corpus)}
    connection = await asyncpg.connect(database_url)
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "protostar", "reindex", "--full", "--json"),
        cwd=ROOT, env=environment(**variables), stdout=PIPE, stderr=PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        await connection.execute("BEGIN; LOCK TABLE chunks IN EXCLUSIVE MODE")

        async def waits_to_write() -> bool:
            assert run.returncode is None
            waiting = "SELECT 1 FROM pg_locks WHERE relation = 'chunks'::regclass AND NOT granted"
            return bool(await connection.fetchval(waiting)) and bool(children(run.pid))

        await until(waits_to_write, "the run waits to write")
        [child] = children(run.pid)
        yield Held(run, child, connection)
    finally:
        await connection.close()
        if run.returncode is None:
            run.kill()
        await run.communicate()


@pytest.fixture
def corpus(database_url: str, tmp_path: Path) -> Path:
    """A folder that is indexed, and more of it."""
    folder = tmp_path / "corpus"
    fill(folder, 1, 1000)
    result = protostar("reindex", "--json", DATABASE_URL=database_url, PROTOSTAR_CORPUS_DIR=str(folder))
    assert json.loads(result.stdout)["added"] == 1
    fill(folder, 12, 400_000)
    return folder


async def check_old_index_serves_and_the_next_run_goes_on(database_url: str, corpus: Path) -> None:
    async with connect(database_url):
        [serving] = await fetch_values("SELECT id FROM generations WHERE is_current")
        assert len(await retrieve("작업을 순서대로")) == 1
        result = protostar("reindex", "--full", "--json", DATABASE_URL=database_url, PROTOSTAR_CORPUS_DIR=str(corpus))
        assert json.loads(result.stdout)["failed"] == 0
        assert serving not in await fetch_values("SELECT id FROM generations")


async def test_a_run_whose_child_is_killed_fails_in_one_line(database_url: str, corpus: Path) -> None:
    async with held_run(database_url, corpus) as held:
        os.kill(held.child, signal.SIGKILL)
        await held.holding.close()
        printed, errors = await held.run.communicate()
    assert (held.run.returncode, printed) == (1, b"")
    [line] = errors.decode().splitlines()
    assert line.startswith("protostar: the process that prepares files was killed by SIGKILL; ")
    await check_old_index_serves_and_the_next_run_goes_on(database_url, corpus)


async def test_a_killed_run_leaves_no_process(database_url: str, corpus: Path) -> None:
    async with held_run(database_url, corpus) as held:
        held.run.kill()
        assert await held.run.communicate() == (b"", b"")
        await until(lambda: ended(held.child), "the child has ended")
    await check_old_index_serves_and_the_next_run_goes_on(database_url, corpus)


async def test_ctrl_c_ends_both_without_a_traceback(database_url: str, corpus: Path) -> None:
    async with held_run(database_url, corpus) as held:
        os.killpg(held.run.pid, signal.SIGINT)
        assert await held.run.communicate() == (b"", b"")
        assert held.run.returncode == 130
        assert not is_alive(held.child)


async def test_what_the_child_prints_disturbs_nothing(database_url: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, warnings\nprint('noise', flush=True)\nos.write(1, b'noise\\n')\nwarnings.warn('noise')\n"
    )
    variables = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(corpus), "PYTHONPATH": str(tmp_path)}
    done = protostar("reindex", "--json", **variables)
    assert done.stderr.count("UserWarning: noise") == 2
    assert json.loads(done.stdout.removeprefix("noise\nnoise\n"))["added"] == 11


async def ended(pid: int) -> bool:
    return not is_alive(pid)

"""`protostar reindex --dry-run` and `--watch`, as a user runs them."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models.database import connect
from rag.index.runs import read_progress
from rag.search.retrieve import retrieve
from tests.cli.test_cli import ROOT, environment, protostar
from tests.support.rows import count, fetch_values

DEADLINE_S = 60.0


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "queue.md").write_text("# 작업 큐\n\n큐는 작업을 받아 둔다.\n")
    (folder / "bad.md").write_bytes(b"caf\xe9 \xff\xfe")
    return folder


def test_a_dry_run_says_what_would_be_done_and_does_nothing(database_url: str, corpus: Path) -> None:
    variables = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(corpus)}
    told = [json.loads(protostar("reindex", "--dry-run", "--json", **variables).stdout) for _ in range(2)]
    for result in told:
        assert (result["added"], result["failed"], result["chunks"]) == (1, 1, 1)
        assert result["embedding_tokens"] > 0
        assert [failure["path"] for failure in result["failures"]] == ["bad.md"]
    readable = protostar("reindex", "--dry-run", **variables)
    assert readable.stdout.startswith("would be: 1 added, 0 changed")
    assert "bad.md is in no known encoding" in readable.stderr


def test_patterns_and_the_size_limit_come_from_the_environment(database_url: str, corpus: Path) -> None:
    (corpus / "big.md").write_text("x " * 600_000)
    done = protostar(
        "reindex",
        "--dry-run",
        "--json",
        DATABASE_URL=database_url,
        PROTOSTAR_CORPUS_DIR=str(corpus),
        PROTOSTAR_CORPUS_IGNORE="bad*, queue.md",
        PROTOSTAR_MAX_FILE_MB="1",
    )
    [failure] = json.loads(done.stdout)["failures"]
    assert failure["path"] == "big.md"
    assert "PROTOSTAR_MAX_FILE_MB" in failure["reason"]


def test_watching_indexes_every_change_and_survives_a_folder_that_is_away(database_url: str, corpus: Path) -> None:
    with watching(DATABASE_URL=database_url, PROTOSTAR_CORPUS_DIR=str(corpus)) as results:
        assert results.until(lambda result: result["added"] == 1)
        (corpus / "new.md").write_text("# New\n\nA file.\n")
        assert results.until(lambda result: result["added"] == 1)
        corpus.rename(corpus.parent / "away")
        (corpus.parent / "away/new.md").write_text("# New\n\nAnother text.\n")
        (corpus.parent / "away").rename(corpus)
        assert results.until(lambda result: result["changed"] == 1)


async def test_killed_at_any_moment_the_old_index_serves_and_the_next_run_goes_on(
    database_url: str, corpus: Path
) -> None:
    sentence = "큐는 작업을 순서대로 처리한다. "
    for number in range(40):
        (corpus / f"{number}.md").write_text(f"# 문서 {number}\n\n" + f"{number}번째 {sentence}" * 800)
    variables = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(corpus)}
    before = json.loads(protostar("reindex", "--json", **variables).stdout)
    async with connect(database_url):
        [serving] = await fetch_values("SELECT id FROM generations")
        for share in (0.0, 0.3, 0.6):
            run = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "protostar", "reindex", "--full", cwd=ROOT, env=environment(**variables)
            )
            while await count("chunks WHERE generation_id <> $1", serving) < max(1, share * before["chunks"]):
                assert run.returncode is None
            run.kill()
            await run.wait()
            assert await fetch_values("SELECT id FROM generations WHERE is_current") == [serving]
            assert await count("chunks WHERE generation_id = $1", serving) == before["chunks"]
            assert await retrieve("작업을 순서대로")
        while (progress := await read_progress()) is None or progress.is_running:
            pass
        after = json.loads(protostar("reindex", "--full", "--json", **variables).stdout)
        assert after["chunks"] < before["chunks"]
        assert await count("chunks") == before["chunks"]
        assert await count("generations") == 1


@pytest.mark.parametrize("other", ["--dry-run", "--full"])
def test_watching_excludes_a_dry_run_and_a_full_one(other: str) -> None:
    done = protostar("reindex", "--watch", other)
    assert (done.returncode, done.stdout) == (2, "")


class Results:
    """The lines that a command prints, as they come."""

    def __init__(self, output: Any) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(output,), daemon=True).start()

    def _read(self, output: Iterator[str]) -> None:
        for line in output:
            self._lines.put(line)

    def until(self, wanted: Any) -> bool:
        """Read on until a result is as wanted; raises `queue.Empty` if none comes."""
        while not wanted(json.loads(self._lines.get(timeout=DEADLINE_S))):
            pass
        return True


@contextmanager
def watching(**variables: str) -> Iterator[Results]:
    process = subprocess.Popen(
        [sys.executable, "-m", "protostar", "reindex", "--watch", "--json"],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Results(process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()

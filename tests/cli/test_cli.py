"""The `protostar` command as a user runs it: a process, its two outputs and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from protostar_client import keys
from redis.asyncio import Redis

from stack.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
USER = "6f1c2f6e-5a0f-4b7e-9d1c-0d4f9a1b2c3d"
NOWHERE = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgres://127.0.0.1:1/none"}


def environment(**variables: str) -> dict[str, str]:
    """This environment with these variables alone of those that Protostar reads."""
    read = ("PROTOSTAR_", "OPENAI_", "OPENROUTER_", "REDIS_URL", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(read)}
    return {**kept, **NOWHERE, **variables}


def protostar(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "protostar", *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_fails(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("protostar: ")
    for word in words:
        assert word in line


# Wrong use, and what can't work


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("ask",),
        ("ask", "--user", "me", "hi"),
        ("search",),
        ("search", " "),
        ("chunks",),
        ("reindex", "--fast"),
    ],
)
def test_wrong_use_exits_with_2_and_writes_no_data(arguments: tuple[str, ...]) -> None:
    done = protostar(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: protostar" in done.stderr


def test_help_names_every_command() -> None:
    done = protostar("--help")
    assert done.returncode == 0
    for command in ("migrate", "reindex", "search", "chunks", "ask", "chat", "enqueue", "watch", "jobs", "status"):
        assert f"\n  {command} " in done.stdout
    assert "Exit codes: 0 done; 1 failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (("ask", "hi"), {}, ("Redis can't be reached", "REDIS_URL")),
        (("ask", "hi"), {"REDIS_URL": "localhost"}, ("REDIS_URL",)),
        (("migrate",), {}, ("PostgreSQL", "DATABASE_URL")),
        (("migrate",), {"DATABASE_URL": "mysql://x"}, ("DATABASE_URL", "mysql")),
        (("search", "hi"), {}, ("PostgreSQL", "DATABASE_URL")),
        (("reindex",), {}, ("PostgreSQL", "DATABASE_URL")),
        (("chunks", "none.md"), {}, ("none.md", "No such file")),
        (("chunks", "README.md"), {"PROTOSTAR_CHUNK_OVERLAP": "399"}, ("PROTOSTAR_CHUNK_OVERLAP",)),
    ],
)
def test_what_cant_work_exits_with_1_and_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], words: tuple[str, ...]
) -> None:
    assert_fails(protostar(*arguments, **variables), *words)


# Chunks


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    file = tmp_path / "guide.md"
    paragraphs = "\n\n".join(f"{number}번째 문단. 큐에 넣은 작업은 사라지지 않는다." for number in range(200))
    file.write_text(f"# 안내\n\n{paragraphs}\n", encoding="utf-8")
    return file


def test_chunks_prints_a_json_object_a_chunk(guide: Path) -> None:
    done = protostar("chunks", guide, "--json", PROTOSTAR_CHUNK_TOKENS="64", PROTOSTAR_CHUNK_OVERLAP="8")
    assert (done.returncode, done.stderr) == (0, "")
    chunks = [json.loads(line) for line in done.stdout.splitlines()]
    text = guide.read_text(encoding="utf-8")
    assert [chunk["position"] for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert set(chunk) == {"position", "heading", "text", "start_offset", "end_offset", "token_count"}
        assert chunk["text"] == text[chunk["start_offset"] : chunk["end_offset"]]
        assert chunk["token_count"] <= 64


def test_a_closed_pipe_ends_a_command_without_a_traceback(guide: Path) -> None:
    reader, writer = os.pipe()
    command = subprocess.Popen(
        [sys.executable, "-m", "protostar", "chunks", guide, "--json"],
        cwd=ROOT,
        env=environment(PROTOSTAR_CHUNK_TOKENS="16", PROTOSTAR_CHUNK_OVERLAP="0"),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    os.close(reader)
    _, errors = command.communicate(timeout=60)
    assert errors == ""


def test_a_full_disk_is_told_in_one_line(guide: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "protostar", "chunks", guide, "--json"],
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["protostar: can't write to standard output: No space left on device"]


# Asking: the worker's side is played by its protocol


class Asked:
    """A running `protostar ask` and the job that it enqueued."""

    def __init__(self, process: Process, redis: Redis, job_id: str) -> None:
        self.process = process
        self.redis = redis
        self.job_id = job_id
        self._seq: Counter[int] = Counter()

    async def say(self, kind: str, *, attempt: int = 1, **fields: Any) -> None:
        self._seq[attempt] += 1
        seq = self._seq[attempt]
        data = {"v": 1, "type": kind, "job_id": self.job_id, "attempt": attempt, "seq": seq, **fields}
        await self.redis.xadd(keys.events(self.job_id), {"data": json.dumps(data)}, id=f"{attempt}-{seq}")

    async def read(self, text: str) -> None:
        """Wait for exactly this text on standard output."""
        assert self.process.stdout is not None
        wanted = text.encode()
        assert await asyncio.wait_for(self.process.stdout.readexactly(len(wanted)), 20) == wanted

    async def end(self) -> tuple[int | None, str, str]:
        out, errors = await asyncio.wait_for(self.process.communicate(), 20)
        return self.process.returncode, out.decode(), errors.decode()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:
        yield connection


async def ask(redis_url: str, redis: Redis, *arguments: str) -> Asked:
    async with redis.pubsub() as channel:
        await channel.subscribe(keys.WAKE)
        await channel.get_message(timeout=5)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "protostar", "ask", *arguments),
            cwd=ROOT,
            env=environment(REDIS_URL=redis_url),
            stdout=PIPE,
            stderr=PIPE,
        )
        message = await channel.get_message(timeout=20)
    assert message is not None
    return Asked(process, redis, message["data"].decode())


async def test_ask_streams_the_answer_and_keeps_the_rest_off_standard_output(redis_url: str, redis: Redis) -> None:
    asked = await ask(redis_url, redis, "--user", USER, "--session", "s", "--mode", "general", "질문")
    payload = json.loads(await redis.get(keys.job(asked.job_id)))
    expected = {"user_uuid": USER, "session_id": "s", "content": "질문", "mode": "general", "context": ""}
    assert payload["k"] == expected
    source = {"chunk_id": 1, "document": "guide.md", "heading": "안내", "score": 2.5}
    await asked.say("start", session_id="s", model="m")
    await asked.say("sources", sources=[source])
    await asked.say("delta", text="안녕")
    await asked.read("안녕")
    await asked.say("delta", text="하세요")
    await asked.say("done", message_id=1, finish_reason="stop")
    code, out, errors = await asked.end()
    assert (code, out) == (0, "하세요\n")
    assert errors == "[1] guide.md > 안내 (2.50)\n"


async def test_ask_without_a_session_names_the_new_one(redis_url: str, redis: Redis) -> None:
    asked = await ask(redis_url, redis, "질문")
    session_id = json.loads(await redis.get(keys.job(asked.job_id)))["k"]["session_id"]
    await asked.say("done", message_id=1, finish_reason="stop")
    assert await asked.end() == (0, "", f"to go on in this session: --session {session_id}\n")


async def test_ask_says_that_an_answer_starts_again(redis_url: str, redis: Redis) -> None:
    asked = await ask(redis_url, redis, "--session", "s", "질문")
    await asked.say("delta", text="void")
    await asked.say("restart", attempt=2, reason="lease_expired")
    await asked.say("delta", attempt=2, text="good\n")
    await asked.say("done", attempt=2, message_id=1, finish_reason="stop")
    code, out, errors = await asked.end()
    assert (code, out) == (0, "void\ngood\n")
    assert "starts again (lease_expired)" in errors


async def test_ask_fails_with_the_jobs_error(redis_url: str, redis: Redis) -> None:
    asked = await ask(redis_url, redis, "--session", "s", "질문")
    await asked.say("delta", text="half")
    await asked.say("error", code="stalled", message="no token for 30 s")
    assert await asked.end() == (1, "half\n", "protostar: stalled: no token for 30 s\n")


async def test_ctrl_c_cancels_the_job(redis_url: str, redis: Redis) -> None:
    asked = await ask(redis_url, redis, "--session", "s", "질문")
    await asked.say("delta", text="half")
    await asked.read("half")
    async with redis.pubsub() as channel:
        await channel.subscribe(keys.WAKE)
        await channel.get_message(timeout=5)
        asked.process.send_signal(signal.SIGINT)
        message = await channel.get_message(timeout=20)
    assert message is not None
    assert message["data"].decode() == f"abort:{asked.job_id}"
    await redis.flushall()  # the job has ended
    code, _, errors = await asked.end()
    assert (code, errors) == (130, "")


# Database and corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "가이드").mkdir(parents=True)
    (folder / "가이드" / "redis.md").write_text("# 레디스\n\n추가 전용 파일은 매초 디스크에 쓴다.\n", "utf-8")
    (folder / "queues.md").write_text("# Queues\n\nA lease expires when its worker dies.\n", "utf-8")
    return folder


def test_migrate_prints_what_it_applied_then_nothing(postgres_server: Postgres) -> None:
    postgres_server.create_database("empty_for_cli")
    try:
        url = postgres_server.url("empty_for_cli")
        first, again = protostar("migrate", DATABASE_URL=url), protostar("migrate", DATABASE_URL=url)
    finally:
        postgres_server.drop_database("empty_for_cli")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert first.stdout.splitlines()[0] == "0001_initial"
    assert (again.stdout, again.stderr) == ("", "the schema is current\n")


def test_an_unmigrated_database_is_told(postgres_server: Postgres, corpus: Path) -> None:
    postgres_server.create_database("unmigrated_for_cli")
    try:
        url = postgres_server.url("unmigrated_for_cli")
        assert_fails(protostar("search", "hi", DATABASE_URL=url), "protostar migrate")
        assert_fails(protostar("reindex", DATABASE_URL=url, PROTOSTAR_CORPUS_DIR=str(corpus)), "protostar migrate")
    finally:
        postgres_server.drop_database("unmigrated_for_cli")


def test_a_missing_and_an_empty_corpus_folder_are_told(database_url: str, tmp_path: Path) -> None:
    missing = protostar("reindex", DATABASE_URL=database_url, PROTOSTAR_CORPUS_DIR=str(tmp_path / "none"))
    assert_fails(missing, "does not exist", "PROTOSTAR_CORPUS_DIR")
    (tmp_path / "empty").mkdir()
    empty = protostar("reindex", DATABASE_URL=database_url, PROTOSTAR_CORPUS_DIR=str(tmp_path / "empty"))
    assert_fails(empty, "is empty")


def test_reindex_then_search(database_url: str, corpus: Path, tmp_path: Path) -> None:
    variables = {"DATABASE_URL": database_url, "PROTOSTAR_CORPUS_DIR": str(corpus)}
    done = protostar("reindex", "--json", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    assert counts.pop("seconds") >= 0
    assert counts == {"added": 2, "changed": 0, "removed": 0, "unchanged": 0, "failed": 0, "chunks": 2}
    assert "2 unchanged" in protostar("reindex", **variables).stdout

    questions = tmp_path / "questions.jsonl"
    lines = [{"id": 1, "text": "추가 전용 파일은 언제 쓰나?"}, {"id": "b", "text": "When does a lease expire?"}]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    done = protostar("search", "--file", questions, "--json", "--top", "1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["id"], second["id"]) == (1, "b")
    (passage,) = first["results"]
    fields = {"chunk_id", "document", "heading", "score", "start_offset", "end_offset"}
    assert (set(passage), passage["document"]) == (fields, "가이드/redis.md")
    assert second["results"][0]["document"] == "queues.md"

    readable = protostar("search", "When will the leases expire?", **variables)
    assert readable.stdout.startswith("1. queues.md > Queues (")
    assert readable.stdout.splitlines()[1] == "found by: leases, expire?"
    why = protostar("search", "파일은 언제 지우나?", "--json", "--why", "--no-floor", **variables)
    assert json.loads(why.stdout)["results"][0]["why"] == ["파일은"]
    nothing = protostar("search", "zebra xylophone", **variables)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing found" in nothing.stderr


@pytest.mark.parametrize("line", ["no json", '{"id": 1}', "[]", '{"id": 1, "text": 2}'])
def test_a_bad_line_of_questions_is_named(tmp_path: Path, line: str) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": 1, "text": "good"}\n' + line + "\n", "utf-8")
    assert_fails(protostar("search", "--file", questions), "questions.jsonl line 2")

"""`protostar enqueue`, `watch`, `cancel`, `history`, `jobs`, `status` and `chat`, as a user or a script runs them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import pytest
from protostar_client import keys
from redis import Redis
from typer.testing import CliRunner

from protostar.cli.app import app
from protostar.cli.support.errors import CommandError
from tests.cli.test_cli import NOWHERE, USER
from tests.support.stack_under_test import ROOT, Stack, clean_environment, until

FIELDS = set("job_id state function mode user_uuid session_id age_s due_s attempt owner waits_for".split())  # noqa: SIM905
PARTS = ["workers", "queue", "answers", "models", "outbox", "index"]
FAILS = {"status": 400, "error": {"message": "no"}, "times": None}


def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """What a command does, in this process: its exit code and its two outputs."""
    done = CliRunner().invoke(app, arguments, env=NOWHERE | variables, prog_name="protostar")
    if isinstance(done.exception, CommandError):
        return 1, done.stdout, f"{done.stderr}protostar: {done.exception}\n"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


async def run_in(stack: Stack, *arguments: str) -> tuple[int, str, str]:
    return await asyncio.to_thread(run, *arguments, **stack.environment)


async def lines_in(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    code, printed, said = await run_in(stack, *arguments, "--json")
    assert (code, said) == (0, "")
    return [json.loads(line) for line in printed.splitlines()]


async def start(stack: Stack, *arguments: str, stdin: int | None = None) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "protostar", *arguments),
        cwd=ROOT,
        env=clean_environment() | stack.environment,
        stdin=stdin,
        stdout=PIPE,
        stderr=PIPE,
    )


async def held(stack: Stack, gate: str, content: str, *, pieces: list[str]) -> tuple[str, str, str]:
    """A running turn of a new session that has said its first piece and waits at a gate: user, session, job."""
    user, session = str(uuid4()), f"s-{uuid4().hex[:6]}"
    stack.model.script({"contains": content, "pieces": pieces, "after": 1, "hold": gate})
    job = await stack.ask(content, user=user, session=session)
    await stack.until_said(job.job_id, pieces[0])
    return user, session, job.job_id


# Wrong use


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", ""),
        ("ask", "--session", "", "hi"),
        ("ask", "--session", "s" * 129, "hi"),
        ("chat", "--session", ""),
        ("enqueue", " "),
        ("enqueue", "--job-id", "", "hi"),
        ("enqueue", "--on-busy", "wait", "hi"),
        ("watch", ""),
        ("watch", "job", "--last-id", "17"),
        ("cancel", "\n"),
        ("history", ""),
        ("history", "s", "--limit", "0"),
        ("jobs", "--state", "asleep"),
        ("status", "--every", "0"),
    ],
)
def test_what_no_worker_would_take_is_wrong_use(arguments: tuple[str, ...]) -> None:
    code, printed, said = run(*arguments)
    assert (code, printed) == (2, "")
    assert "Usage: protostar" in said


@pytest.mark.parametrize(
    "arguments",
    [("enqueue", "hi"), ("cancel", "j"), ("jobs",), ("retry", "j"), ("status",), ("history", "s")],
)
def test_a_server_that_is_away_is_told_in_one_line(arguments: tuple[str, ...]) -> None:
    code, printed, said = run(*arguments)
    assert (code, printed) == (1, "")
    [line] = said.splitlines()
    assert ("DATABASE_URL" if arguments[0] == "history" else "REDIS_URL") in line


def test_a_job_that_never_was_is_told(redis_url: str) -> None:
    for command in ("cancel", "retry"):
        code, printed, said = run(command, "never-was", REDIS_URL=redis_url)
        assert (code, printed) == (1, "")
        assert "never-was" in said


# Without a worker: what a producer and an operator see of the queue


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as connection:
        yield connection


def test_enqueue_prints_the_job_and_the_same_id_is_the_same_turn(redis_url: str, redis: Redis) -> None:
    named = ("--user", USER, "--session", "s", "--mode", "page_context", "--context", str(ROOT / "LICENSE"))
    assert run("enqueue", *named, "--job-id", "mine", "질문", REDIS_URL=redis_url) == (0, "mine\n", "")
    payload = json.loads(cast(bytes, redis.get(keys.job("mine"))))
    assert payload["k"]["context"] == (ROOT / "LICENSE").read_text()
    _, again, _ = run("enqueue", *named, "--job-id", "mine", "--json", "질문", REDIS_URL=redis_url)
    assert json.loads(again) == {"job_id": "mine", "created": False, "user_uuid": USER, "session_id": "s"}
    assert redis.zcard(keys.QUEUE) == 1
    code, printed, said = run("enqueue", *named, "--on-busy", "reject", "x", REDIS_URL=redis_url)
    assert (code, printed) == (1, "")
    assert "busy with job 'mine'" in said


def test_jobs_tells_what_is_queued_and_nothing_of_what_is_not(redis_url: str, redis: Redis) -> None:
    for state in ("queued", "running", "dead"):
        code, printed, said = run("jobs", "--state", state, REDIS_URL=redis_url)
        assert (code, printed) == (0, "")
        assert said.startswith("no job ")
    run("enqueue", "--session", "세션", "--job-id", "first", "질문", REDIS_URL=redis_url)
    run("enqueue", "--user", USER, "--mode", "page_context", "--job-id", "second", "질문", REDIS_URL=redis_url)
    redis.zadd(keys.QUEUE, {b"\xff\x1b[2Jnot text": 1})
    _, printed, _ = run("jobs", "--json", REDIS_URL=redis_url)
    strange, first, second = (json.loads(line) for line in printed.splitlines())
    assert first.keys() == FIELDS
    assert (first["job_id"], first["state"], first["mode"], first["session_id"]) == (
        "first",
        "ready",
        "general",
        "세션",
    )
    assert (second["job_id"], second["mode"], second["user_uuid"]) == ("second", "page_context", USER)
    assert 0 <= second["age_s"] < 600
    assert (strange["function"], strange["owner"]) == ("", "")
    _, shown, _ = run("jobs", "--state", "queued", REDIS_URL=redis_url)
    assert [line.split()[0] for line in shown.splitlines()][-2:] == ["first", "second"]
    assert "\x1b" not in shown
    assert run("jobs", "--state", "running", "--json", REDIS_URL=redis_url) == (0, "", "")


def fill(redis: Redis, jobs: int) -> None:
    payload: dict[str, Any] = {"t": None, "f": "generate_chat", "a": [], "et": 1_700_000_000_000}
    with redis.pipeline(transaction=False) as pipe:
        for number in range(jobs):
            arguments = {"user_uuid": USER, "session_id": f"s{number}", "content": "질문"}
            pipe.set(keys.job(f"job-{number}"), json.dumps(payload | {"k": arguments}))
            pipe.zadd(keys.QUEUE, {f"job-{number}": 1_700_000_000_000 + number})
        pipe.execute()


def calls_of(redis: Redis, redis_url: str, *arguments: str) -> dict[str, int]:
    """The commands that a command sends to Redis, those inside scripts among them."""
    redis.config_resetstat()
    run(*arguments, REDIS_URL=redis_url)
    stats = cast(dict[str, dict[str, int]], redis.info("commandstats"))
    return {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}


def test_what_status_asks_of_redis_does_not_grow_with_the_queue(redis_url: str, redis: Redis) -> None:
    few = calls_of(redis, redis_url, "status")
    fill(redis, 10_000)
    many = calls_of(redis, redis_url, "status")
    assert many == few
    assert not {"keys", "scan"} & many.keys()


def test_ten_thousand_jobs_are_listed_by_the_page(redis_url: str, redis: Redis) -> None:
    fill(redis, 10_000)
    calls = calls_of(redis, redis_url, "jobs", "--json")
    assert (calls["zrange"], calls["evalsha"]) == (1, 100)
    assert not {"keys", "scan"} & calls.keys()
    running = calls_of(redis, redis_url, "jobs", "--state", "running")
    assert not {"evalsha", "zrange", "keys", "scan"} & running.keys()


def test_a_reader_that_leaves_ends_the_list_quietly(redis_url: str, redis: Redis) -> None:
    fill(redis, 3000)
    command = subprocess.Popen(
        [sys.executable, "-m", "protostar", "jobs"],
        cwd=ROOT,
        env=clean_environment() | {"REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stdout is not None
        assert command.stderr is not None
        assert command.stdout.readline().startswith("job ")
        command.stdout.close()
        assert command.stderr.read() == ""


def test_a_status_without_postgres_tells_the_rest_and_fails(redis_url: str, redis: Redis) -> None:
    fill(redis, 3)
    code, printed, said = run("status", "--json", REDIS_URL=redis_url)
    told = json.loads(printed)
    assert (told["store"], told["queue"]["ready"], told["workers"]) == (None, 3, [])
    [line] = said.splitlines()
    assert code == 1
    assert "DATABASE_URL" in line
    _, shown, _ = run("status", REDIS_URL=redis_url)
    assert shown.startswith("workers  none\n")
    assert "3 in all: 3 ready (the oldest for " in shown
    assert "\x1b" not in shown


# Beside a worker


async def test_watch_prints_an_answer_again_and_from_the_middle(shared_stack: Stack) -> None:
    stack = shared_stack
    _, _, job_id = await held(stack, "twice", "인사해 줘", pieces=["안녕", "하세요"])
    stack.model.release("twice")
    assert (await stack.events(job_id))[-1]["type"] == "done"
    assert await stack.output("watch", job_id) == "안녕하세요\n"
    events = [json.loads(line) for line in (await stack.output("watch", job_id, "--json")).splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("start", "done")
    first = next(event for event in events if event["type"] == "delta")
    assert await stack.output("watch", job_id, "--last-id", first["id"]) == "하세요\n"


async def test_watch_of_a_failed_job_fails_also_after_its_ending(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script(FAILS)
    job = await stack.ask("실패할 질문")
    events = await stack.events(job.job_id)
    await stack.result(job.job_id)
    for last_id in ("0-0", f"{events[-1]['attempt']}-{events[-1]['seq']}"):
        code, printed, said = await stack.run("watch", job.job_id, "--last-id", last_id)
        assert (code, printed) == (1, "")
        [line] = said.splitlines()
        assert line.startswith(f"protostar: {events[-1]['code']}: ")


async def test_ctrl_c_in_watch_leaves_the_job_alone_and_says_how_to_go_on(shared_stack: Stack) -> None:
    stack = shared_stack
    _, _, job_id = await held(stack, "watch", "길게 답해 줘", pieces=["처음 ", "끝"])
    watching = await start(stack, "watch", job_id)
    assert watching.stdout is not None
    assert await asyncio.wait_for(watching.stdout.readexactly(len("처음 ".encode())), 30) == "처음 ".encode()
    watching.send_signal(signal.SIGINT)
    printed, said = await asyncio.wait_for(watching.communicate(), 30)
    assert (watching.returncode, printed) == (130, b"\n")
    assert said.decode().startswith(f"to go on: protostar watch {job_id} --last-id 1-")
    stack.model.release("watch")
    assert (await stack.events(job_id))[-1]["type"] == "done"


async def test_running_and_waiting_turns_are_told_and_cancelled(shared_stack: Stack) -> None:
    stack = shared_stack
    user, session, running = await held(stack, "jobs", "오래 걸리는 질문", pieces=["일부", "나머지"])
    waiting = (await stack.ask("다음 질문", user=user, session=session)).job_id

    async def waits() -> object:
        record: Any = stack.redis.hget(keys.RECORD_PREFIX + waiting, "state")
        return await record == b"waiting"

    await until(waits, "the second turn waits", stack.logs)
    [told] = [job for job in await lines_in(stack, "jobs") if job["job_id"] == waiting]
    assert (told["state"], told["waits_for"], told["attempt"], told["owner"]) == ("waiting", running, 0, "")
    [told] = await lines_in(stack, "jobs", "--state", "running")
    [owner] = [name.decode() for name in await stack.owners()]
    assert (told["job_id"], told["state"], told["attempt"], told["owner"]) == (running, "running", 1, owner)
    assert (told["session_id"], told["user_uuid"]) == (session, user)
    _, queued, _ = await run_in(stack, "jobs", "--state", "queued")
    assert f"after {running}" in queued
    assert running not in [line.split()[0] for line in queued.splitlines()]
    for job_id in (waiting, running):
        assert await run_in(stack, "cancel", job_id) == (0, "", f"job {job_id} is cancelled\n")
    code, printed, said = await stack.run("watch", running)
    assert (code, printed, said) == (1, "일부\n", "protostar: the job was cancelled\n")

    _, printed, _ = await run_in(stack, "history", session, "--user", user)
    assert printed.startswith("--- user · ")
    assert printed.endswith(f"· {running}\n일부\n\n")
    [newest] = await lines_in(stack, "history", session, "--user", user, "--limit", "1")
    assert (newest["content"], newest["status"]) == ("일부", "cancelled")
    code, printed, said = await run_in(stack, "history", session)
    assert (code, printed) == (0, "")
    assert "no such session" in said


async def test_status_tells_of_the_worker_and_what_it_does(shared_stack: Stack) -> None:
    stack = shared_stack
    _, _, running = await held(stack, "status", "자세히 답해 줘", pieces=["일부", "나머지"])

    async def beats() -> object:
        [status] = await lines_in(stack, "status")
        return status if status["running_turns"] else None

    status = await until(beats, "the heartbeat tells of the turn", stack.logs)
    [worker] = status["workers"]
    assert (worker["owner"].encode() in await stack.owners(), worker["is_alive"], worker["running"]) == (True, True, 1)
    assert (worker["beat"]["busy"]["chat"], worker["beat"]["slots"]["chat"]) == (1, 100)
    assert (status["running_turns"], status["queue"]["running"], status["queue"]["waiting"]) == (1, 1, 0)
    assert [(model["model"], model["is_down"]) for model in status["models"]] == [("test-model", False)]
    assert (status["store"]["index"]["documents"], status["store"]["index"]["last_error"]) == (1, None)
    stack.model.release("status")
    await stack.events(running)
    assert await run_in(stack, "cancel", running) == (
        1,
        "",
        f"protostar: job {running} was not cancelled: it had ended\n",
    )
    _, shown, _ = await run_in(stack, "status")
    assert [line.split()[0] for line in shown.splitlines() if not line.startswith(" ")] == PARTS


async def test_a_dead_job_is_listed_with_its_reason_and_put_back(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"status": 401, "error": {"message": "no"}, "times": None})
    job = await stack.ask("질문")
    await stack.result(job.job_id)
    [letter] = [dead for dead in await lines_in(stack, "jobs", "--state", "dead") if dead["job_id"] == job.job_id]
    assert (letter["state"], letter["code"], letter["function"]) == ("dead", "provider_error", "generate_chat")
    _, shown, _ = await run_in(stack, "jobs", "--state", "dead")
    [line] = [line for line in shown.splitlines() if line.startswith(job.job_id)]
    assert "provider_error" in line
    stack.model.reset()
    assert (await run_in(stack, "retry", job.job_id))[0] == 0
    assert (await stack.events(job.job_id))[-1]["type"] == "done"
    assert (await run_in(stack, "retry", job.job_id))[0] == 1


async def test_chat_answers_line_after_line_in_one_session(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"contains": "하나", "pieces": ["1번 답"]}, FAILS | {"contains": "둘"}, {"pieces": ["3번 답"]})
    user, session = str(uuid4()), f"s-{uuid4().hex[:6]}"
    talking = await start(stack, "chat", "--user", user, "--session", session, stdin=PIPE)
    printed, said = await asyncio.wait_for(talking.communicate("하나\n\n둘\n셋\n".encode()), 60)
    assert printed.decode() == "1번 답\n3번 답\n"
    assert talking.returncode == 1, "one of the questions failed"
    assert "not every question was answered" in said.decode().splitlines()[-1]
    history = await lines_in(stack, "history", session, "--user", user)
    assert [message["content"] for message in history if message["role"] == "user"] == ["하나", "둘", "셋"]


async def test_status_on_a_terminal_goes_on_until_ctrl_c(shared_stack: Stack) -> None:
    stack = shared_stack
    shown, terminal = pty.openpty()
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "protostar", "status", "--every", "0.1"),
        cwd=ROOT,
        env=clean_environment() | stack.environment | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200"},
        stdout=terminal,
        stderr=PIPE,
    )
    os.close(terminal)
    seen = ""
    while seen.count("workers") < 3:
        seen += (await asyncio.wait_for(asyncio.to_thread(os.read, shown, 65536), 30)).decode(errors="replace")
    watching.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(watching.communicate(), 30)
    os.close(shown)
    assert (watching.returncode, said) == (130, b"")
    assert "\x1b[3" not in seen, "a colour"


async def test_ctrl_c_in_chat_cancels_the_answer_and_goes_on(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"contains": "길게", "pieces": ["처음", "끝"], "after": 1, "hold": "chat"})
    talking = await start(stack, "chat", stdin=PIPE)
    assert talking.stdin is not None
    assert talking.stdout is not None
    talking.stdin.write("길게 답해 줘\n".encode())
    assert await asyncio.wait_for(talking.stdout.readexactly(len("처음".encode())), 30) == "처음".encode()
    talking.send_signal(signal.SIGINT)
    stack.model.script({"contains": "짧게", "pieces": ["짧은 답"]})
    printed, said = await asyncio.wait_for(talking.communicate("짧게\n".encode()), 30)
    assert (talking.returncode, printed.decode()) == (0, "\n짧은 답\n")
    assert said.decode().splitlines()[0] == "the answer was cancelled"


async def test_a_job_that_is_nobodys_is_listed_and_cancelled(shared_stack: Stack) -> None:
    stack = shared_stack
    job_id = f"later-{uuid4().hex[:6]}"
    await stack.redis.enqueue_job("reindex_corpus", _job_id=job_id, _defer_by=3600)
    [told] = [job for job in await lines_in(stack, "jobs", "--state", "queued") if job["job_id"] == job_id]
    assert (told["state"], told["function"], told["user_uuid"]) == ("deferred", "reindex_corpus", "")
    assert 0 < told["due_s"] <= 3600
    code, printed, said = await stack.run("watch", job_id, "--last-id", "1-1")
    assert (code, printed) == (1, "")
    assert "is not a question" in said
    assert await run_in(stack, "cancel", job_id) == (0, "", f"job {job_id} is cancelled\n")
    assert await run_in(stack, "cancel", job_id) == (
        1,
        "",
        f"protostar: job {job_id} was not cancelled: it had ended\n",
    )

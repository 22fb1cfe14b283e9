"""The stack under test: a worker with its servers, seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
from arq.connections import ArqRedis
from arq.jobs import Job
from protostar_client.redis_connection.pool import async_pool

from stack.processes import Process
from tests.support.model_control import ModelControl

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.01
LAST_PAUSE_S: Final = 0.05
"""A condition that takes long is checked less often: each check costs CPU that the awaited process needs."""
ENDINGS: Final = ("done", "error", "cancelled")


def dump(value: Any) -> bytes:
    """Return a connection of a producer that knows only ARQ and JSON."""
    return json.dumps(value).encode()


class Stack:
    """Redis, PostgreSQL, a model server and a corpus folder; starts workers as a user does."""

    def __init__(self, redis_url: str, database_url: str, model: ModelControl, folder: Path, corpus: Path) -> None:
        self.redis_url = redis_url
        self.database_url = database_url
        self.model = model
        self.corpus = corpus
        self.workers: list[Process] = []
        self.redis = ArqRedis(async_pool(redis_url), job_serializer=dump, job_deserializer=json.loads)
        self._folder = folder
        self.environment = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "sk-test-secret",
            "PROTOSTAR_CHAT_MODEL": "test-model",
            "PROTOSTAR_CORPUS_DIR": str(corpus),
        }

    def launch(self, *arguments: str, settings: str = "arq_settings.WorkerSettings", **environment: str) -> Process:
        """Start a worker process without waiting until it serves."""
        worker = Process(
            [sys.executable, "-m", "arq", settings, *arguments],
            log=self._folder / f"worker-{len(self.workers)}.log",
            env=clean_environment() | self.environment | environment,
            cwd=ROOT,
        )
        self.workers.append(worker)
        return worker

    async def start_worker(self, *, settings: str = "arq_settings.WorkerSettings", **environment: str) -> Process:
        """Start a worker and wait until it serves."""
        before = await self.owners()
        worker = self.launch(settings=settings, **environment)

        async def serves() -> bool:
            assert worker.running, worker.last_lines(30)
            return bool(await self.owners() - before)

        await until(serves, "the worker serves")
        return worker

    async def owners(self) -> set[bytes]:
        """The names of the workers that Redis knows."""
        members: Any = await self.redis.smembers("protostar:owners")  # type: ignore[misc]
        return set(members)

    async def close(self) -> None:
        """Kill every worker and close the connection to Redis."""
        self.model.reset()
        for worker in self.workers:
            if worker.running:
                worker.send(signal.SIGCONT)
                worker.kill()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close the connection to Redis."""
        await self.redis.aclose(close_connection_pool=True)

    async def ask(
        self,
        content: str,
        *,
        user: str | None = None,
        session: str = "s",
        job_id: str | None = None,
        **more: Any,
    ) -> Job:
        """Enqueue a question with stock ARQ."""
        job = await self.redis.enqueue_job(
            "generate_chat",
            _job_id=job_id,
            user_uuid=user or str(uuid4()),
            session_id=session,
            content=content,
            **more,
        )
        assert job is not None
        return job

    async def events(self, job_id: str, last_id: str = "0-0") -> list[dict[str, Any]]:
        """The events after `last_id`, up to the ending."""
        return [event async for event in self.follow(job_id, last_id)]

    async def follow(self, job_id: str, last_id: str = "0-0") -> AsyncIterator[dict[str, Any]]:
        """Yield events as they arrive, up to the terminal event; the test fails if that does not come."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < deadline, f"{job_id} did not end: {self.logs()}"
            reply = await self.redis.xread({f"chat:events:{job_id}": last_id}, block=200)
            for entry_id, fields in reply[0][1] if reply else ():
                last_id = entry_id.decode()
                event = json.loads(fields[b"data"])
                assert last_id == f"{event['attempt']}-{event['seq']}"
                yield event
                if event["type"] in ENDINGS:
                    return

    async def until_said(self, job_id: str, text: str) -> None:
        """Wait until the log of a running turn holds a text: only then has its worker read it from the model."""
        said = ""
        async for event in self.follow(job_id):
            assert event["type"] not in ENDINGS, event
            said += event.get("text") or ""
            if text in said:
                return

    async def result(self, job_id: str) -> dict[str, Any]:
        """ARQ's record of a finished job."""

        async def there() -> object:
            return await self.redis.get(f"arq:result:{job_id}")

        record: dict[str, Any] = json.loads(await until(there, f"a result of {job_id}", self.logs))
        return record

    async def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        """Rows of the database."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def messages(self, job_id: str) -> list[dict[str, Any]]:
        """The messages of a turn, the question first."""
        return await self.rows("SELECT * FROM messages WHERE job_id = $1 ORDER BY id", job_id)

    async def protostar(self, *arguments: str) -> int:
        """Run the `protostar` command; returns its exit code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "protostar", *arguments, cwd=ROOT, env=clean_environment() | self.environment
        )
        return await process.wait()

    async def output(self, *arguments: str) -> str:
        """Return the output of the `protostar` command; the test fails if the command does."""
        code, printed, said = await self.run(*arguments)
        assert code == 0, said
        return printed

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the `protostar` command; returns its exit code and its two outputs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "protostar", *arguments),
            cwd=ROOT,
            env=clean_environment() | self.environment,
            stdout=PIPE,
            stderr=PIPE,
        )
        printed, said = await process.communicate()
        return process.returncode or 0, printed.decode(), said.decode()

    def logs(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(worker.last_lines(25) for worker in self.workers)


async def until(
    condition: Callable[[], Awaitable[Any]],
    what: str,
    detail: Callable[[], str] = lambda: "",
    *,
    timeout_s: float = DEADLINE_S,
) -> Any:
    """Wait until a condition holds and return its value; the test fails if it does not."""
    deadline, pause_s = time.monotonic() + timeout_s, FIRST_PAUSE_S
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{detail()}"
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, LAST_PAUSE_S)
    return value


def text_of(events: list[dict[str, Any]]) -> str:
    """Join the text of the last attempt."""
    attempt = events[-1]["attempt"]
    return "".join(e["text"] for e in events if e["type"] == "delta" and e["attempt"] == attempt)


def check_order(events: list[dict[str, Any]]) -> None:
    """Check that attempts rise, seq has no gap, and exactly one terminal event comes last."""
    last = (0, 0)
    for event in events:
        attempt, seq = event["attempt"], event["seq"]
        assert (attempt == last[0] and seq == last[1] + 1) or (attempt > last[0] and seq == 1)
        if seq == 1:
            assert event["type"] == ("start" if attempt == 1 else "restart") or event["type"] in ENDINGS
        last = (attempt, seq)
    assert [e["type"] in ENDINGS for e in events].count(True) == 1
    assert events[-1]["type"] in ENDINGS


def clean_environment() -> dict[str, str]:
    """Return this environment without the variables that Protostar reads."""
    dropped = ("OPENAI_", "OPENROUTER_", "PROTOSTAR_", "REDIS_URL", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

"""Everything a worker needs, made for one run: Redis, PostgreSQL, the lean model server, and workers on them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
import redis
from protostar_client import keys

from models.migrate import migrate
from stack.places import server_account, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process, wait_until
from stack.redis import Redis

ROOT: Final = Path(__file__).resolve().parents[2]
USER: Final = UUID(int=1)
START_S: Final = 60.0
_DATABASE: Final = "streaming"
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_DOCUMENT: Final = "# Delivery\n\nWhen a worker dies, another one takes its jobs over. The lease is 15 seconds.\n"


@dataclass(slots=True)
class Stage:
    """What all measurements of a run share; made by `on_stage`."""

    redis_url: str
    database_url: str
    base_url: str
    folder: Path
    redis: redis.Redis
    server: Redis
    workers: list[Process] = field(default_factory=list)
    _started: int = 0

    def start_worker(self, **environment: str) -> Process:
        """One of our workers, serving."""
        before = self._owners()
        worker = self.launch(**environment)
        try:
            wait_until(lambda: bool(self._owners() - before), timeout_s=START_S, what="the worker serves")
        except Exception as error:
            error.add_note(worker.last_lines(20))
            raise
        return worker

    def launch(self, **environment: str) -> Process:
        """One of our workers, not yet known to serve."""
        settings = {
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url,
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_KEY": "sk-none",
            "PROTOSTAR_CHAT_MODEL": "m",
            "PROTOSTAR_CORPUS_DIR": str(self.folder / "corpus"),
        }
        return self._process(["arq", "arq_settings.WorkerSettings"], settings | environment)

    def start_older_loop(self) -> Process:
        """The loop that came before."""
        return self._process(["benchmarks.streaming.older_loop", self.redis_url, self.base_url], {})

    def start_legs(self, seed: int) -> Process:
        """A process of readers that come and go."""
        return self._process(["benchmarks.streaming.legs", self.redis_url, str(seed)], {})

    def _process(self, module: list[str], environment: dict[str, str]) -> Process:
        self._started += 1
        log = self.folder / f"worker-{self._started}.log"
        process = Process([sys.executable, "-m", *module], log=log, env=_environment() | environment, cwd=ROOT)
        self.workers.append(process)
        return process

    def _owners(self) -> set[bytes]:
        return cast(set[bytes], self.redis.smembers(keys.OWNERS))

    def kill(self, worker: Process) -> None:
        """As a kill -9."""
        worker.kill()
        self.workers.remove(worker)

    def clear(self) -> None:
        """End every worker and empty Redis."""
        for worker in list(self.workers):
            self.kill(worker)
        self.redis.flushall()

    async def stored(self) -> dict[str, str]:
        """The answers in PostgreSQL, by job."""
        connection = await asyncpg.connect(self.database_url)
        try:
            query = "SELECT job_id, content FROM messages WHERE role = 'assistant' AND status = 'completed'"
            return {row["job_id"]: row["content"] for row in await connection.fetch(query)}
        finally:
            await connection.close()


@contextmanager
def on_stage() -> Iterator[Stage]:
    """A stage; everything on it ends with the context."""
    account = server_account()
    with (
        temporary_base_folder(account) as base,
        Redis(base, account) as server,
        Postgres(base, account) as postgres,
        _model_server(base) as base_url,
        redis.Redis.from_url(server.url) as client,
    ):
        postgres.create_database(_DATABASE)
        asyncio.run(migrate(postgres.url(_DATABASE)))
        (base / "corpus").mkdir()
        (base / "corpus" / "delivery.md").write_text(_DOCUMENT)
        stage = Stage(server.url, postgres.url(_DATABASE), base_url, base, client, server)
        try:
            yield stage
        finally:
            stage.clear()


@contextmanager
def _model_server(folder: Path) -> Iterator[str]:
    port_file = folder / "model.port"
    command = [sys.executable, "-m", "benchmarks.streaming.model", str(port_file)]
    process = Process(command, log=folder / "model.log", cwd=ROOT)
    try:
        wait_until(port_file.exists, timeout_s=START_S, what="the model server listens")
        yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    finally:
        process.stop()


def _environment() -> dict[str, str]:
    dropped = ("OPENAI_", "OPENROUTER_", "PROTOSTAR_", "REDIS_URL", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def cpu_s(process: Process) -> float:
    """Processor seconds that a process has used so far, all its threads together."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def machine_cpu_s() -> float:
    """Processor seconds that everything on this machine has used so far."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / _TICKS_A_SECOND


def question(*, rate: int, tokens: int, text: str = "clock") -> dict[str, Any]:
    """The arguments of a question that the lean model server answers like this."""
    return {"user_uuid": USER, "content": f"rate={rate} tokens={tokens} text={text}"}

"""Two workers behind a gate, with servers of their own, and the checks of a job after any fault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from models.migrate import migrate
from stack.places import Account, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process
from stack.redis import Redis
from tests.support.model_control import ModelControl
from tests.support.moments import SUMMARY, SUMMARY_MODEL, TEXT, TRIGGERS
from tests.support.redis_gate import RedisGate
from tests.support.stack_under_test import Stack, check_order, text_of, until

LEASE_S: Final = 2
GRACE_S: Final = 1
DATABASE: Final = "arena"

# What may be left in Redis when every job has ended.
_KEPT: Final = ("arq:result:", "chat:events:", "arq:queue:health-check", "protostar:owners", "protostar:alive:")
_KEPT_TOO: Final = ("protostar:reaper", "protostar:token-ratios")


@dataclass(slots=True)
class Ground:
    """State that outlives a test: the servers, the gate, a folder, and the workers that still run."""

    redis: Redis
    postgres: Postgres
    gate: RedisGate
    folder: Path
    workers: list[Process] = field(default_factory=list)


@contextmanager
def prepared_ground(account: Account | None, folder: Path) -> Iterator[Ground]:
    """Start servers, and stop them and the workers at the end."""
    (folder / "corpus").mkdir()
    with (
        temporary_base_folder(account) as base,
        Redis(base, account) as redis,
        Postgres(base, account, durable=False) as postgres,
        RedisGate(redis.url) as gate,
    ):
        postgres.create_database(DATABASE)
        asyncio.run(migrate(postgres.url(DATABASE)))
        postgres.query(DATABASE, TRIGGERS)
        ground = Ground(redis, postgres, gate, folder)
        try:
            yield ground
        finally:
            for worker in ground.workers:
                if worker.running:
                    worker.kill()


class Arena(Stack):
    """A stack with two workers; lost workers are replaced before the next test."""

    def __init__(self, ground: Ground, model: ModelControl) -> None:
        super().__init__(
            ground.redis.url, ground.postgres.url(DATABASE), model, ground.folder, ground.folder / "corpus"
        )
        self.workers = ground.workers
        self.gate = ground.gate
        self.servers = ground
        self.environment |= {
            "REDIS_URL": ground.gate.url,
            "PROTOSTAR_LEASE": str(LEASE_S),
            "PROTOSTAR_SHUTDOWN_GRACE": str(GRACE_S),
            "PROTOSTAR_SUMMARY_MODEL": SUMMARY_MODEL,
            "PROTOSTAR_REINDEX_MINUTES": "0",
        }

    def launch(self, *arguments: str, settings: str = "arq_settings.WorkerSettings", **environment: str) -> Process:
        """Start a worker that logs every event."""
        return super().launch(
            "--custom-log-dict", "tests.support.worker_log.LOGGING", *arguments, settings=settings, **environment
        )

    async def open(self) -> None:
        """Start two workers, reset the model, and make Redis write every change to disk before it answers."""
        self.model.reset()
        self.model.script({"model": SUMMARY_MODEL, "pieces": [SUMMARY], "times": None})
        await self.redis.config_set("appendfsync", "always")
        await self.refill()

    async def refill(self) -> None:
        """Start workers until two run."""
        while sum(worker.running for worker in self.workers) < 2:
            await self.start_worker()

    def worker(self, pid: int) -> Process:
        """The worker with a process id."""
        return next(worker for worker in self.workers if worker.pid == pid)

    async def chat_requests(self, job_id: str) -> int:
        """Count the requests to the model for a job's answer."""
        requests = await asyncio.to_thread(self.model.requests, 1000)
        return sum(r["body"]["model"] == "test-model" and job_id in str(r["body"]["messages"]) for r in requests)

    async def tries(self, job_id: str) -> int:
        """Return the number of attempts of a running job that count."""
        record: dict[bytes, bytes] = await self.redis.hgetall(f"protostar:job:{job_id}")  # type: ignore[misc]
        return int(record[b"attempt"]) - int(record[b"spared"])

    async def first_reason(self, job_id: str) -> str | None:
        """Return the reason why the first attempt in the event log is not attempt 1."""
        first: str | None = (await self.events(job_id))[0].get("reason")
        return first

    async def record(self, job_id: str) -> dict[str, Any]:
        """Return the events, the rows and the result of a job."""
        return {
            "events": await self.redis.xrange(f"chat:events:{job_id}"),
            "rows": await self.messages(job_id),
            "result": await self.result(job_id),
        }

    async def check_answered(self, job_id: str, *, attempt: int, requests: int) -> None:
        """Check events, rows and model requests of a job that was answered once.

        `attempt` is the one that told the ending, `requests` how often the model was asked.
        """
        events = await self.events(job_id)
        check_order(events)
        done = events[-1]
        assert (done["type"], done["attempt"]) == ("done", attempt), events
        question, answer = await self.messages(job_id)
        assert (question["role"], answer["role"], answer["status"]) == ("user", "assistant", "completed")
        assert text_of(events) == answer["content"] == TEXT
        assert done["message_id"] == answer["id"]
        record = await self.result(job_id)
        assert (record["s"], record["r"]["message_id"], record["r"]["content"]) == (True, answer["id"], TEXT)
        assert await self.chat_requests(job_id) == requests
        await self.result(f"summary:{answer['id']}")
        assert (await self.messages(job_id))[1]["summary"] == SUMMARY

    async def check_nothing_left(self, *, outbox: bool = True) -> None:
        """Check that queue and outbox have no trace of ended jobs."""

        left: list[bytes] = []

        async def clean() -> bool:
            left[:] = [key async for key in self.redis.scan_iter(count=1000) if not _is_kept(key)]
            return not left

        async def relayed() -> bool:
            return not await self.rows("SELECT 1 FROM outbox_jobs")

        await until(clean, "nothing is left in Redis", lambda: f"{left}\n{self.logs()}")
        if outbox:
            await until(relayed, "the outbox is empty", self.logs)

    async def summary_requests(self) -> int:
        """Count the requests to the model for summaries."""
        requests = await asyncio.to_thread(self.model.requests, 1000)
        return sum(request["body"]["model"] == SUMMARY_MODEL for request in requests)


def _is_kept(key: bytes) -> bool:
    name = key.decode()
    return name.startswith(_KEPT) or name in _KEPT_TOO

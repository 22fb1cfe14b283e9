"""The soak: many turns of many sessions while workers are killed and Redis restarts; then count what is wrong.

    python -m benchmarks.delivery.soak --jobs 10000 --kills 20 --redis-restarts 3

It starts servers of its own. The last line is a JSON object; exit code 1 if a job was lost, doubled, out of turn
or told wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from redis.exceptions import RedisError

from models.migrate import migrate
from stack.places import server_account, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process
from stack.redis import Redis
from tests.support.model_control import running_model_server
from tests.support.stack_under_test import ENDINGS, Stack, check_order, text_of

T = TypeVar("T")

PATIENCE_S: Final = 120.0
LIVE_READERS: Final = 200
USER: Final = str(UUID(int=7))
SUMMARY_MODEL: Final = "summary-model"
PIECES: Final = ["작업은 ", "잃지 않습니다. ", "답은 ", "하나입니다. ", "독자는 ", "압니다. ", "정말", "입니다."]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done; `seconds` is how long jobs are enqueued, and havoc wreaked, at random moments."""

    jobs: int = 10_000
    sessions: int = 200
    workers: int = 3
    seconds: float = 300
    kills: int = 20
    stops: int = 10
    redis_restarts: int = 3
    seed: int = 0


@dataclass(slots=True)
class Report:
    """What became of the jobs; the lists name those that went wrong."""

    plan: Plan
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    out_of_turn: list[str] = field(default_factory=list)
    told_wrongly: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    memory_growth: float | None = None
    """Of a worker that nobody killed, from the first fifth of the jobs to the end; None for a short run."""

    @property
    def faultless(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.out_of_turn or self.told_wrongly or self.left_over)


class Soak:
    """One run in a stack, with the Redis server that may be restarted."""

    def __init__(self, stack: Stack, redis_server: Redis, plan: Plan) -> None:
        self._stack = stack
        self._server = redis_server
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._sessions: dict[str, list[str]] = defaultdict(list)
        self._live: dict[str, asyncio.Task[list[dict[str, Any]]]] = {}
        self._steady: Process | None = None
        self._memory: list[int] = []

    async def run(self) -> Report:
        """Enqueue, kill, wait for the end, count."""
        started = time.monotonic()
        self._stack.model.script(
            {"model": SUMMARY_MODEL, "pieces": ["답은 하나입니다."], "times": None},
            {"pieces": PIECES, "delay_s": 0.01, "times": None},
        )
        self._steady = await self._stack.start_worker()
        for _ in range(self._plan.workers - 1):
            await self._stack.start_worker()
        await asyncio.gather(self._produce(), self._wreak_havoc(), self._watch_memory())
        await self._until_done()
        report = await self._count()
        report.seconds = round(time.monotonic() - started, 1)
        return report

    async def _produce(self) -> None:
        plan, moments = self._plan, self._moments(self._plan.jobs)
        started = time.monotonic()
        for number, moment in enumerate(moments):
            await asyncio.sleep(max(0.0, started + moment - time.monotonic()))
            session = f"session-{self._random.randrange(plan.sessions)}"
            job_id = f"job-{number:06}"
            self._sessions[session].append(job_id)
            await self._enqueue(session, job_id)
            if self._random.random() < 0.1:
                await self._enqueue(session, job_id)
            if number % max(1, plan.jobs // LIVE_READERS) == 0:
                self._live[job_id] = asyncio.create_task(self._read(job_id))

    async def _enqueue(self, session: str, job_id: str) -> None:
        redis = self._stack.redis

        async def enqueue() -> None:
            arguments: dict[str, Any] = {"user_uuid": USER, "session_id": session, "content": f"질문 {job_id}"}
            job = await redis.enqueue_job("generate_chat", _job_id=job_id, **arguments)
            # ARQ returns None for a job that it knows, and also where the connection broke off.
            if job is None and not await redis.exists(f"arq:job:{job_id}", f"arq:result:{job_id}"):
                raise ConnectionError(f"{job_id} was not enqueued")

        await patiently(enqueue)

    async def _read(self, job_id: str) -> list[dict[str, Any]]:
        """The events as a reader hears them who comes back after every loss of Redis."""
        events: list[dict[str, Any]] = []
        last_id = "0-0"
        while not (events and events[-1]["type"] in ENDINGS):
            after: dict[Any, Any] = {f"chat:events:{job_id}": last_id}
            reply = await patiently(partial(self._stack.redis.xread, after, block=500))
            for entry_id, fields in reply[0][1] if reply else ():
                last_id = entry_id.decode()
                events.append(json.loads(fields[b"data"]))
        return events

    async def _wreak_havoc(self) -> None:
        plan = self._plan
        deeds = [self._kill] * plan.kills + [self._stop] * plan.stops + [self._restart_redis] * plan.redis_restarts
        self._random.shuffle(deeds)
        started = time.monotonic()
        for deed, moment in zip(deeds, self._moments(len(deeds)), strict=True):
            await asyncio.sleep(max(0.0, started + moment - time.monotonic()))
            await deed()

    def _moments(self, count: int) -> list[float]:
        return sorted(self._random.uniform(0, self._plan.seconds) for _ in range(count))

    async def _kill(self) -> None:
        self._victim().kill()
        self._stack.launch()

    async def _stop(self) -> None:
        self._victim().send(signal.SIGTERM)
        self._stack.launch()

    def _victim(self) -> Process:
        running = [worker for worker in self._stack.workers if worker.running and worker is not self._steady]
        return self._random.choice(running)

    async def _restart_redis(self) -> None:
        await asyncio.to_thread(self._server.stop)
        self._server.start()  # here: a server dies with the thread that started it

    async def _watch_memory(self) -> None:
        """Note the steady worker's memory five times, the last time when everything is enqueued."""
        for _ in range(5):
            await asyncio.sleep(self._plan.seconds / 5)
            self._memory.append(self._resident_kib())

    def _resident_kib(self) -> int:
        assert self._steady is not None
        assert self._steady.running, self._steady.last_lines(30)
        status = Path(f"/proc/{self._steady.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    async def _until_done(self) -> None:
        async def busy() -> int:
            rows = await self._stack.rows("SELECT 1 FROM outbox_jobs LIMIT 1")
            return int(await self._stack.redis.zcard("arq:queue")) + len(rows)

        best, best_at = sys.maxsize, time.monotonic()
        while (left := await patiently(busy)) and time.monotonic() - best_at < PATIENCE_S / 4:
            if left < best:
                best, best_at = left, time.monotonic()
            await asyncio.sleep(0.2)
        self._memory.append(self._resident_kib())
        _, unread = await asyncio.wait(self._live.values(), timeout=5)
        for reader in unread:
            reader.cancel()
        await asyncio.gather(*unread, return_exceptions=True)

    async def _count(self) -> Report:
        report = Report(self._plan)
        rows = await self._stack.rows("SELECT * FROM messages ORDER BY id")
        by_job: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_job[row["job_id"]].append(row)
        attempts: Counter[int] = Counter()
        for job_id in (job_id for session in self._sessions.values() for job_id in session):
            await self._check_job(report, job_id, by_job[job_id], attempts)
        self._check_turns(report, by_job)
        report.attempts = dict(sorted(attempts.items()))
        report.left_over = await self._left_over()
        if self._plan.seconds >= 60:
            report.memory_growth = round(self._memory[-1] / self._memory[0] - 1, 4)
        return report

    async def _check_job(self, report: Report, job_id: str, rows: list[dict[str, Any]], attempts: Counter[int]) -> None:
        entries = await self._stack.redis.xrange(f"chat:events:{job_id}")
        events = [json.loads(fields[b"data"]) for _, fields in entries]
        if not events or events[-1]["type"] != "done" or len(rows) < 2 or rows[1]["summary"] is None:
            report.lost.append(job_id)
            return
        attempts[events[-1]["attempt"]] += 1
        if len(rows) > 2:
            report.doubled.append(job_id)
        live = self._live.get(job_id)
        try:
            check_order(events)
            assert text_of(events) == rows[1]["content"] == "".join(PIECES)
            assert live is None or (not live.cancelled() and live.result() == events)
        except AssertionError:
            report.told_wrongly.append(job_id)

    def _check_turns(self, report: Report, by_job: dict[str, list[dict[str, Any]]]) -> None:
        """The rows of a session alternate, question and answer, in the order of the enqueueing."""
        for jobs in self._sessions.values():
            ids = [row["id"] for job_id in jobs for row in by_job[job_id]]
            if ids != sorted(ids):
                report.out_of_turn += jobs

    async def _left_over(self) -> list[str]:
        kept = ("arq:result:", "chat:events:", "arq:queue:health-check", "protostar:owners", "protostar:alive:")
        names = [key.decode() async for key in self._stack.redis.scan_iter(count=1000)]
        return [
            name
            for name in names
            if not name.startswith(kept) and name not in ("protostar:reaper", "protostar:token-ratios")
        ]


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call that is made again while Redis is away."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except (RedisError, OSError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


@contextmanager
def _stack() -> Iterator[tuple[Stack, Redis]]:
    account = server_account()
    with (
        tempfile.TemporaryDirectory() as folder,
        temporary_base_folder(account) as base,
        Redis(base, account) as redis,
        Postgres(base, account) as postgres,
        running_model_server(Path(folder)) as model,
    ):
        postgres.create_database("soak")
        asyncio.run(migrate(postgres.url("soak")))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        stack = Stack(redis.url, postgres.url("soak"), model, Path(folder), corpus)
        yield stack, redis


async def _run(stack: Stack, redis: Redis, plan: Plan) -> Report:
    stack.environment |= {"PROTOSTAR_SUMMARY_MODEL": SUMMARY_MODEL, "PROTOSTAR_REINDEX_MINUTES": "0"}
    try:
        return await Soak(stack, redis, plan).run()
    finally:
        await stack.close()


def main() -> None:
    """Run the soak as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    plan = Plan(**vars(parser.parse_args()))
    with _stack() as (stack, redis):
        report = asyncio.run(_run(stack, redis, plan))
    print(json.dumps(asdict(report)))
    sys.exit(0 if report.faultless else 1)


if __name__ == "__main__":
    main()

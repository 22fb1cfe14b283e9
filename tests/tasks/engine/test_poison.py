"""A job that kills its worker, on real workers: it ends alone, and its neighbours are answered."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool

from stack.processes import Process
from tests.support.stack_under_test import ROOT, clean_environment, dump, until

NEIGHBOURS = 20
MOST_DEATHS = 8


class Crew:
    """Workers that are started again when they die, as a supervisor does."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._environment = clean_environment() | {"REDIS_URL": redis_url}
        self._folder = folder
        self._workers: list[Process] = []
        self.deaths = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "arq", "tests.support.engine_worker.WorkerSettings"]
        log = self._folder / f"worker-{self.deaths}-{len(self._workers)}.log"
        self._workers.append(Process(command, log=log, env=self._environment, cwd=ROOT))

    def restart_dead(self) -> None:
        for worker in [worker for worker in self._workers if not worker.running]:
            self._workers.remove(worker)
            self.deaths += 1
            self.start()

    def kill(self) -> None:
        for worker in self._workers:
            worker.kill()


@asynccontextmanager
async def crew_of(count: int, redis_url: str, folder: Path) -> AsyncIterator[tuple[ArqRedis, Crew]]:
    redis = ArqRedis(ConnectionPool.from_url(redis_url), job_serializer=dump, job_deserializer=json.loads)
    crew = Crew(redis_url, folder)
    try:
        for _ in range(count):
            crew.start()
        yield redis, crew
    finally:
        crew.kill()
        await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize(("workers", "function"), [(1, "kill"), (3, "kill"), (3, "exhaust")])
async def test_a_poison_job_ends_alone_and_its_neighbours_are_done(
    redis_url: str, tmp_path: Path, workers: int, function: str
) -> None:
    async with crew_of(workers, redis_url, tmp_path) as (redis, crew):
        for number in range(NEIGHBOURS):
            await redis.enqueue_job("answer", _job_id=f"answer-{number:02}", seconds=0.5)
            if number == NEIGHBOURS // 2:
                await redis.enqueue_job(function, _job_id="poison")

        async def all_ended() -> bool:
            crew.restart_dead()
            await asyncio.sleep(0.05)
            return not await redis.zcard("arq:queue")

        await until(all_ended, "every job has ended", lambda: f"{crew.deaths} deaths", timeout_s=120)
        poison = await result(redis, "poison")
        assert not poison["s"]
        assert poison["r"]["error"]["code"] == "too_many_attempts"
        for number in range(NEIGHBOURS):
            assert (await result(redis, f"answer-{number:02}"))["r"] == "done"
        assert crew.deaths <= MOST_DEATHS


async def result(redis: ArqRedis, job_id: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(await redis.get(f"arq:result:{job_id}") or b"{}")
    return record

"""Real workers under conditions that are not theirs to choose: a wrong clock, a Redis that refuses commands."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool

from stack.processes import Process
from tests.support.stack_under_test import ROOT, clean_environment, dump, until

SKEWED = ROOT / "tests" / "support" / "skewed_clock"
Start = Callable[..., Process]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[ArqRedis]:
    redis = ArqRedis(ConnectionPool.from_url(redis_url), job_serializer=dump, job_deserializer=json.loads)
    yield redis
    await redis.aclose(close_connection_pool=True)


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Any:
    """Starts engine workers."""
    workers: list[Process] = []

    def start(**environment: str) -> Process:
        command = [sys.executable, "-m", "arq", "tests.support.engine_worker.WorkerSettings"]
        merged = clean_environment() | {"REDIS_URL": redis_url} | environment
        workers.append(Process(command, log=tmp_path / f"worker-{len(workers)}.log", env=merged, cwd=ROOT))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.running:
            worker.kill()


async def serving(redis: ArqRedis, count: int = 1) -> None:
    async def serve() -> bool:
        return int(await redis.scard("protostar:owners")) >= count  # type: ignore[misc]

    await until(serve, f"{count} workers serve")


async def seconds_to_end(redis: ArqRedis, job_id: str, function: str = "answer", **options: Any) -> float:
    started_s = time.monotonic()
    await redis.enqueue_job(function, _job_id=job_id, **options)

    async def ended() -> object:
        return await redis.get(f"arq:result:{job_id}")

    await until(ended, f"{job_id} has ended")
    return time.monotonic() - started_s


@pytest.mark.parametrize("skew_s", [3600, -3600])
async def test_a_worker_whose_clock_is_an_hour_off_keeps_no_job_waiting(
    redis: ArqRedis, start: Start, skew_s: int
) -> None:
    worker = start(CLOCK_SKEW_S=str(skew_s), PYTHONPATH=str(SKEWED), TICKS="1")
    await serving(redis)
    assert await seconds_to_end(redis, "now") < 1
    assert 1 <= await seconds_to_end(redis, "later", _defer_by=1) < 2.5
    assert 1 <= await seconds_to_end(redis, "again", "again", seconds=1.0) < 3
    record = json.loads(await redis.get("arq:result:now") or b"{}")
    assert abs(record["ft"] / 1000 - time.time()) < 60

    # Cron: every job is due by Redis' clock.
    async def ticked() -> bool:
        return bool(await redis.exists("ticks"))

    await until(ticked, "a cron job has run", worker.last_lines)
    assert await redis.zcount("arq:queue", (time.time() + 60) * 1000, "+inf") == 0


async def test_workers_of_different_clocks_run_a_cron_job_once(redis: ArqRedis, start: Start) -> None:
    for skew_s in (3600, 0, -3600):
        start(CLOCK_SKEW_S=str(skew_s), PYTHONPATH=str(SKEWED), TICKS="1")
    await serving(redis, 3)
    await redis.delete("ticks")
    await asyncio.sleep(5)
    ticks = [int(tick) for tick in await redis.lrange("ticks", 0, -1)]  # type: ignore[misc]
    assert len(ticks) == len(set(ticks))
    assert 3 <= len(ticks) <= 6


async def test_a_redis_that_refuses_dangerous_commands_is_enough(redis: ArqRedis, redis_url: str, start: Start) -> None:
    """Neither INFO nor CLIENT LIST nor CLIENT SETNAME nor CONFIG may be used; a killed worker is taken over."""
    rules = ["on", ">s%ret", "~*", "&*", "+@all", "-@dangerous", "-client|setname", "-client|setinfo"]
    await redis.execute_command("ACL", "SETUSER", "limited", *rules)  # type: ignore[no-untyped-call]
    try:
        url = redis_url.replace("unix://", "unix://limited:s%25ret@")
        victim = start(REDIS_URL=url)
        await serving(redis)
        assert await seconds_to_end(redis, "first") < 2
        await redis.enqueue_job("answer", _job_id="held", seconds=3600)

        async def held() -> bool:
            return bool(await redis.exists("arq:in-progress:held"))

        await until(held, "the job runs", victim.last_lines)
        other = start(REDIS_URL=url)
        await serving(redis, 2)
        victim.kill()

        async def taken_over() -> bool:
            lease = await redis.get("arq:in-progress:held")
            return lease is not None and f"-{other.pid}-".encode() in lease

        await until(taken_over, "the job is taken over", other.last_lines)
    finally:
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call]

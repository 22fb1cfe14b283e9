"""Settings of a worker with the engine alone: no PostgreSQL, no model, jobs that live and jobs that kill."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from typing import Any, ClassVar, cast

import arq.worker
from arq import Retry, cron, func
from arq.typing import WorkerCoroutine
from protostar_client.codec import dump_json, load_json

from tasks.engine.connection import arq_redis_settings
from tasks.engine.worker import Worker

arq.worker.Worker = Worker  # type: ignore[misc]


async def answer(_: dict[Any, Any], *, seconds: float = 0.0) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "done"


async def again(ctx: dict[Any, Any], *, seconds: float) -> str:
    """Ask for one more attempt."""
    if ctx["job_try"] == 1:
        raise Retry(defer=seconds)
    return "done"


async def tick(ctx: dict[Any, Any]) -> None:
    """Note which run this is, by the time that its id names."""
    await ctx["redis"].rpush("ticks", ctx["job_id"].rpartition(":")[2])


async def kill(_: dict[Any, Any], *, seconds: float = 0.0) -> None:
    """Kill the worker, after a while."""
    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


async def exhaust(_: dict[Any, Any]) -> None:
    """Use more than the process may, as a job does that takes all memory: the kernel sends SIGKILL."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
    while True:
        pass


JOBS = (answer, again, kill, exhaust)


class WorkerSettings:
    """Bare, as ARQ reads it."""

    functions: ClassVar = [
        func(cast(WorkerCoroutine, job), name=job.__name__) for job in (answer, again, kill, exhaust)
    ]
    cron_jobs: ClassVar = [cron(cast(WorkerCoroutine, tick), second=set(range(60)))]
    redis_settings = arq_redis_settings(os.environ["REDIS_URL"])
    redis_url = os.environ["REDIS_URL"]
    max_jobs = 100
    lease_s = float(os.environ.get("LEASE", "2"))
    allow_abort_jobs = True
    job_serializer = dump_json
    job_deserializer = load_json

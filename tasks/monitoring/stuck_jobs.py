"""Finds stuck jobs: jobs that no worker claims, and jobs that run beyond their time limit."""

from __future__ import annotations

from typing import Final

from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.claim import LEASE_TTL_EXTRA_S
from tasks.monitoring.queued_jobs import QueuedJob
from tasks.monitoring.status import CLASSES

NOT_SEEN: Final = ""
"""Stands for the class of a job that no worker has looked at yet."""

_HEADS: Final = 50
_OVERTIME_S: Final = 60.0  # a job that is out of time may take a moment to end


async def next_jobs(redis: Redis) -> dict[str, list[str]]:
    """Return the ids of the next jobs by class, in their order; only classes that have any.

    Raises:
        RedisError, OSError: Redis can't be asked.
    """
    seconds, microseconds = await redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zrangebyscore(keys.QUEUE, 0, now_ms, start=0, num=_HEADS)
        for job_class in CLASSES:
            pipe.zrange(keys.READY_PREFIX + job_class, 0, _HEADS - 1)
        found = await pipe.execute()
    heads = zip((NOT_SEEN, *CLASSES), found, strict=True)
    return {name: [job_id.decode(errors="backslashreplace") for job_id in ids] for name, ids in heads if ids}


async def overdue(redis: Redis, running: list[QueuedJob]) -> list[QueuedJob]:
    """Return the running jobs that exceeded their time limit more than a minute ago.

    Raises:
        RedisError, OSError: Redis can't be asked.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for job in running:
            pipe.pttl(keys.lease(job.job_id))
        left_ms = await pipe.execute()
    # A lease's key is set once, to outlive the job's time limit by `LEASE_TTL_EXTRA_S`.
    latest_ms = (LEASE_TTL_EXTRA_S - _OVERTIME_S) * 1000
    return [job for job, ms in zip(running, left_ms, strict=True) if 0 <= ms < latest_ms]

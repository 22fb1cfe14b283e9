"""Lists the jobs in the queue with their state."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal
from uuid import UUID

from protostar_client import keys
from protostar_client.contract import GENERATE_CHAT
from protostar_client.state import owner_of
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from tasks.engine.scripts import Script

JobPlace = Literal["ready", "waiting", "running", "deferred"]

_PAGE: Final = 100  # what a look at one page costs, Redis does nothing else for
_LOOK: Final = Script.beside(__file__, "look")
_DEFAULT_MODE: Final = "general"


class QueuedJob(BaseModel):
    """A job that has not ended. Fields that its payload lacks, or that are unreadable, are empty."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    state: JobPlace
    """`ready` may start now; `waiting` lets another turn of its session go first; `deferred` is not due yet."""
    function: str
    mode: str
    user_uuid: str
    session_id: str
    age_s: float
    """Since it was enqueued."""
    due_s: float
    """The seconds until a deferred job is due; 0 for other jobs."""
    attempt: int
    """The running attempt, or the last one; 0 before the first."""
    owner: str
    """The worker that runs it."""
    waits_for: str
    """The job whose turn comes first."""


async def queued_jobs(redis: Redis, *, running: bool | None = None) -> AsyncIterator[QueuedJob]:
    """Iterate over the jobs in the queue, the oldest first; `running` selects those that run or don't.

    Raises:
        RedisError, OSError: Redis can't be asked.
    """
    ids = await (_running_ids(redis) if running else _all_ids(redis))
    for start in range(0, len(ids), _PAGE):
        seconds, microseconds = await redis.time()
        for raw in await _LOOK.run(redis, *ids[start : start + _PAGE]):
            job = _job(raw, seconds * 1000 + microseconds // 1000)
            if running is None or running == (job.state == "running"):
                yield job


async def user_of(redis: Redis, job_id: str) -> UUID | None:
    """Return the user of a job; None where there is no such job or it has no user."""
    records = await redis.mget(keys.job(job_id), keys.result(job_id))
    return next((user for record in records if record is not None and (user := owner_of(record))), None)


async def is_known(redis: Redis, job_id: str) -> bool:
    """Whether there is such a job, or a result of it."""
    return bool(await redis.exists(keys.job(job_id), keys.result(job_id)))


async def _all_ids(redis: Redis) -> list[bytes]:
    scores = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    return [job_id for job_id, _ in sorted(scores, key=lambda entry: abs(entry[1]))]


async def _running_ids(redis: Redis) -> list[bytes]:
    owners = await redis.smembers(keys.OWNERS)  # type: ignore[misc]
    if not owners:
        return []
    ids = list(await redis.sunion([keys.RUNNING_PREFIX.encode() + owner for owner in owners]))  # type: ignore[misc]
    scores = await redis.zmscore(keys.QUEUE, ids) if ids else []
    found = [(abs(score), job_id) for score, job_id in zip(scores, ids, strict=True) if score is not None]
    return [job_id for _, job_id in sorted(found)]


def _job(raw: Sequence[bytes], now_ms: int) -> QueuedJob:
    job_id, score, state, attempt, owner, holder, function, mode, user, session, enqueued = (
        value.decode(errors="backslashreplace") for value in raw
    )
    due_ms = abs(float(score)) if math.isfinite(float(score)) else 0.0
    place = _place(state, is_due=float(score) < now_ms + 1)
    return QueuedJob(
        job_id=job_id,
        state=place,
        function=function,
        mode=mode or (_DEFAULT_MODE if function == GENERATE_CHAT else ""),
        user_uuid=user,
        session_id=session,
        age_s=max(0.0, now_ms - float(enqueued or due_ms)) / 1000,
        due_s=max(0.0, due_ms - now_ms) / 1000 if place == "deferred" else 0.0,
        attempt=int(attempt),
        owner=owner,
        waits_for=holder,
    )


def _place(state: str, *, is_due: bool) -> JobPlace:
    match state:
        case "running" | "waiting" | "ready":
            return state
        case _:  # no worker has looked at it, or at its next attempt
            return "ready" if is_due else "deferred"

"""The status of all parts: one snapshot of Redis and PostgreSQL.

It costs three round trips to Redis, one or two more for every model with limits, and two to PostgreSQL, however many
jobs there are: no job is read and no key is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, get_args

from protostar_client import keys
from protostar_client.keys import DEFAULT_CLASS
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from tortoise.backends.base.client import BaseDBAsyncClient

from protostar.settings import JobClass
from tasks.gate.rate_limits import RateLimits
from tasks.monitoring.store_status import StoreStatus, read_store
from tasks.monitoring.worker_report import Beat

TURN_CLASS: Final[JobClass] = "chat"
CLASSES: Final = (*get_args(JobClass), DEFAULT_CLASS)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class WorkerStatus(_Part):
    """A registered worker. One that is not alive sends no heartbeat, and its jobs will be taken over."""

    owner: str
    is_alive: bool
    beat_age_s: float | None
    """The seconds since its last heartbeat; None where its report is unreadable."""
    running: int
    """The number of jobs that it has claimed."""
    beat: Beat


class ClassStatus(_Part):
    """Jobs of one class that only wait for a free slot."""

    ready: int
    oldest_s: float | None


class QueueStatus(_Part):
    """The jobs in ARQ's queue. `length` = `ready` + `waiting` + `running` + `deferred`."""

    length: int
    ready: int
    """May start now; of these, `unseen` ones have not been looked at by any worker."""
    unseen: int
    waiting: int
    """Another turn of their session comes first."""
    running: int
    deferred: int
    """Not due yet, as the next attempt of a job that failed."""
    oldest_ready_s: float | None
    """How long the oldest ready job has been in the queue: since it was enqueued, also where it was tried before."""
    classes: dict[str, ClassStatus]
    older: int
    """Elements that older producers have pushed and no worker has taken over."""
    dead: int
    """Jobs that were given up."""


class ModelStatus(_Part):
    """Whether a model may be asked, as the workers share it."""

    provider: str
    model: str
    paused_s: float
    """The seconds until it may be asked again; 0 where it may be asked now."""
    reason: str
    """The error code that paused it; empty where it is not paused."""
    is_down: bool
    """The breaker is open: one request at a time tries whether the model is back."""
    requests_per_minute: int
    requests_left: int | None
    tokens_per_minute: int
    tokens_left: int | None


class Status(_Part):
    """A snapshot. `store` is None where PostgreSQL was not asked."""

    at: datetime
    """Redis' clock."""
    workers: list[WorkerStatus]
    queue: QueueStatus
    running_turns: int
    models: list[ModelStatus]
    store: StoreStatus | None


async def read_status(redis: Redis, database: BaseDBAsyncClient | None) -> Status:
    """A snapshot; without a `database` of Redis alone. `redis` must not decode its replies.

    Raises:
        RedisError, OSError: Redis can't be asked.
        asyncpg.PostgresError, tortoise.exceptions.BaseORMException, OSError: PostgreSQL can't be asked.
    """
    async with redis.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.smembers(keys.OWNERS)
        (seconds, microseconds), owners = await pipe.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    workers, queue = await _read_queue(redis, sorted(owners), now_ms)
    alive = [worker.beat for worker in workers if worker.is_alive]
    return Status(
        at=datetime.fromtimestamp(now_ms / 1000, UTC),
        workers=workers,
        queue=queue,
        running_turns=sum(beat.busy.get(TURN_CLASS, 0) for beat in alive),
        models=await _read_models(redis, alive, now_ms),
        store=None if database is None else await read_store(database),
    )


async def _read_queue(redis: Redis, owners: Sequence[bytes], now_ms: int) -> tuple[list[WorkerStatus], QueueStatus]:
    names = [owner.decode(errors="backslashreplace") for owner in owners]
    async with redis.pipeline(transaction=True) as pipe:  # one moment: the counts below have to add up
        pipe.zcard(keys.QUEUE)
        pipe.zcount(keys.QUEUE, f"({now_ms + 1}", "+inf")
        pipe.zcount(keys.QUEUE, 0, now_ms + 1)
        pipe.zrangebyscore(keys.QUEUE, 0, now_ms + 1, start=0, num=1, withscores=True)
        pipe.llen(keys.OLDER_QUEUE)
        pipe.xlen(keys.DEAD)
        for job_class in CLASSES:
            pipe.zcard(keys.READY_PREFIX + job_class)
            pipe.zrange(keys.READY_PREFIX + job_class, 0, 0, withscores=True)
            pipe.zcard(keys.SUSPECTS_PREFIX + job_class)
        for name in names:
            pipe.get(keys.ALIVE_PREFIX + name)
            pipe.scard(keys.RUNNING_PREFIX + name)
        length, deferred, unseen, oldest, older, dead, *rest = await pipe.execute()
    counts, beats = rest[: 3 * len(CLASSES)], rest[3 * len(CLASSES) :]
    workers = [
        _worker(name, beat, running, now_ms) for name, beat, running in zip(names, beats[::2], beats[1::2], strict=True)
    ]
    classes = {
        name: ClassStatus(ready=ready + suspects, oldest_s=_age_s(first, now_ms))
        for name, ready, first, suspects in zip(CLASSES, counts[::3], counts[1::3], counts[2::3], strict=True)
    }
    ready, running = unseen + sum(part.ready for part in classes.values()), sum(worker.running for worker in workers)
    ages_s = [_age_s(oldest, now_ms), *(part.oldest_s for part in classes.values())]
    return workers, QueueStatus(
        length=length,
        ready=ready,
        unseen=unseen,
        waiting=max(0, length - deferred - ready - running),
        running=running,
        deferred=deferred,
        oldest_ready_s=max((age_s for age_s in ages_s if age_s is not None), default=None),
        classes=classes,
        older=older,
        dead=dead,
    )


def _worker(owner: str, stored: bytes | None, running: int, now_ms: int) -> WorkerStatus:
    beat = Beat() if stored is None else Beat.parse(stored)
    age_s = max(0, now_ms - beat.at_ms) / 1000 if beat.at_ms else None
    return WorkerStatus(owner=owner, is_alive=stored is not None, beat_age_s=age_s, running=running, beat=beat)


def _age_s(first: list[tuple[bytes, float]], now_ms: int) -> float | None:
    """How long ago the time was that the first entry has as its score; None where there is none."""
    return max(0.0, now_ms - first[0][1]) / 1000 if first else None


async def _read_models(redis: Redis, beats: Sequence[Beat], now_ms: int) -> list[ModelStatus]:
    asked_by = {(beat.provider, model): beat for beat in beats for model in beat.models}
    async with redis.pipeline(transaction=False) as pipe:
        for provider, model in asked_by:
            pipe.hmget(keys.gate(provider, model), ["until", "reason", "open"])
        gates = await pipe.execute()
    return [
        await _model(redis, provider, model, gate, beat, now_ms)
        for ((provider, model), beat), gate in zip(asked_by.items(), gates, strict=True)
    ]


async def _model(
    redis: Redis, provider: str, model: str, gate: Sequence[bytes | None], beat: Beat, now_ms: int
) -> ModelStatus:
    limits = RateLimits(redis, requests_per_minute=beat.requests_per_minute, tokens_per_minute=beat.tokens_per_minute)
    requests_left, tokens_left = await limits.left(f"{provider}:{model}")
    until, reason, is_open = gate
    paused_s = max(0, int(until or 0) - now_ms) / 1000
    return ModelStatus(
        provider=provider,
        model=model,
        paused_s=paused_s,
        reason=(reason or b"").decode() if paused_s else "",
        is_down=is_open == b"1",
        requests_per_minute=beat.requests_per_minute,
        requests_left=requests_left,
        tokens_per_minute=beat.tokens_per_minute,
        tokens_left=tokens_left,
    )

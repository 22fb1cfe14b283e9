"""What Redis knows of a job, and what its stored result says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from protostar_client import keys
from protostar_client.connection import Connection
from protostar_client.contract import ErrorCode, JobError, load_json
from protostar_client.errors import Cancelled

StreamEntry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class JobState:
    """A job at one moment: its stored result, whether it waits or runs, the last entry of its event log."""

    result: bytes | None
    is_alive: bool
    last_entry: StreamEntry | None


async def read_state(connection: Connection, job_id: str) -> JobState:
    """The state of a job, in one transaction: a job that ends is never seen without both trace and result."""

    async def read(redis: Redis) -> list[Any]:
        async with redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.result(job_id))
            pipe.exists(keys.job(job_id), keys.lease(job_id))
            pipe.zscore(keys.QUEUE, job_id)
            pipe.xrevrange(keys.events(job_id), count=1)
            return list(await pipe.execute())

    result, traces, score, last_entries = await connection.call(read)
    return JobState(
        result=result,
        is_alive=bool(traces) or score is not None,
        last_entry=last_entries[0] if last_entries else None,
    )


def value_of(job_id: str, result: bytes) -> Any:
    """The value in ARQ's result of a job.

    Raises:
        JobError: the job failed, or its result is not JSON.
        Cancelled: the job was cancelled.
    """
    try:
        record = load_json(result)
    except ValueError:
        raise JobError(ErrorCode.INTERNAL, "the result is not JSON; give ARQ's worker the JSON codec") from None
    value = record.get("r")
    if isinstance(value, asyncio.CancelledError):
        raise Cancelled(job_id)
    if isinstance(value, BaseException):
        raise value
    return value


def owner_of(record: bytes) -> UUID | None:
    """The user whom a job's payload or result names; None where it names none."""
    try:
        return UUID(load_json(record)["k"]["user_uuid"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

"""What Redis knows of a job, and what its stored result says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from protostar_client import keys
from protostar_client.codec import load_json
from protostar_client.connection import Connection
from protostar_client.contract import ErrorCode, JobError
from protostar_client.entry import AS_STORED_SEQ, START, EntryId, StreamEntry, parse_entry
from protostar_client.errors import Cancelled

_COMMANDS: Final = 5

# A producer may write a job's payload before its place in the queue: what lacks the place for so long never gets it.
SECOND_LOOK_S: Final = 1.0


class Standing(Enum):
    """How an answer stands for a reader."""

    GOES_ON = "goes_on"  # more is there or to come
    ENDED = "ended"  # the reader has seen the ending
    MISSING = "missing"  # the answer has ended, and its ending is not in the log
    GONE = "gone"  # nothing is there, and nothing will come


@dataclass(frozen=True, slots=True)
class JobState:
    """A job at one moment: its stored result, whether it waits or runs, the last entry of its event log.

    A job `is_stray` whose payload is there, and nothing else: no worker will ever find it.
    """

    result: bytes | None
    is_alive: bool
    is_stray: bool
    last_entry: StreamEntry | None

    @property
    def newest_id(self) -> EntryId:
        """The id of the last entry, `START` where there is none."""
        return START if self.last_entry is None else parse_entry(self.last_entry)[1]

    @property
    def has_ending(self) -> bool:
        """Whether the log says how the answer ended."""
        return self.last_entry is not None and parse_entry(self.last_entry)[0].is_ending

    def standing(self, seen: EntryId) -> Standing:
        """How the answer stands for a reader who has seen the events up to `seen`.

        Raises:
            ProtostarError: the last entry is no event that this version reads.
        """
        if self.last_entry is not None:
            newest, newest_id = parse_entry(self.last_entry)
            if newest_id > seen:
                return Standing.GOES_ON
            if newest.is_ending and newest_id == seen:
                return Standing.ENDED
            if newest.is_ending and seen.seq != AS_STORED_SEQ:
                return Standing.MISSING
        if self.result is not None:
            return Standing.ENDED if seen.seq == AS_STORED_SEQ else Standing.MISSING
        return Standing.GOES_ON if self.is_alive else Standing.GONE


async def read_state(connection: Connection, job_id: str) -> JobState:
    """The state of a job; of a stray one, only if it still is after `SECOND_LOOK_S`."""
    (state,) = await read_states(connection, [job_id])
    if state.is_stray:
        await asyncio.sleep(SECOND_LOOK_S)
        (state,) = await read_states(connection, [job_id])
    return state


async def read_states(connection: Connection, job_ids: Sequence[str]) -> list[JobState]:
    """The states of jobs, in one transaction: a job that ends is never seen without both trace and result."""

    async def read(redis: Redis) -> list[Any]:
        async with redis.pipeline(transaction=True) as pipe:
            for job_id in job_ids:
                pipe.get(keys.result(job_id))
                pipe.exists(keys.job(job_id))
                pipe.exists(keys.lease(job_id))
                pipe.zscore(keys.QUEUE, job_id)
                pipe.xrevrange(keys.events(job_id), count=1)
            return list(await pipe.execute())

    replies = await connection.call(read)
    return [_state(*replies[start : start + _COMMANDS]) for start in range(0, len(replies), _COMMANDS)]


def _state(
    result: bytes | None, payloads: int, leases: int, score: float | None, last_entries: list[StreamEntry]
) -> JobState:
    is_alive = leases > 0 or score is not None
    return JobState(
        result=result,
        is_alive=is_alive,
        is_stray=payloads > 0 and not is_alive and result is None,
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

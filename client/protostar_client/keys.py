"""The one place that knows the names of Redis keys and channels."""

from __future__ import annotations

from typing import Final
from uuid import UUID

QUEUE: Final = "arq:queue"
JOB_PREFIX: Final = "arq:job:"
RESULT_PREFIX: Final = "arq:result:"
RETRY_PREFIX: Final = "arq:retry:"
LEASE_PREFIX: Final = "arq:in-progress:"
ABORT: Final = "arq:abort"

# The ids of the worker's own jobs begin so: a chat job can't have such an id.
OWN_JOB_IDS: Final = ("summary:", "rollup:", "index:", "cron:", "forget:", "history:")

OLDER_QUEUE: Final = "chat:job:queue"
OLDER_TASK_PREFIX: Final = "chat:task:"
OLDER_DEAD: Final = "chat:job:dead"

EVENTS_PREFIX: Final = "chat:events:"

# The worker's own. The scripts in tasks/*/lua see every constant of this module under its name.
WAKE: Final = "protostar:wake"
WAKE_ABORT_PREFIX: Final = "abort:"
RECORD_PREFIX: Final = "protostar:job:"
READY_PREFIX: Final = "protostar:ready:"  # and a class of jobs
SUSPECTS_PREFIX: Final = "protostar:suspects:"  # and a class: ready jobs that run in quarantine
QUARANTINED: Final = "protostar:quarantined"  # worker -> the suspect it runs
DEFAULT_CLASS: Final = "default"
TURNS_PREFIX: Final = "protostar:turns:"
RUNNING_PREFIX: Final = "protostar:running:"
ALIVE_PREFIX: Final = "protostar:alive:"
HOLDERS: Final = "protostar:holders"
OWNERS: Final = "protostar:owners"
DEAD: Final = "protostar:dead"
DEAD_BYTES: Final = "protostar:dead:bytes"
REAPER: Final = "protostar:reaper"
GATE_PREFIX: Final = "protostar:gate:"  # and a provider and its model
LIMITS: Final = "protostar:limits"
TOKEN_RATIOS: Final = "protostar:token-ratios"

READER_PREFIX: Final = "protostar:reader:"
KEPT_ANSWER_PREFIX: Final = "protostar:kept-answer:"


def job(job_id: str) -> str:
    """ARQ's payload of a job."""
    return JOB_PREFIX + job_id


def result(job_id: str) -> str:
    """ARQ's result of a job."""
    return RESULT_PREFIX + job_id


def lease(job_id: str) -> str:
    """The lease of a running job: ARQ's in-progress key, with its owner as the value."""
    return LEASE_PREFIX + job_id


def events(job_id: str) -> str:
    """The stream that holds the events of an answer."""
    return EVENTS_PREFIX + job_id


def session(user_uuid: UUID, session_id: str) -> str:
    """How the worker names a session of a user, in `HOLDERS` and behind `TURNS_PREFIX`."""
    return f"{user_uuid.hex}:{session_id}"


def turns(session: str) -> str:
    """The turns of a session that wait for another one of it."""
    return TURNS_PREFIX + session


def gate(provider: str, model: str) -> str:
    """What the workers know of a model's limits and faults."""
    return f"{GATE_PREFIX}{provider}:{model}"


def reader(token: str) -> str:
    """The stream by which a client ends its own blocking read."""
    return READER_PREFIX + token


def kept_answer(job_id: str) -> str:
    """A whole answer that PostgreSQL has not stored yet."""
    return KEPT_ANSWER_PREFIX + job_id


def older_task(job_id: str) -> str:
    """Where an older producer that pushes an id has put the JSON object."""
    return OLDER_TASK_PREFIX + job_id


def older_channel(user_uuid: str, session_id: str) -> str:
    """The Pub/Sub channel on which older readers hear an answer."""
    return f"chat:stream:{user_uuid}-{session_id}"

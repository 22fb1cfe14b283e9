"""`protostar jobs` and `protostar retry`: lists queued, running and dead jobs, and queues a dead job again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from protostar_client import keys

from protostar.cli.support.connection import redis_at
from protostar.cli.support.errors import CommandError, failing_on, using_redis
from protostar.cli.support.options import Job
from protostar.cli.support.output import column, note, one_line, span, write, write_json
from protostar.settings import RedisSettings, load

if TYPE_CHECKING:
    from tasks.monitoring.dead_letters import DeadLetter
    from tasks.monitoring.queued_jobs import QueuedJob

_COLUMNS: Final = {
    "job": 36, "state": 8, "age": 7, "attempt": 7, "function": 17, "mode": 12, "session": 16, "user": 36, "where": 0
}  # fmt: skip
_DEAD_COLUMNS: Final = {"job": 36, "given up (UTC)": 19, "attempt": 7, "function": 17, "why": 0}


class State(StrEnum):
    """The states of the jobs to list."""

    QUEUED = "queued"
    RUNNING = "running"
    DEAD = "dead"


def jobs(
    state: Annotated[State | None, typer.Option(help="Only these jobs.", show_default="queued and running")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per job.")] = False,
) -> None:
    """List jobs: queued and running ones the oldest first, dead ones the newest first."""
    with using_redis():
        if state is State.DEAD:
            asyncio.run(_list_dead(load(RedisSettings), json=json))
        else:
            running = None if state is None else state is State.RUNNING
            asyncio.run(_list(load(RedisSettings), running=running, json=json))


def retry(job: Job) -> None:
    """Put a dead job back into the queue, with all its attempts."""
    with using_redis():
        asyncio.run(_retry(load(RedisSettings), job))
    note(f"job {job} is queued again; to see its answer: protostar watch {job}")


def _row(columns: Mapping[str, int], *values: object) -> str:
    cells = (column(value, width) for value, width in zip(values, columns.values(), strict=True))
    return "  ".join(cells).rstrip() + "\n"


async def _list(settings: RedisSettings, *, running: bool | None, json: bool) -> None:
    from tasks.monitoring.queued_jobs import queued_jobs

    async with redis_at(settings) as redis:
        is_first = True
        async for job in queued_jobs(redis, running=running):
            if json:
                write_json(job.model_dump())
                continue
            if is_first:
                write(_row(_COLUMNS, *_COLUMNS))
            write(_readable(job))
            is_first = False
        if is_first and not json:
            note("no job runs" if running else "no job is queued")
        if not json and running is None and (dead := await redis.xlen(keys.DEAD)):
            note(f"{dead} jobs were given up: protostar jobs --state dead")


def _readable(job: QueuedJob) -> str:
    where = ""
    match job.state:
        case "running":
            where = f"on {job.owner}"
        case "waiting":
            where = f"after {job.waits_for}"
        case "deferred":
            where = f"due in {span(job.due_s)}"
    texts = (job.function, job.mode, job.session_id, job.user_uuid, where)
    shown = (one_line(text) or "-" for text in texts)
    return _row(_COLUMNS, one_line(job.job_id), job.state, span(job.age_s), job.attempt, *shown)


async def _list_dead(settings: RedisSettings, *, json: bool) -> None:
    from tasks.monitoring.dead_letters import dead_letters

    async with redis_at(settings) as redis:
        is_first = True
        async for letter in dead_letters(redis):
            if json:
                write_json(_as_json(letter))
                continue
            if is_first:
                write(_row(_DEAD_COLUMNS, *_DEAD_COLUMNS))
            write(_readable_dead(letter))
            is_first = False
    if is_first and not json:
        note("no job was given up")


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in letter.__slots__} | {"state": State.DEAD.value}


def _readable_dead(letter: DeadLetter) -> str:
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    why = one_line(f"{letter.code}: {letter.message}")
    return _row(_DEAD_COLUMNS, one_line(letter.job_id), at, letter.attempt, one_line(letter.function) or "-", why)


async def _retry(settings: RedisSettings, job: str) -> None:
    from tasks.monitoring.dead_letters import dead_letters, put_back

    async with redis_at(settings) as redis:
        async for letter in dead_letters(redis):
            if letter.job_id != job:
                continue
            with failing_on(ValueError):
                if await put_back(redis, letter):
                    return
                raise CommandError(f"job {job} is queued already")
    raise CommandError(f"there is no dead job {job}; `protostar jobs --state dead` lists those there are")

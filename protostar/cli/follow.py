"""`protostar watch` and `protostar cancel`: a job that was enqueued elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from protostar_client import ChatClient, JobHandle, keys
from protostar_client.codec import load_json
from protostar_client.contract import check_job_id
from protostar_client.entry import EntryId
from protostar_client.handle import CANCEL_TIMEOUT_S
from redis.asyncio import Redis

from protostar.cli.support.answer_view import AnswerView, cancel_on_signals
from protostar.cli.support.connection import redis_at
from protostar.cli.support.errors import INTERRUPTED, CommandError, using_client, using_redis
from protostar.cli.support.options import Job
from protostar.cli.support.output import note
from protostar.settings import RedisSettings, load


def watch(
    job: Job,
    last_id: Annotated[
        str | None, typer.Option(help="Continue after the event with this id.", show_default="from the beginning")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event.")] = False,
) -> None:
    """Print a job's answer from the beginning, or after an event, until it ends. Ctrl-C does not cancel the job.

    Exits with 0 where the answer was completed, with 1 where it failed or was cancelled.
    """
    view = AnswerView(json=json)
    try:
        with using_client(), using_redis():
            check_job_id(job)
            if last_id is not None:
                EntryId.parse(last_id)
            asyncio.run(_watch(load(RedisSettings), view, job, last_id))
    except asyncio.CancelledError:
        _say_how_to_go_on(job, view.last_id or last_id)
        raise typer.Exit(INTERRUPTED) from None
    except CommandError:
        if view.last_id is not None and not view.has_ended:
            _say_how_to_go_on(job, view.last_id)
        raise


def _say_how_to_go_on(job: str, last_id: str | None) -> None:
    note(f"to go on: protostar watch {job}" + (f" --last-id {last_id}" if last_id else ""))


async def _watch(settings: RedisSettings, view: AnswerView, job: str, last_id: str | None) -> None:
    cancel_on_signals()
    async with _job(settings, job) as (handle, _):
        if handle is None:
            raise CommandError(f"job {job} is not a question, so it has no answer; `protostar jobs` shows it")
        await view.follow(handle, last_id)
        if not view.has_ended:  # it had been seen before: how it ended decides the exit code still
            await handle.result(timeout_s=CANCEL_TIMEOUT_S)


def cancel(job: Job) -> None:
    """Cancel a queued or running job and wait until it has ended. The text of a partial answer is kept."""
    with using_client(), using_redis():
        check_job_id(job)
        try:
            is_cancelled = asyncio.run(_cancel(load(RedisSettings), job))
        except TimeoutError:
            raise CommandError(
                f"job {job} was asked to end, but no worker has ended it within {CANCEL_TIMEOUT_S:.0f} s; "
                "it will, as soon as one can: `protostar status` shows the workers"
            ) from None
    if not is_cancelled:
        raise CommandError(f"job {job} was not cancelled: it had ended")
    note(f"job {job} is cancelled")


async def _cancel(settings: RedisSettings, job: str) -> bool:
    async with _job(settings, job) as (handle, redis):
        if handle is not None:
            return await handle.cancel()
        return await _abort(redis, job)


async def _abort(redis: Redis, job: str) -> bool:
    """Abort a job that belongs to no user, as any ARQ client does."""
    from arq.connections import ArqRedis
    from arq.jobs import Job as ArqJob

    if not await redis.exists(keys.job(job)):
        return False  # an abort that no job consumes could kill the next job of this id
    arq_job = ArqJob(job, ArqRedis(redis.connection_pool), _deserializer=load_json)
    return await arq_job.abort(timeout=CANCEL_TIMEOUT_S)


@asynccontextmanager
async def _job(settings: RedisSettings, job: str) -> AsyncIterator[tuple[JobHandle | None, Redis]]:
    """Return the handle of a job of any user; None where the job has no user, as a reindex.

    Raises:
        CommandError: there is no such job.
    """
    from tasks.monitoring.queued_jobs import is_known, user_of

    redis_url = settings.redis_url.get_secret_value()
    async with ChatClient.connect(redis_url) as client, redis_at(settings) as redis:
        user = await user_of(redis, job)
        if user is None and not await is_known(redis, job):
            raise CommandError(
                f"job {job} is not known: it never was, or its result has expired; `protostar history` shows "
                "what was stored of a session"
            )
        yield (None if user is None else client.handle(job, user_uuid=user)), redis

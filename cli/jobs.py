"""`protostar dead` and `protostar retry`: jobs that were given up, and another try for them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cli.errors import CommandError, failing_on
from cli.output import note, write, write_json
from settings import RedisSettings, SettingsError, load

if TYPE_CHECKING:
    from tasks.dead_letters import DeadLetter


def dead(json: Annotated[bool, typer.Option("--json", help="One JSON object a job.")] = False) -> None:
    """List the jobs that were given up, the newest first, and why."""
    with failing_on(SettingsError):
        settings = load(RedisSettings)
    try:
        asyncio.run(_list(settings, json))
    except (RedisError, OSError) as error:
        raise CommandError(f"{error}; check REDIS_URL and the server") from error


def retry(job: Annotated[str, typer.Argument(help="The id of a job that was given up.")]) -> None:
    """Queue a job again that was given up, with all its attempts."""
    with failing_on(SettingsError):
        settings = load(RedisSettings)
    try:
        asyncio.run(_retry(settings, job))
    except (RedisError, OSError) as error:
        raise CommandError(f"{error}; check REDIS_URL and the server") from error
    note(f"job {job} is queued again")


async def _list(settings: RedisSettings, as_json: bool) -> None:
    from tasks.dead_letters import dead_letters

    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        async for letter in dead_letters(redis):
            write_json(asdict(letter)) if as_json else write(_readable(letter))


async def _retry(settings: RedisSettings, job: str) -> None:
    from tasks.dead_letters import dead_letters, put_back

    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        async for letter in dead_letters(redis):
            if letter.job_id != job:
                continue
            with failing_on(ValueError):
                if await put_back(redis, letter):
                    return
                raise CommandError(f"job {job} is queued already")
    raise CommandError(f"there is no dead job {job}; `protostar dead` lists those there are")


def _readable(letter: DeadLetter) -> str:
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds")
    return f"{letter.job_id}  {at}  attempt {letter.attempt}  {letter.code}: {letter.message}\n"

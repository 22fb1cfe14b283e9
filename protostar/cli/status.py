"""`protostar status`: the status of all parts, once or live."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Final

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.live import Live
from rich.text import Text

from protostar.cli.support.connection import redis_at
from protostar.cli.support.errors import CommandError, using_redis
from protostar.cli.support.output import write, write_json
from protostar.cli.support.status_view import status_text
from protostar.settings import DatabaseSettings, RedisSettings, load

if TYPE_CHECKING:
    from tortoise.backends.base.client import BaseDBAsyncClient

    from tasks.monitoring.status import Status
    from tasks.monitoring.store_status import StoreStatus

_ANSWER_TIMEOUT_S: Final = 5.0


def status(
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot and exit, also on a terminal.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between snapshots.")] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print one snapshot as a JSON object.")] = False,
) -> None:
    """Show workers, queue, models, outbox and index; on a terminal refreshed until Ctrl-C."""
    is_live = not once and not json and sys.stdout is not None and sys.stdout.isatty()
    with using_redis():
        if is_live:
            asyncio.run(_live(every))
        else:
            asyncio.run(_once(json=json))


async def _once(*, json: bool) -> None:
    async with _Source() as source:
        status = await source.read()
    if json:
        write_json(status.model_dump(mode="json"))
    else:
        write(status_text(status).plain)
    if source.problem:
        raise CommandError(source.problem)


async def _live(every_s: float) -> None:
    console = Console()
    async with _Source() as source:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                began_s = time.monotonic()
                live.update(await _picture(source), refresh=True)
                await asyncio.sleep(max(0.1, began_s + every_s - time.monotonic()))


async def _picture(source: _Source) -> Text:
    """Format a snapshot; it names a part that does not answer, which the next snapshot asks again."""
    try:
        with using_redis():
            text = status_text(await source.read())
    except CommandError as error:
        return Text(f"{error}; it is tried again", style="red")
    return text.append(f"\n{source.problem}; it is tried again", style="red") if source.problem else text


class _Source:
    """Reads snapshots from Redis, and from PostgreSQL while it can be reached; `problem` explains why not."""

    def __init__(self) -> None:
        self.problem = ""
        self._stack = AsyncExitStack()
        self._database: BaseDBAsyncClient | None = None

    async def __aenter__(self) -> _Source:
        self._redis: Redis = await self._stack.enter_async_context(redis_at(load(RedisSettings)))
        self._database_url = load(DatabaseSettings).database_url.get_secret_value()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def read(self) -> Status:
        """A snapshot.

        Raises:
            RedisError, OSError: Redis can't be asked.
        """
        from tasks.monitoring.status import read_status

        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            status = await read_status(self._redis, None)
        return status.model_copy(update={"store": await self._read_store()})

    async def _read_store(self) -> StoreStatus | None:
        from tortoise.exceptions import BaseORMException

        from models.database import DatabaseError, connect
        from models.transaction import is_transient
        from tasks.monitoring.store_status import read_store

        self.problem = ""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                if self._database is None:
                    self._database = await self._stack.enter_async_context(connect(self._database_url))
                return await read_store(self._database)
        except DatabaseError as error:
            self.problem = str(error)
        except Exception as error:
            if not is_transient(error) and not isinstance(error, BaseORMException):
                raise
            self.problem = f"PostgreSQL can't be asked: {str(error) or 'no answer'}; check DATABASE_URL and the server"
        return None

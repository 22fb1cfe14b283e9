"""Gives all checks access to Redis, PostgreSQL and the corpus folder, each of which is reached once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, TypeVar, cast

from protostar_client.redis_connection.pool import async_pool
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from tortoise.backends.base.client import BaseDBAsyncClient

from models.database import DatabaseError, connect, pending_migrations
from protostar.cli.checks.environment import Examined
from protostar.cli.checks.finding import Away, told
from protostar.settings import Settings
from rag.corpus.walk import IGNORED, CorpusError, Walk, walk
from tasks.monitoring.status import Status, read_status
from tasks.monitoring.store_status import StoreStatus, read_store

T = TypeVar("T")

REACH_S: Final = 3.0
"""The time that a server has to answer."""

_CLOSE_S: Final = 1.0


class Site:
    """Redis, PostgreSQL and the corpus folder, each reached at most once; `close` closes the connections.

    Every method raises `Away` where its part can't be used.
    """

    def __init__(self, examined: Examined) -> None:
        self.settings: Settings = examined.settings
        self.wrong = examined.wrong
        self.problems = examined.problems
        self._shared: dict[str, asyncio.Task[Any]] = {}
        self._stack = AsyncExitStack()

    async def close(self) -> None:
        """Close the connections, also to a server that does not answer."""
        for task in self._shared.values():
            task.cancel()
        await asyncio.gather(*self._shared.values(), return_exceptions=True)
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_S):
                await self._stack.aclose()

    async def redis(self) -> Redis:
        """A connection to Redis that has answered."""
        return await self._once("redis", self._reach_redis)

    async def redis_info(self) -> dict[str, Any]:
        """Return the reply of INFO."""
        return await self._once("redis_info", self._read_redis_info)

    async def database(self) -> BaseDBAsyncClient:
        """A connection to PostgreSQL that has answered."""
        return await self._once("database", self._reach_database)

    async def migrated(self) -> BaseDBAsyncClient:
        """A connection to a database whose schema is current."""
        return await self._once("migrated", self._check_schema)

    async def status(self) -> Status:
        """Return the status of workers and queue."""
        return await self._once("status", self.status_now)

    async def status_now(self) -> Status:
        """Read the status again."""
        return await read_status(await self.redis(), None)

    async def store(self) -> StoreStatus:
        """Return the status of outbox and index."""
        return await self._once("store", self._read_store)

    async def walk(self) -> Walk:
        """Return the files of the corpus folder."""
        return await self._once("walk", self._walk)

    async def _once(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if name not in self._shared:
            self._shared[name] = asyncio.create_task(make(), name=name)
        return cast(T, await asyncio.shield(self._shared[name]))

    def require(self, *variables: str) -> None:
        """Raise `Away` if one of these variables is wrong."""
        for variable in variables:
            if variable in self.wrong:
                raise Away("settings", f"{variable} is wrong", "", "")

    async def _reach_redis(self) -> Redis:
        self.require("REDIS_URL")
        why, check = "Redis is unreachable", "check REDIS_URL, and that the server runs"
        try:
            pool = async_pool(self.settings.redis_url.get_secret_value(), socket_connect_timeout=REACH_S)
            server: Redis = Redis.from_pool(pool)
        except ValueError:  # its text may quote a piece of the password
            raise Away("redis", why, "REDIS_URL is no URL", "write it as redis://user:password@host:6379/0") from None
        self._stack.push_async_callback(server.aclose)
        try:
            async with asyncio.timeout(REACH_S):
                await cast(Awaitable[bool], server.ping())
        except TimeoutError:
            cause = f"Redis is unreachable: no answer within {REACH_S:g} s"
            raise Away("redis", why, cause, f"{check} and is not frozen") from None
        except (RedisError, OSError) as error:
            # What Redis answers to a new connection comes wrapped.
            if isinstance(error.__cause__ or error, AuthenticationError | NoPermissionError):
                cause = f"Redis refuses the credentials: {error}"
                raise Away("redis", why, cause, "check the user and the password in REDIS_URL") from None
            raise Away("redis", why, f"Redis is unreachable: {str(error).rstrip('.')}", check) from None
        return server

    async def _read_redis_info(self) -> dict[str, Any]:
        server = await self.redis()
        try:
            return cast(dict[str, Any], await server.info())
        except ResponseError as error:
            raise Away("redis_info", f"Redis refuses INFO ({error})", "", "") from None

    async def _reach_database(self) -> BaseDBAsyncClient:
        self.require("DATABASE_URL")
        url = self.settings.database_url.get_secret_value()
        try:
            async with asyncio.timeout(REACH_S):
                return await self._stack.enter_async_context(connect(url, require_schema=False))
        except TimeoutError:
            cause = f"PostgreSQL is unreachable: no answer within {REACH_S:g} s"
            remedy = "check DATABASE_URL, and that the server runs and is not frozen"
        except DatabaseError as error:
            cause, remedy = told(str(error))
            if "authentication" not in cause and "does not exist" not in cause:
                cause = cause.replace("can't be used", "is unreachable")
        raise Away("postgres", "PostgreSQL is unreachable", cause, remedy)

    async def _check_schema(self) -> BaseDBAsyncClient:
        database = await self.database()
        if missing := await pending_migrations(database):
            cause = f"the database is not migrated: {', '.join(missing)} missing"
            raise Away("schema", "the database is not migrated", cause, "run: protostar migrate")
        return database

    async def _read_store(self) -> StoreStatus:
        return await read_store(await self.migrated())

    async def _walk(self) -> Walk:
        self.require("PROTOSTAR_CORPUS_DIR")
        settings = self.settings
        ignore = IGNORED + settings.corpus_ignore
        try:
            return await in_thread(
                lambda: walk(settings.corpus_dir, max_file_bytes=settings.max_file_bytes, ignore=ignore)
            )
        except CorpusError as error:
            cause, remedy = told(str(error))
        except OSError as error:
            cause = f"the corpus folder {settings.corpus_dir} can't be read ({error.strerror})"
            remedy = "allow the account of the workers to read it"
        raise Away("corpus", "the corpus folder can't be used", cause, remedy)


async def in_thread(work: Callable[[], T]) -> T:
    """Run as `asyncio.to_thread` does, in a thread that does not delay the exit: a lost disk may never answer."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: object) -> None:
        if not done.done():
            set_it(value)

    def run() -> None:
        try:
            result: object = work()
            set_it: Callable[[Any], None] = done.set_result
        except BaseException as error:
            result, set_it = error, done.set_exception
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, set_it, result)

    threading.Thread(target=run, daemon=True).start()
    return await done

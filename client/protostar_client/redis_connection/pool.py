"""Pools of connections to Redis, for asyncio and blocking.

A connection closes itself when its server refuses to serve, for example as a demoted primary (`READONLY`): the next
command connects again, by then perhaps to another server, because the host name or the Sentinel is asked again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import redis.asyncio.sentinel as async_sentinel
import redis.sentinel as sync_sentinel
from redis import asyncio as aio
from redis import connection as sync
from redis.asyncio import connection as asynchronous
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from protostar_client.redis_connection.url import parse

# Redis 6 and older put the code of a command's error into the middle of a script's error.
_UNAVAILABLE: Final = re.compile(r"(?:^| -)(?:READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|NOREPLICAS|UNBLOCKED) ")


_ASK_EVERY_S: Final = 1.0
_ASK_AGAIN_S: Final = 10.0  # while no Sentinel answers: asking takes a second for each


def async_pool(url: str, **options: Any) -> aio.ConnectionPool:
    """Make a pool of connections for asyncio. `options` win over the URL's.

    Raises:
        ValueError: as `parse`.
    """
    target = parse(url)
    options = _named(target.options | options, _connect_async)
    if not target.sentinels:
        return aio.ConnectionPool(connection_class=_ASYNC[target.scheme], **options)
    sentinel = async_sentinel.Sentinel(target.sentinels, sentinel_kwargs=target.sentinel_options)  # type: ignore[no-untyped-call]
    connection = _AsyncSentinelTls if target.uses_tls else _AsyncSentinel
    return _AsyncSentinelPool(target.service, sentinel, connection_class=connection, **options)  # type: ignore[no-untyped-call]


def sync_pool(url: str, **options: Any) -> sync.ConnectionPool:
    """Make a pool of blocking connections. `options` win over the URL's.

    Raises:
        ValueError: as `parse`.
    """
    target = parse(url)
    options = _named(target.options | options, _connect_sync)
    if not target.sentinels:
        return sync.ConnectionPool(connection_class=_SYNC[target.scheme], **options)
    sentinel = sync_sentinel.Sentinel(target.sentinels, sentinel_kwargs=target.sentinel_options)  # type: ignore[no-untyped-call]
    connection = _SyncSentinelTls if target.uses_tls else _SyncSentinel
    return _SyncSentinelPool(target.service, sentinel, connection_class=connection, **options)  # type: ignore[no-untyped-call]


def _is_unavailable(error: RedisError) -> bool:
    return isinstance(error, ReadOnlyError | BusyLoadingError) or bool(_UNAVAILABLE.search(str(error)))


def _named(options: dict[str, Any], connect: Callable[..., Any]) -> dict[str, Any]:
    name = options.pop("client_name", None)
    return options | {"redis_connect_func": partial(connect, name=name)} if name else options


async def _connect_async(connection: Any, *, name: str) -> None:
    """Log a connection in and name it, where the server permits names."""
    await connection.on_connect()
    with suppress(ResponseError):
        await connection.send_command("CLIENT", "SETNAME", name)
        await connection.read_response()


def _connect_sync(connection: Any, *, name: str) -> None:
    """As `_connect_async`, for a blocking connection."""
    connection.on_connect()
    with suppress(ResponseError):
        connection.send_command("CLIENT", "SETNAME", name)
        connection.read_response()


class _AsyncMixin:
    """Closes a connection whose server refuses to serve."""

    async def read_response(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except RedisError as error:
            if not _is_unavailable(error):
                raise
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"the server refuses to serve: {error}") from error


class _SyncMixin:
    """As `_AsyncMixin`, for blocking connections."""

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except RedisError as error:
            if not _is_unavailable(error):
                raise
            self.disconnect()
            raise RedisConnectionError(f"the server refuses to serve: {error}") from error


class _AsyncTcp(_AsyncMixin, asynchronous.Connection): ...


class _AsyncTls(_AsyncMixin, asynchronous.SSLConnection): ...


class _AsyncUnix(_AsyncMixin, asynchronous.UnixDomainSocketConnection): ...


class _AsyncSentinel(_AsyncMixin, async_sentinel.SentinelManagedConnection): ...


class _AsyncSentinelTls(_AsyncMixin, async_sentinel.SentinelManagedSSLConnection): ...


class _SyncTcp(_SyncMixin, sync.Connection): ...


class _SyncTls(_SyncMixin, sync.SSLConnection): ...


class _SyncUnix(_SyncMixin, sync.UnixDomainSocketConnection): ...


class _SyncSentinel(_SyncMixin, sync_sentinel.SentinelManagedConnection): ...


class _SyncSentinelTls(_SyncMixin, sync_sentinel.SentinelManagedSSLConnection): ...


_ASYNC: Final[dict[str, type[Any]]] = {"redis": _AsyncTcp, "rediss": _AsyncTls, "unix": _AsyncUnix}
_SYNC: Final[dict[str, type[Any]]] = {"redis": _SyncTcp, "rediss": _SyncTls, "unix": _SyncUnix}


class _AsyncSentinelPool(async_sentinel.SentinelConnectionPool):
    """A pool that leaves a primary as soon as the Sentinels name another one.

    After a planned failover the former primary takes writes for about ten seconds more, and loses them.
    """

    _ask_from_s = 0.0

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        if time.monotonic() >= self._ask_from_s:
            self._ask_from_s = time.monotonic() + _ASK_EVERY_S
            try:
                await self._follow()
            except (RedisError, OSError):
                self._ask_from_s = time.monotonic() + _ASK_AGAIN_S
        return await super().get_connection(*args, **options)

    async def _follow(self) -> None:
        former = self.master_address
        address = await self.get_master_address()  # type: ignore[no-untyped-call]
        if former not in (None, address):
            await super().disconnect(inuse_connections=True)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


class _SyncSentinelPool(sync_sentinel.SentinelConnectionPool):
    """As `_AsyncSentinelPool`, for blocking connections."""

    _ask_from_s = 0.0

    def get_connection(self, *args: Any, **options: Any) -> Any:
        if time.monotonic() >= self._ask_from_s:
            self._ask_from_s = time.monotonic() + _ASK_EVERY_S
            try:
                self._follow()
            except (RedisError, OSError):
                self._ask_from_s = time.monotonic() + _ASK_AGAIN_S
        return super().get_connection(*args, **options)

    def _follow(self) -> None:
        former = self.master_address
        address = self.proxy.get_master_address()  # type: ignore[no-untyped-call]
        if former not in (None, address):
            super().disconnect(inuse_connections=True)

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()

"""Connections to servers that are there but refuse to serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from protostar_client.redis_connection.pool import async_pool, sync_pool
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stack.places import Account
from tests.support.redis_servers import TcpRedis
from tests.support.stack_under_test import until

REFUSALS = {
    "READONLY": ([], ["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
    "MASTERDOWN": (["--replica-serve-stale-data", "no"], ["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
    "CLUSTERDOWN": (["--cluster-enabled", "yes"], ["CLUSTER FLUSHSLOTS"], ["CLUSTER ADDSLOTSRANGE 0 16383"]),
}


@asynccontextmanager
async def connected(server: TcpRedis) -> AsyncIterator[tuple[Redis, SyncRedis]]:
    blocking = SyncRedis.from_pool(sync_pool(server.url))
    async with Redis.from_pool(async_pool(server.url)) as asynchronous:
        yield asynchronous, blocking
    blocking.close()


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_connection_whose_server_refuses_is_opened_again(
    refusal: str, base_folder: Path, account: Account | None
) -> None:
    options, refuse, serve = REFUSALS[refusal]
    with TcpRedis(base_folder, account, *options, name="refusing") as server:
        async with connected(server) as (asynchronous, blocking):
            former = (await asynchronous.client_id(), blocking.client_id())
            for command in refuse:
                server.call(*command.split())
            with pytest.raises(RedisConnectionError, match="refuses to serve"):
                await asynchronous.set("a", "b")
            with pytest.raises(RedisConnectionError, match="refuses to serve"):
                blocking.set("a", "b")
            for command in serve:
                server.call(*command.split())

            async def serves() -> bool:
                try:
                    return bool(await asynchronous.set("a", "b") and blocking.set("a", "b"))
                except RedisConnectionError:
                    return False

            await until(serves, "the server serves")
            assert await asynchronous.client_id() != former[0]
            assert blocking.client_id() != former[1]


async def test_a_server_that_loads_its_data_is_waited_for(base_folder: Path, account: Account | None) -> None:
    with TcpRedis(base_folder, account, name="loading") as server:
        with SyncRedis(port=server.port) as filling:
            filling.mset({f"key:{number}": "value" for number in range(2000)})
            filling.save()
        server.stop()
    delay = ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
    with TcpRedis(base_folder, account, *delay, name="loading") as server:
        async with connected(server) as (asynchronous, blocking):
            with pytest.raises(RedisConnectionError):
                await asynchronous.get("key:1")
            with pytest.raises(RedisConnectionError):
                await asyncio.to_thread(blocking.get, "key:1")

            async def loaded() -> bool:
                try:
                    return bool(await asynchronous.get("key:1") == blocking.get("key:1") == b"value")
                except RedisConnectionError:
                    return False

            await until(loaded, "the data is loaded")

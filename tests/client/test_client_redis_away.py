"""The client while Redis is away or its replies are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from protostar_client import (
    ChatClient,
    ConnectionLost,
    JobHandle,
    keys,
)
from redis.asyncio import Redis

import stack.redis
from tests.support.played_worker import PlayedWorker, ask, blocked, ids
from tests.support.stack_under_test import until

pytest_plugins = ["tests.support.client_fixtures"]


@asynccontextmanager
async def losing_replies(redis_url: str, *, to: bytes, times: int) -> AsyncIterator[str]:
    """A server in front of Redis that carries out every command, but loses the first replies to one."""
    socket_path = redis_url.removeprefix("unix://")
    left = times

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(socket_path)
        try:
            while command := await reader.read(65_536):
                upstream_writer.write(command)
                reply = await upstream_reader.read(65_536)
                if to in command.upper() and not reply.startswith(b"-") and left > 0:
                    left -= 1
                    return
                writer.write(reply)
        finally:
            upstream_writer.close()
            writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert left == 0 or times > 1


async def test_a_lost_reply_is_no_duplicate(redis_url: str, redis: Redis) -> None:
    async with (
        losing_replies(redis_url, to=b"EVALSHA", times=1) as lossy_url,
        ChatClient.connect(lossy_url) as client,
    ):
        handle = await ask(client, job_id="turn")
    assert handle.created
    assert await redis.zrange(keys.QUEUE, 0, -1) == [b"turn"]


async def test_a_connection_that_stays_lost_names_the_id_to_enqueue_again(
    redis_url: str, redis: Redis, client: ChatClient
) -> None:
    async with (
        losing_replies(redis_url, to=b"EVALSHA", times=1_000) as lossy_url,
        ChatClient.connect(lossy_url, patience_s=0.2) as lossy,
    ):
        with pytest.raises(ConnectionLost) as caught:
            await ask(lossy)
    assert caught.value.job_id is not None
    await ask(client, job_id=caught.value.job_id)
    assert await redis.zrange(keys.QUEUE, 0, -1) == [caught.value.job_id.encode()]


async def test_a_reader_outlives_a_restart_of_redis(
    handle: JobHandle, worker: PlayedWorker, redis_server: stack.redis.Redis
) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    events = handle.events()
    assert (await anext(events)).id == "1-1"
    following = asyncio.ensure_future(anext(events))
    await asyncio.to_thread(redis_server.stop)
    redis_server.start()  # here, for it dies with the thread that started it
    await worker.say(handle.job_id, "1-2", "delta", text="글")
    assert (await asyncio.wait_for(following, 10)).id == "1-2"
    await events.aclose()


async def test_readers_of_a_redis_that_stays_away_are_told(redis_url: str, redis_server: stack.redis.Redis) -> None:
    async with ChatClient.connect(redis_url, patience_s=0.3) as client:
        handle = await ask(client)
        readings = [asyncio.create_task(ids(handle)) for _ in range(50)]
        async with Redis.from_url(redis_url) as redis:
            await until(lambda: blocked(redis), "a read blocks")
        await asyncio.to_thread(redis_server.stop)
        for ended in await asyncio.wait_for(asyncio.gather(*readings, return_exceptions=True), 10):
            assert isinstance(ended, ConnectionLost)


async def test_connect_to_nothing_fails_at_once_with_one_line() -> None:
    with pytest.raises(ConnectionLost, match=r"^Redis can't be reached: [^\n]+$"):
        async with ChatClient.connect("redis://127.0.0.1:1/0"):
            pass

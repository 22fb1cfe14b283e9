"""Fixtures for tests of the client; a test module takes them in with `pytest_plugins`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from protostar_client import ChatClient, JobHandle, keys
from redis.asyncio import Redis

from tests.support.played_worker import PlayedWorker, ask


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def worker(redis: Redis) -> PlayedWorker:
    return PlayedWorker(redis)


@pytest.fixture
async def heard(redis: Redis) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Waits for the next wake-up of an idle worker."""

    async def next_message() -> str:
        while True:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=5)
            if message is not None:
                return str(message["data"].decode())

    async with redis.pubsub() as channel:
        await channel.subscribe(keys.WAKE)
        await channel.get_message(timeout=5)
        yield lambda: asyncio.wait_for(next_message(), 5)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[ChatClient]:
    async with ChatClient.connect(redis_url) as connected:
        yield connected


@pytest.fixture
async def handle(client: ChatClient) -> JobHandle:
    return await ask(client)

"""The older protocol keeps a bounded number of bytes, and can be switched off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast
from uuid import uuid4

import pytest
from protostar_client import keys
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from tasks.legacy.intake import (
    DEAD_ELEMENT_MAX_CHARACTERS,
    DEAD_MAX_ELEMENTS,
    OlderIntake,
    UnusableElementError,
    bury,
    parse_element,
)
from tests.support.stack_under_test import Stack, until


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def push(redis: Redis, key: str, value: str | bytes) -> None:
    await cast(Awaitable[int], redis.lpush(key, value))


async def dead(redis: Redis) -> list[dict[str, Any]]:
    elements = await cast(Awaitable[list[bytes]], redis.lrange(keys.OLDER_DEAD, 0, -1))
    return [json.loads(element) for element in elements]


async def until_end(channel: PubSub) -> AsyncIterator[dict[str, Any]]:
    """What is published on the channels, up to the message `end`."""
    async for message in channel.listen():
        if message["type"] == "pmessage":
            yield message
            if message["data"] == b"end":
                return


async def test_a_large_unusable_element_is_cut(redis: Redis) -> None:
    await push(redis, keys.OLDER_QUEUE, b"{" + b"\xff" * 9_000_000)
    intake = OlderIntake(redis)
    try:
        await until(lambda: redis.exists(keys.OLDER_DEAD), "the element is dead")
    finally:
        await intake.close()
    [letter] = await dead(redis)
    assert len(letter["element"]) == DEAD_ELEMENT_MAX_CHARACTERS
    assert "larger than" in letter["reason"]


async def test_dead_elements_are_bounded_in_number(redis: Redis) -> None:
    for number in range(DEAD_MAX_ELEMENTS + 10):
        element = f"{number} ".encode() + b"\x00" * 2 * DEAD_ELEMENT_MAX_CHARACTERS
        await push(redis, keys.OLDER_QUEUE, element)
        assert await bury(redis, element, UnusableElementError("garbage")) == b"buried"
    letters = await dead(redis)
    assert len(letters) == DEAD_MAX_ELEMENTS
    assert letters[0]["element"].startswith(f"{DEAD_MAX_ELEMENTS + 9} ")
    assert await redis.memory_usage(keys.OLDER_DEAD, samples=0) < 64 * 2**20


async def test_dead_elements_are_bounded_in_age(redis: Redis) -> None:
    await push(redis, keys.OLDER_DEAD, json.dumps({"reason": "", "element": "", "at": "2020-01-01T00:00:00.000+00:00"}))
    await push(redis, keys.OLDER_QUEUE, b"garbage")
    await bury(redis, b"garbage", UnusableElementError("garbage"))
    assert [letter["element"] for letter in await dead(redis)] == ["garbage"]
    assert 0 < await redis.ttl(keys.OLDER_DEAD) <= 30 * 86_400


@pytest.mark.parametrize("prefix", keys.OWN_JOB_IDS)
def test_an_id_of_the_workers_own_jobs_is_refused(prefix: str) -> None:
    element = {"uuid": str(uuid4()), "sessionId": "s", "content": "?", "jobId": f"{prefix}1"}
    with pytest.raises(UnusableElementError, match="jobId"):
        parse_element(json.dumps(element).encode())


async def test_switched_off_the_list_is_not_read_and_nothing_is_mirrored(stack: Stack) -> None:
    await push(stack.redis, keys.OLDER_QUEUE, "garbage")
    async with stack.redis.pubsub() as channel:
        await channel.psubscribe("chat:stream:*")
        await stack.start_worker(PROTOSTAR_OLDER_PROTOCOL="false")
        job = await stack.ask("question")
        assert (await stack.events(job.job_id))[-1]["type"] == "done"
        await stack.redis.publish("chat:stream:end", "end")
        heard = [message["data"] async for message in until_end(channel)]
    assert heard == [b"end"]
    assert await stack.redis.llen(keys.OLDER_QUEUE) == 1  # type: ignore[misc]


async def test_a_result_holds_no_page_and_a_history_is_kept_for_a_minute(stack: Stack) -> None:
    await stack.start_worker()
    user = str(uuid4())
    job = await stack.ask("question", user=user, mode="page_context", context="쪽" * 400_000)
    assert (await stack.events(job.job_id))[-1]["type"] in ("done", "error")
    record = await stack.result(job.job_id)
    assert record["k"]["user_uuid"] == user
    assert len(json.dumps(record)) < 20_000
    await stack.redis.enqueue_job("read_history", _job_id="history:1", user_uuid=user, session_id="s")
    await stack.result("history:1")
    assert 0 < await stack.redis.pttl("arq:result:history:1") <= 60_000

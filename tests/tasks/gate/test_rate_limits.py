"""Requests and tokens a minute: counted by Redis' clock, for all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from protostar_client import keys
from redis.asyncio import Redis

from tasks.gate.rate_limits import RateLimits

MODEL = "p:m"
REQUESTS = f"{keys.LIMITS}:requests:{MODEL}"
TOKENS = f"{keys.LIMITS}:tokens:{MODEL}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = Redis.from_url(redis_url)
    yield redis
    await redis.aclose()


def limits(redis: Redis, requests: int = 0, tokens: int = 0) -> RateLimits:
    return RateLimits(redis, requests_per_minute=requests, tokens_per_minute=tokens)


async def test_without_limits_nothing_is_counted(redis: Redis) -> None:
    assert await limits(redis).take(MODEL, tokens=10**9) == 0
    assert await limits(redis).left(MODEL) == (None, None)
    assert await redis.dbsize() == 0


async def test_requests_are_let_through_up_to_the_limit_and_wait_then(redis: Redis) -> None:
    some = limits(redis, requests=3)
    assert [await some.take(MODEL, tokens=1) for _ in range(3)] == [0, 0, 0]
    assert 50 < await some.take(MODEL, tokens=1) <= 60
    assert await some.left(MODEL) == (0, None)
    assert await some.take("p:other", tokens=1) == 0


async def test_of_requests_at_the_same_moment_only_the_limit_is_let_through(redis: Redis) -> None:
    waits_s = await asyncio.gather(*(limits(redis, requests=5).take(MODEL, tokens=1) for _ in range(20)))
    assert waits_s.count(0) == 5


async def test_a_request_that_is_a_minute_old_makes_room(redis: Redis) -> None:
    some = limits(redis, requests=2)
    await some.take(MODEL, tokens=1)
    await some.take(MODEL, tokens=1)
    oldest = int(await redis.lindex(REQUESTS, 0) or 0)  # type: ignore[misc]
    await redis.lset(REQUESTS, 0, str(oldest - 60_000))  # type: ignore[misc]
    assert await some.left(MODEL) == (1, None)
    assert await some.take(MODEL, tokens=1) == 0
    assert await some.take(MODEL, tokens=1) > 0


async def test_tokens_are_let_through_up_to_the_limit_and_the_wait_follows_what_is_missing(redis: Redis) -> None:
    some = limits(redis, tokens=600)
    assert await some.take(MODEL, tokens=500) == 0
    assert await some.left(MODEL) == (None, 100)
    assert await some.take(MODEL, tokens=200) == pytest.approx(10, abs=0.1)
    assert await some.take(MODEL, tokens=100) == 0


async def test_of_the_last_minute_that_share_counts_which_is_less_than_a_minute_ago(redis: Redis) -> None:
    some = limits(redis, tokens=600)
    await some.take(MODEL, tokens=600)
    minute = int(await redis.hget(TOKENS, "minute") or 0)  # type: ignore[misc]
    await redis.hset(TOKENS, "minute", str(minute - 1))  # type: ignore[misc]
    seconds, _ = await redis.time()
    _, left = await some.left(MODEL)
    assert left == pytest.approx(600 * (seconds % 60) / 60, abs=25)
    await redis.hset(TOKENS, "minute", str(minute - 2))  # type: ignore[misc]
    assert await some.left(MODEL) == (None, 600)


async def test_a_request_larger_than_the_minute_is_let_through_when_the_minute_is_whole(redis: Redis) -> None:
    some = limits(redis, tokens=600)
    assert await some.take(MODEL, tokens=10_000) == 0
    assert await some.take(MODEL, tokens=10_000) > 50


async def test_a_request_that_waits_for_tokens_takes_no_request(redis: Redis) -> None:
    some = limits(redis, requests=2, tokens=600)
    await some.take(MODEL, tokens=600)
    assert await some.take(MODEL, tokens=600) > 0
    assert await some.left(MODEL) == (1, 0)


async def test_what_is_counted_expires(redis: Redis) -> None:
    await limits(redis, requests=2, tokens=600).take(MODEL, tokens=1)
    assert 0 < await redis.pttl(REQUESTS) <= 60_000
    assert 0 < await redis.pttl(TOKENS) <= 120_000

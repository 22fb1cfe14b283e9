"""One snapshot of how everything stands: what workers, models, the outbox and the index say of themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from protostar_client import keys
from redis.asyncio import Redis
from tortoise import Tortoise

from models import OutboxJob
from models.database import connect
from rag.providers import RateLimitedError
from tasks.engine.heartbeat import Heartbeat
from tasks.gate.gate import Gate
from tasks.gate.rate_limits import RateLimits
from tasks.monitoring.status import read_status
from tasks.monitoring.store_status import read_store
from tasks.monitoring.worker_report import Beat

BEAT: dict[str, Any] = {"up_s": 7.5, "slots": {"chat": 2}, "busy": {"chat": 1}}


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:
        yield connection


@contextmanager
def beating(redis_url: str, owner: str, **beat: Any) -> Iterator[None]:
    """A worker of which there is nothing but its heart."""
    heart = Heartbeat(
        redis_url,
        owner=owner,
        lease_ms=15_000,
        health_key="health",
        health=str,
        beat=lambda: json.dumps(BEAT | beat),
        held=set,
        on_lost=print,
    )
    heart.start()
    yield
    heart.stop()


async def test_workers_are_told_by_their_heartbeats(redis_url: str, redis: Redis) -> None:
    await redis.sadd(keys.OWNERS, "gone", "older")  # type: ignore[misc]
    await redis.set(keys.ALIVE_PREFIX + "older", "1")
    await redis.sadd(keys.RUNNING_PREFIX + "gone", "a", "b")  # type: ignore[misc]
    with beating(redis_url, "one"), beating(redis_url, "two", is_stopping=True):
        status = await read_status(redis, None)
    gone, older, one, two = status.workers
    assert (gone.owner, gone.is_alive, gone.running, gone.beat_age_s) == ("gone", False, 2, None)
    assert (older.is_alive, older.beat_age_s, older.beat) == (True, None, Beat())
    assert (one.is_alive, one.beat.up_s, one.beat.slots) == (True, 7.5, {"chat": 2})
    assert one.beat_age_s is not None
    assert 0 <= one.beat_age_s < 15
    assert (one.beat.is_stopping, two.beat.is_stopping) == (False, True)
    assert (status.running_turns, status.store) == (2, None)


async def test_jobs_are_counted_by_what_they_wait_for(redis: Redis) -> None:
    [seconds, _] = await redis.time()
    now_ms = seconds * 1000
    queued = {"new": now_ms - 4000, "ready": -(now_ms - 9000), "waiting": -now_ms, "later": now_ms + 900_000}
    await redis.zadd(keys.QUEUE, queued)
    await redis.zadd(keys.READY_PREFIX + "summary", {"ready": now_ms - 9000})
    await redis.lpush(keys.OLDER_QUEUE, "older")  # type: ignore[misc]
    await redis.xadd(keys.DEAD, {"data": "{}"})
    queue = (await read_status(redis, None)).queue
    counts = (queue.length, queue.ready, queue.unseen, queue.waiting, queue.running, queue.deferred)
    assert counts == (4, 2, 1, 1, 0, 1)
    assert (queue.older, queue.dead, queue.classes["summary"].ready, queue.classes["chat"].ready) == (1, 1, 1, 0)
    assert queue.oldest_ready_s is not None
    assert queue.oldest_ready_s >= 9
    assert queue.oldest_ready_s == queue.classes["summary"].oldest_s


async def test_models_are_told_with_their_pause_and_what_is_left_of_their_limits(redis_url: str, redis: Redis) -> None:
    limits = RateLimits(redis, requests_per_minute=10, tokens_per_minute=1000)
    gate = Gate(redis, provider="p", owner="one", first_token_s=5, longest_wait_s=60, limits=limits)
    ticket = await gate.enter(["limited"], tokens=300)
    await ticket.failed(RateLimitedError("slow down", retry_after_s=40))
    told = {"provider": "p", "models": ["limited", "free"], "requests_per_minute": 10, "tokens_per_minute": 1000}
    with beating(redis_url, "one", **told), beating(redis_url, "two", **told):
        limited, free = (await read_status(redis, None)).models
    assert (limited.model, limited.reason, limited.is_down) == ("limited", "rate_limited", False)
    assert 30 < limited.paused_s <= 40
    assert (limited.requests_left, limited.tokens_left) == (9, 700)
    assert (free.paused_s, free.reason, free.requests_left, free.tokens_left) == (0, "", 10, 1000)


async def test_the_outbox_and_the_index_are_told(database_url: str) -> None:
    async with connect(database_url) as database:
        empty = await read_store(database)
        assert (empty.outbox.depth, empty.outbox.oldest_s, empty.index.generation) == (0, None, None)
        assert (empty.index.indexed_s, empty.index.last_error, empty.index.is_reindexing) == (None, None, False)
        await OutboxJob.create(job_id="summary:1", function="summarize_message", arguments={})
        execute = Tortoise.get_connection("default").execute_script
        await execute("UPDATE outbox_jobs SET created_at = now() - interval '90 seconds'")
        await execute(
            "INSERT INTO generations (settings, is_current, created_at) VALUES ('x', true, now() - interval '1 day');"
            "INSERT INTO reindex_runs (started_at, ended_at, error) VALUES"
            " (now() - interval '2 hours', now() - interval '1 hour', NULL), (now(), now(), 'its process died')"
        )
        told = await read_store(database)
    assert told.outbox.depth == 1
    assert told.outbox.oldest_s is not None
    assert 90 <= told.outbox.oldest_s < 600
    assert told.index.generation is not None
    assert told.index.indexed_s is not None
    assert 3600 <= told.index.indexed_s < 4000
    assert told.index.last_error == "its process died"

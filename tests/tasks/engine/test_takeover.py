"""Takeover: a worker is reaped when its lease has expired, or when its beats and its connection are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.heartbeat import Heartbeat
from tasks.engine.hooks import Observer
from tasks.engine.takeover import GONE_AFTER_S, Reaper
from tests.support.stack_under_test import until
from tests.tasks.engine.conftest import Places

MOST_S = 2.5
RULES: dict[str, list[str]] = {
    "all allowed": [],
    "client list refused": ["-client|list"],
    "dangerous commands refused": ["-@dangerous"],
    "names refused": ["-client|setname"],
}


@asynccontextmanager
async def beating(url: str, owner: str, lease_ms: int = 15_000) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(
        url,
        owner=owner,
        lease_ms=lease_ms,
        health_key="health",
        health=lambda: "",
        beat=lambda: "{}",
        held=set,
        on_lost=lambda _: None,
    )
    await asyncio.to_thread(heartbeat.start)
    try:
        yield heartbeat
    finally:
        await asyncio.to_thread(heartbeat.stop)


@asynccontextmanager
async def reaping(places: Places, redis: Redis | None = None) -> AsyncIterator[None]:
    """A trusted reaper, the worker `r`."""
    reaper = Reaper(redis or places.redis, places.queue("r"), Observer(), trust_after_s=0)
    task = asyncio.create_task(reaper.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def taken_over(places: Places) -> Callable[[], Awaitable[bool]]:
    async def is_ready() -> bool:
        return (await places.record("a"))["state"] == "ready"

    return is_ready


async def claimed(places: Places, owner: str = "w1") -> None:
    await places.enqueue("a")
    assert len(await places.claim(owner)) == 1


async def test_a_worker_whose_connection_is_gone_is_reaped_long_before_its_lease_expires(
    places: Places, redis_url: str
) -> None:
    await claimed(places)
    async with beating(redis_url, "r"), reaping(places):
        async with beating(redis_url, "w1"):
            pass
        gone_at = time.monotonic()
        await until(taken_over(places), "the job is taken over")
        assert time.monotonic() - gone_at < GONE_AFTER_S + MOST_S


async def test_a_worker_that_beats_is_never_reaped(places: Places, redis_url: str) -> None:
    await claimed(places)
    async with beating(redis_url, "r"), beating(redis_url, "w1"), reaping(places):
        for _ in range(6):
            await places.redis.client_kill_filter(skipme=True, _type="normal")
            await asyncio.sleep(0.4)
        assert not await taken_over(places)()


async def test_the_list_of_clients_is_not_asked_for_while_every_worker_beats(places: Places, redis_url: str) -> None:
    await claimed(places)
    await places.redis.config_resetstat()
    async with beating(redis_url, "r"), beating(redis_url, "w1"), reaping(places):
        await asyncio.sleep(2)
    assert await list_calls(places) == 0


async def list_calls(places: Places) -> int:
    stats: dict[str, Any] = await places.redis.info("commandstats")
    return int(stats.get("cmdstat_client|list", {}).get("calls", 0))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
async def test_leases_decide_where_the_list_of_clients_names_no_worker(
    places: Places, redis_url: str, rules: list[str]
) -> None:
    """A silent worker keeps its jobs until its lease expires, and loses them then."""
    await places.redis.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", *rules)  # type: ignore[no-untyped-call]
    url = redis_url.replace("unix://", "unix://limited:secret@")
    limited = Redis.from_url(url)
    try:
        await claimed(places)
        await places.beat("w1")
        async with beating(url, "r"), reaping(places, limited):
            await asyncio.sleep(GONE_AFTER_S + 1.0)
            assert await taken_over(places)() == (rules == [])
            await places.redis.delete(keys.ALIVE_PREFIX + "w1")
            await until(taken_over(places), "the job is taken over")
    finally:
        await limited.aclose()
        await places.redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call]


async def test_a_list_without_the_reaper_itself_is_not_believed(places: Places, redis_url: str) -> None:
    """A proxy answers with its own connections: the silent worker is missing, and so is the reaper."""
    await claimed(places)
    await places.beat("w1")
    await places.redis.config_resetstat()
    async with beating(redis_url, "other"), reaping(places):
        await asyncio.sleep(GONE_AFTER_S + 1.0)
        assert await list_calls(places) > 0
        assert not await taken_over(places)()


async def test_of_two_reapers_one_watches_and_the_other_takes_its_place(places: Places, redis_url: str) -> None:
    await claimed(places)
    await places.beat("w1")
    async with beating(redis_url, "r"), reaping(places):
        first = Reaper(places.redis, places.queue("first"), Observer(), trust_after_s=0)
        task = asyncio.create_task(first.run())

        async def elected() -> bool:
            return await places.redis.get(keys.REAPER) is not None

        await until(elected, "a reaper is elected")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(taken_over(places), "the job is taken over")

"""No script holds Redis up: 10,000 queued jobs, the first of them with the longest pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import pytest
from protostar_client import ChatClient, SessionBusy, keys

from tasks.engine import scripts
from tasks.engine.queue import SCAN_LIMIT
from tasks.engine.scripts import Script
from tasks.monitoring import queued_jobs
from tests.tasks.engine.conftest import CHAT, Places

JOBS = 10_000
PAGES = 250  # more than one call looks at
PAGE = "a" * 400_000
MOST_MS = 10.0


async def fill(places: Places) -> None:
    now_ms = await places.now_ms()
    for start in range(0, JOBS, 250):
        async with places.redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 250):
                arguments = {"user_uuid": str(UUID(int=number)), "session_id": "s", "content": "질문"}
                if number < PAGES or number >= JOBS - PAGES:
                    arguments["context"] = PAGE
                pipe.set(keys.job(f"j{number}"), json.dumps({"f": CHAT, "k": arguments}))
                pipe.zadd(keys.QUEUE, {f"j{number}": now_ms - JOBS + number})
            await pipe.execute()


async def cpu_ms(places: Places) -> float:
    """What Redis has computed so far; unlike the time, it does not depend on what else the machine does."""
    used = await places.redis.info("cpu")
    return 1000 * float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])


@asynccontextmanager
async def limited(places: Places) -> AsyncIterator[None]:
    before = await cpu_ms(places)
    yield
    assert await cpu_ms(places) - before < MOST_MS


def options(**free: int) -> str:
    values = {"classes": {CHAT: "chat"}, "turn_function": CHAT, "lease_ttl_ms": {"chat": 600_000}, "free": free}
    return json.dumps(values)


async def test_no_script_holds_redis_up(places: Places) -> None:
    await fill(places)
    claim, abort = (Script.beside(scripts.__file__, name) for name in ("claim", "abort"))
    queue = places.queue("w1")
    await places.redis.script_load(claim.text)
    await places.redis.script_load(abort.text)
    async with limited(places):
        _, _, has_more, _ = await claim.run(places.redis, "w1", SCAN_LIMIT, options(chat=0))
    assert has_more
    while (await queue.claim({"chat": 0})).has_more:
        pass
    async with limited(places):
        claims, _, _, _ = await claim.run(places.redis, "w1", SCAN_LIMIT, options(chat=100))
    assert len(claims) == 100
    async with limited(places):
        await places.beat("w1")
    async with limited(places):
        await queue.sweep(b"0", b"0")
    await places.redis.delete(keys.ALIVE_PREFIX + "w1")
    async with limited(places):
        assert await queue.reap("w1", "gone") == 100
    await places.redis.zadd(keys.ABORT, {f"j{number}": await places.now_ms() for number in range(1000)})
    async with limited(places):
        _, claims, _ = await abort.run(places.redis, "w1", options())
    assert len(claims) == 100


async def test_no_script_of_a_client_or_of_the_monitoring_holds_redis_up(places: Places, redis_url: str) -> None:
    await fill(places)
    look = Script.beside(queued_jobs.__file__, "look")
    ids = [f"j{number}" for number in range(100)]
    await look.run(places.redis, *ids[:1])
    async with limited(places):
        found = await look.run(places.redis, *ids)
    assert [job[9] for job in found] == [b"s"] * 100
    newest = JOBS - 1
    async with ChatClient.connect(redis_url, max_queue=2 * JOBS) as client:
        ask = partial(client.enqueue, user_uuid=UUID(int=newest), session_id="s", content="질문")
        with pytest.raises(SessionBusy):
            await ask(on_busy="reject")
        async with limited(places):
            with pytest.raises(SessionBusy):
                await ask(on_busy="reject")

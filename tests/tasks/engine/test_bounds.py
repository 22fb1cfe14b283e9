"""What the engine keeps in Redis is bounded in bytes and in age."""

from __future__ import annotations

import json

from protostar_client import keys

from tasks.monitoring.dead_letters import dead_letters, put_back
from tests.tasks.engine.conftest import Places

MEGABYTE = 1_000_000
MAX_BYTES = 64 * 2**20
LIFE_MS = 30 * 86_400_000


async def die(places: Places, job_id: str, *, characters: int = 0) -> None:
    """End a job with a dead letter that holds a page."""
    await places.enqueue(job_id)
    [claim] = await places.claim()
    letter = {"job_id": job_id, "function": "f", "payload": "x" * characters, "code": "internal", "message": ""}
    text = json.dumps(letter | {"attempt": 1, "history": [], "at_ms": 0})
    assert await places.queue().done(claim, result=None, result_ttl_ms=0, dead_letter=text)


async def counted(places: Places) -> int:
    return int(await places.redis.get(keys.DEAD_BYTES) or 0)


async def test_dead_letters_are_bounded_in_bytes_and_the_oldest_go(places: Places) -> None:
    for number in range(80):
        await die(places, f"j{number}", characters=MEGABYTE)
    ids = [letter.job_id async for letter in dead_letters(places.redis)]
    assert ids == [f"j{number}" for number in range(79, 79 - len(ids), -1)]
    assert MAX_BYTES - 2 * MEGABYTE < await counted(places) <= MAX_BYTES
    assert await places.redis.memory_usage(keys.DEAD, samples=0) < 1.1 * MAX_BYTES


async def test_dead_letters_are_bounded_in_age(places: Places) -> None:
    old_ms = await places.now_ms() - LIFE_MS - 60_000
    await places.redis.xadd(keys.DEAD, {"data": "{}"}, id=f"{old_ms}-0")
    await die(places, "new")
    assert [letter.job_id async for letter in dead_letters(places.redis)] == ["new"]
    assert 0 < await places.redis.pttl(keys.DEAD) <= LIFE_MS


async def test_a_letter_that_is_put_back_is_no_longer_counted(places: Places) -> None:
    await die(places, "a", characters=1000)
    await die(places, "b", characters=1000)
    both = await counted(places)
    letters = [letter async for letter in dead_letters(places.redis)]
    assert await put_back(places.redis, letters[0])
    assert await counted(places) == both // 2
    assert await put_back(places.redis, letters[1])
    assert not await places.redis.exists(keys.DEAD_BYTES)

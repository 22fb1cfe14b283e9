"""Jobs of the worker's own: enqueued once, whatever a producer does with their ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from protostar_client import keys

from tasks.engine.queue import enqueue_own
from tests.tasks.engine.conftest import Places

ID = "summary:7"
FUNCTION = "summarize_message"
ARGUMENTS = {"message_id": 7}


async def enqueue(places: Places) -> bool:
    return await enqueue_own(places.redis, ID, FUNCTION, ARGUMENTS)


async def payload(places: Places) -> dict[str, Any]:
    stored = json.loads(await places.redis.get(keys.job(ID)) or b"{}")
    return {"function": stored.get("f"), "arguments": stored.get("k")}


async def test_a_job_is_enqueued_once(places: Places) -> None:
    assert await enqueue(places)
    assert not await enqueue(places)
    [claim] = await places.claim(summary=1)
    assert not await enqueue(places)
    await places.queue().done(claim, result=b'{"f":"summarize_message","k":{"message_id":7}}', result_ttl_ms=10_000)
    assert not await enqueue(places)
    assert await places.redis.zcard(keys.QUEUE) == 0


async def test_a_job_that_is_due_later_waits(places: Places) -> None:
    due_ms = await places.now_ms() + 60_000
    assert await enqueue_own(places.redis, ID, FUNCTION, ARGUMENTS, due_ms)
    claimed = await places.look(summary=1)
    assert claimed.claims == []
    assert 59_000 < claimed.wait_ms <= 60_000


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("generate_chat", {"content": "질문"}),
        (FUNCTION, {"message_id": 8}),
        (FUNCTION, {"message_id": 7, "more": 1}),
        (FUNCTION, {}),
        ("generate_chat", {"context": "가" * 100_000}),
    ],
    ids=["another function", "another argument", "one argument more", "no argument", "a page"],
)
async def test_a_producers_job_with_the_id_gives_way(places: Places, function: str, arguments: dict[str, Any]) -> None:
    await places.enqueue(ID, function=function, **arguments)
    assert await enqueue(places)
    assert await payload(places) == {"function": FUNCTION, "arguments": ARGUMENTS}
    [claim] = await places.claim(chat=0, summary=5)
    assert (claim.job_id, claim.tries) == (ID, 1)


async def test_a_producers_job_that_waits_for_its_turn_gives_way(places: Places) -> None:
    await places.enqueue("first", session="s")
    await places.enqueue(ID, session="s")
    [first] = await places.claim()
    assert await enqueue(places)
    assert [claim.job_id for claim in await places.claim(chat=5, summary=5)] == [ID]
    await places.enqueue("next", session="s")
    await places.queue().done(first, result=None, result_ttl_ms=0)
    assert await places.ids() == ["next"]


async def test_a_producers_job_that_runs_loses_its_lease_and_its_attempts_are_not_tries(places: Places) -> None:
    await places.enqueue(ID, delay_ms=-5)
    for _ in range(4):
        [foreign] = await places.claim()
        await places.queue().retry(foreign, delay_ms=0, spared=False, reason="again")
    [foreign] = await places.claim()
    assert await places.beat() == {ID.encode()}
    assert await enqueue(places)
    assert await places.beat() == set()
    assert not await places.queue().done(foreign, result=b"{}", result_ttl_ms=1000)
    [claim] = await places.claim(chat=0, summary=5)
    assert (claim.attempt, claim.tries) == (6, 1)


async def test_a_producers_result_gives_way(places: Places) -> None:
    await places.redis.set(keys.result(ID), json.dumps({"f": "generate_chat", "k": {}}))
    assert await enqueue(places)
    assert not await places.redis.exists(keys.result(ID))


async def test_a_payload_that_is_in_no_queue_is_enqueued_again(places: Places) -> None:
    assert await enqueue(places)
    await places.redis.delete(keys.QUEUE)
    assert await enqueue(places)
    assert await places.redis.zcard(keys.QUEUE) == 1

"""The queue's scripts: claims, turns, retries, takeovers, aborts; each job is held by one attempt at a time."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from protostar_client import keys

from tests.tasks.engine.conftest import CHAT, Places

USER = str(UUID(int=7))
PAGE = "가" * 400_000


async def test_a_job_is_claimed_once(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim("w1")
    assert (claim.job_id, claim.attempt, claim.tries, claim.aborted, claim.history) == ("a", 1, 1, False, ())
    assert claim.payload is not None
    assert json.loads(claim.payload)["f"] == CHAT
    assert await places.claim("w2") == []


async def test_jobs_are_claimed_in_the_order_of_their_scores(places: Places) -> None:
    for number in range(5):
        await places.enqueue(f"j{number}", delay_ms=-1000 * number)
    claimed = [(await places.claim(chat=1))[0].job_id for _ in range(5)]
    assert claimed == ["j4", "j3", "j2", "j1", "j0"]


async def test_each_class_has_slots_of_its_own(places: Places) -> None:
    for number in range(3):
        await places.enqueue(f"chat-{number}")
        await places.enqueue(f"summary-{number}", function="summarize_message")
    assert await places.ids(chat=2, summary=1) == ["chat-0", "chat-1", "summary-0"]


async def test_a_deferred_job_says_when_it_is_due(places: Places) -> None:
    await places.enqueue("later", delay_ms=60_000)
    claimed = await places.look()
    assert claimed.claims == []
    assert 59_000 < claimed.wait_ms <= 60_000
    assert not claimed.has_more


async def test_without_a_deferred_job_there_is_no_due_time(places: Places) -> None:
    assert (await places.look()).wait_ms == -1


@pytest.mark.parametrize("score", ["-inf", "inf", "-5", "0"])
async def test_a_score_that_is_not_a_time_means_now(places: Places, score: str) -> None:
    await places.enqueue("a")
    await places.redis.zadd(keys.QUEUE, {"a": float(score)})
    cursors = b"0", b"0"
    await places.queue().sweep(*cursors)
    assert await places.ids() == ["a"]


async def test_turns_of_a_session_run_one_at_a_time_in_order(places: Places) -> None:
    for name in ("first", "second", "third"):
        await places.enqueue(name, session="s")
    [first] = await places.claim()
    assert first.job_id == "first"
    assert await places.claim() == []
    await places.queue().done(first, result=None, result_ttl_ms=0)
    assert await places.ids() == ["second"]


async def test_a_turn_that_is_retried_keeps_its_session(places: Places) -> None:
    await places.enqueue("first", session="s")
    await places.enqueue("second", session="s")
    [first] = await places.claim()
    await places.queue().retry(first, delay_ms=0, spared=False, reason="again")
    [again] = await places.claim()
    assert (again.job_id, again.attempt, again.last_reason) == ("first", 2, "again")


async def test_a_spared_attempt_does_not_count_as_a_try(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim()
    await places.queue().retry(claim, delay_ms=0, spared=True, reason="storage")
    [again] = await places.claim()
    assert (again.attempt, again.tries) == (2, 1)


async def test_only_the_attempt_that_holds_the_job_finishes_it(places: Places) -> None:
    await places.enqueue("a")
    [old] = await places.claim("w1")
    await places.die("w1")
    [new] = await places.claim("w2")
    assert not await places.queue("w1").done(old, result=b"{}", result_ttl_ms=1000)
    assert not await places.redis.exists(keys.result("a"))
    assert await places.queue("w2").done(new, result=b"{}", result_ttl_ms=1000)
    assert await places.redis.exists(keys.result("a"))
    assert not await places.queue("w2").done(new, result=b"{}", result_ttl_ms=1000)


async def test_a_finished_job_leaves_its_result_and_nothing_else(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim()
    await places.queue().done(claim, result=b"{}", result_ttl_ms=1000)
    assert await places.redis.keys("*") == [b"arq:result:a"]


async def test_a_dead_letter_is_kept_with_the_finish(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim()
    await places.queue().done(claim, result=None, result_ttl_ms=0, dead_letter='{"job_id":"a"}')
    [(_, fields)] = await places.redis.xrange(keys.DEAD)
    assert fields == {b"data": b'{"job_id":"a"}'}


async def test_attempts_are_numbered_above_those_in_the_event_stream(places: Places) -> None:
    await places.enqueue("a")
    await places.redis.xadd(keys.events("a"), {"data": "{}"}, id="7-3")
    [claim] = await places.claim()
    assert (claim.attempt, claim.tries) == (8, 1)


async def test_a_raised_attempt_holds_the_job_and_does_not_count(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim()
    assert await places.queue().raise_attempt(claim, 5)
    assert (claim.attempt, claim.tries) == (5, 1)
    assert await places.redis.get(keys.lease("a")) == b"w1:5"
    assert await places.queue().done(claim, result=None, result_ttl_ms=0)


async def test_a_claim_whose_reply_was_lost_is_handed_back_and_does_not_count(places: Places) -> None:
    await places.enqueue("a")
    await places.enqueue("b")
    await places.claim("w1")
    assert await places.queue("w1").reconcile([b"b"]) == 1
    [claim] = await places.claim("w2")
    assert (claim.job_id, claim.attempt, claim.tries) == ("a", 2, 1)


async def test_a_job_handed_over_is_ready_at_once_and_its_attempt_does_not_count(places: Places) -> None:
    await places.enqueue("a")
    [claim] = await places.claim("w1")
    assert await places.queue("w1").hand_over(claim)
    [again] = await places.claim("w2")
    assert (again.attempt, again.tries, again.last_reason) == (2, 1, "handed_over")


async def test_an_abort_names_running_jobs_and_claims_queued_ones(places: Places) -> None:
    await places.enqueue("running", session="s")
    await places.claim()
    await places.enqueue("waiting", session="s")
    await places.look()
    now_ms = await places.now_ms()
    await places.redis.zadd(keys.ABORT, {"running": now_ms, "waiting": now_ms + 1, "nowhere": now_ms})
    running, [claim] = await places.queue().aborts()
    assert running == [b"running"]
    assert (claim.job_id, claim.aborted) == ("waiting", True)
    assert await places.redis.zrange(keys.ABORT, 0, -1) == [b"running"]


async def test_an_abort_older_than_its_job_is_dropped(places: Places) -> None:
    await places.redis.zadd(keys.ABORT, {"a": await places.now_ms() - 5000})
    await places.enqueue("a")
    [claim] = await places.claim()
    assert not claim.aborted
    assert await places.redis.zcard(keys.ABORT) == 0


async def test_a_payload_that_has_expired_is_claimed_without_one(places: Places) -> None:
    await places.enqueue("a")
    await places.redis.delete(keys.job("a"))
    [claim] = await places.claim()
    assert claim.payload is None


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b'{"f":false,"k":[]}', b'{"f":', b"x" * 10_000, b'"f":"k"'])
async def test_a_payload_that_is_not_a_job_holds_up_nothing(places: Places, payload: bytes) -> None:
    await places.redis.set(keys.job("odd"), payload)
    await places.redis.zadd(keys.QUEUE, {"odd": await places.now_ms()})
    await places.redis.hset(keys.job("hash"), "a", "b")  # type: ignore[misc]
    await places.redis.zadd(keys.QUEUE, {"hash": await places.now_ms()})
    await places.enqueue("good")
    assert await places.ids() == ["good", "hash", "odd"]


HEAD = {"user_uuid": USER, "session_id": "세션"}


@pytest.mark.parametrize(
    "arguments",
    [
        {**HEAD, "content": "질문", "context": PAGE},
        {"context": PAGE, **HEAD, "content": "질문"},
        {"user_uuid": USER, "context": PAGE, "session_id": "세션"},
        {"content": '","session_id":"다른', **HEAD, "context": PAGE},
        {"content": "\\", **HEAD, "context": PAGE},
    ],
    ids=["head", "tail", "both", "quoted", "backslash"],
)
@pytest.mark.parametrize("ascii_only", [True, False])
async def test_the_session_of_a_long_payload_is_found_wherever_it_stands(
    places: Places, arguments: dict[str, str], ascii_only: bool
) -> None:
    payload = json.dumps({"t": None, "f": CHAT, "a": [], "k": arguments, "et": 1}, ensure_ascii=ascii_only)
    await places.redis.set(keys.job("a"), payload)
    await places.redis.zadd(keys.QUEUE, {"a": await places.now_ms()})
    [claim] = await places.claim()
    assert claim.payload == payload.encode()
    assert (await places.record("a"))["session"] == f"{UUID(USER).hex}:세션"
    assert (await places.record("a"))["class"] == "chat"


async def test_many_payloads_that_hide_their_session_are_looked_at_in_order_over_several_calls(places: Places) -> None:
    for number in range(6):
        await places.put(f"j{number}", {"f": CHAT, "k": {"context": PAGE, **HEAD}})
    first = await places.look(chat=0)
    assert first.has_more
    calls = 1
    while (await places.look(chat=0)).has_more:
        calls += 1
        assert calls < 10
    assert await places.ids() == ["j0"]
    assert await places.redis.zcard(keys.turns(f"{UUID(USER).hex}:세션")) == 5


async def test_the_heartbeat_lists_the_leases_that_the_worker_has(places: Places) -> None:
    await places.enqueue("a")
    await places.claim("w1")
    assert await places.beat("w1") == {b"a"}
    assert await places.die("w1", "gone") == 0
    await places.redis.delete(keys.ALIVE_PREFIX + "w1")
    assert await places.die("w1", "gone") == 1
    assert await places.beat("w1") == set()


async def test_a_worker_is_reaped_for_an_expired_lease_only_when_it_has_expired(places: Places) -> None:
    await places.enqueue("a")
    await places.claim("w1")
    await places.beat("w1")
    assert await places.die("w1", "expired") == 0
    await places.redis.delete(keys.ALIVE_PREFIX + "w1")
    assert await places.die("w1", "expired") == 1


async def test_the_sweep_frees_a_session_whose_turn_was_deleted(places: Places) -> None:
    await places.enqueue("first", session="s")
    await places.enqueue("second", session="s")
    await places.claim(chat=0)
    await places.redis.zrem(keys.QUEUE, "first")
    assert (await places.queue().sweep(b"0", b"0"))[2] == 1
    assert await places.ids() == ["second"]


async def test_the_sweep_admits_anew_what_has_lost_its_record(places: Places) -> None:
    await places.enqueue("a")
    await places.claim(chat=0)
    await places.redis.delete(keys.RECORD_PREFIX + "a", keys.READY_PREFIX + "chat")
    assert (await places.queue().sweep(b"0", b"0"))[2] == 1
    assert await places.ids() == ["a"]

"""The client reads answers: late, live, again, with losses, and never for ever."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from protostar_client import (
    Cancelled,
    ChatClient,
    ClientClosed,
    ErrorCode,
    EventsExpired,
    InvalidRequest,
    JobError,
    JobHandle,
    JobVanished,
    ReaderTooSlow,
    RedisRefused,
    feed,
    keys,
    state,
)
from protostar_client.entry import START, EntryId
from redis.asyncio import Redis

from tests.support.played_worker import ANSWER, USER, PlayedWorker, ask, blocked, ids
from tests.support.stack_under_test import until

pytest_plugins = ["tests.support.client_fixtures"]


async def test_events_are_read_live_and_late_alike(handle: JobHandle, worker: PlayedWorker) -> None:
    live = asyncio.create_task(ids(handle))
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    for seq in (2, 3):
        await worker.say(handle.job_id, f"1-{seq}", "delta", text="글")
    await worker.say(handle.job_id, "1-4", "done", message_id=7, finish_reason="stop")
    every = ["1-1", "1-2", "1-3", "1-4"]
    assert await asyncio.wait_for(live, 5) == every
    assert await ids(handle) == every
    assert await ids(handle, last_id="1-2") == every[2:]
    assert await ids(handle, last_id="1-4") == []


async def test_text_is_the_last_attempts_deltas(handle: JobHandle, worker: PlayedWorker) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    await worker.say(handle.job_id, "1-2", "delta", text="void")
    await worker.say(handle.job_id, "3-1", "restart", reason="lease_expired")
    await worker.say(handle.job_id, "3-2", "delta", text="안녕")
    await worker.say(handle.job_id, "3-3", "delta", text="하세요")
    await worker.say(handle.job_id, "3-4", "done", message_id=7, finish_reason="stop")
    assert await handle.text() == "안녕하세요"


async def test_text_raises_what_ended_the_answer(client: ChatClient, worker: PlayedWorker) -> None:
    failed, cancelled = await ask(client), await ask(client)
    await worker.say(failed.job_id, "1-1", "error", code="stalled", message="no token for 30 s")
    await worker.say(cancelled.job_id, "1-1", "cancelled", message_id=9)
    with pytest.raises(JobError, match="stalled: no token"):
        await failed.text()
    with pytest.raises(Cancelled) as caught:
        await cancelled.text()
    assert caught.value.message_id == 9


async def test_an_error_without_an_event_is_raised(handle: JobHandle, worker: PlayedWorker) -> None:
    reading = asyncio.create_task(ids(handle))
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    await worker.finish(handle.job_id, JobError(ErrorCode.TOO_MANY_ATTEMPTS, "5 attempts"), success=False)
    with pytest.raises(JobError, match="too_many_attempts: 5 attempts"):
        await asyncio.wait_for(reading, 10)


async def test_a_job_that_vanishes_ends_its_readers(handle: JobHandle, redis: Redis) -> None:
    reading = asyncio.create_task(ids(handle))
    waiting = asyncio.create_task(handle.result())
    await until(lambda: blocked(redis), "a read blocks")
    await redis.flushall()
    with pytest.raises(JobVanished):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(JobVanished):
        await asyncio.wait_for(reading, 10)


async def test_a_job_without_a_place_in_the_queue_has_vanished(handle: JobHandle, redis: Redis) -> None:
    waiting = [asyncio.create_task(work) for work in (ids(handle), handle.text(), handle.result())]
    await until(lambda: blocked(redis), "a read blocks")
    await redis.zrem(keys.QUEUE, handle.job_id)
    cancelling = asyncio.create_task(handle.cancel())
    for ended in await asyncio.wait_for(asyncio.gather(*waiting, cancelling, return_exceptions=True), 10):
        assert isinstance(ended, JobVanished)


async def test_a_job_that_is_put_in_two_steps_has_not_vanished(
    client: ChatClient, worker: PlayedWorker, redis: Redis
) -> None:
    first = await ask(client)
    payload = await redis.get(keys.job(first.job_id))
    await redis.set(keys.job("slow"), payload)
    handle = client.handle("slow", user_uuid=USER)
    looks = looks_at(handle)
    waiting = asyncio.gather(ids(handle), handle.result())
    await until(lambda: looked(looks, 5), "both have looked once: two owners, two states, one log")
    await redis.zadd(keys.QUEUE, {"slow": 1})
    await until(lambda: looked(looks, 7), "both have looked again")
    await worker.say("slow", "1-1", "done", message_id=7, finish_reason="stop")
    await worker.finish("slow", ANSWER)
    seen, result = await asyncio.wait_for(waiting, 10)
    assert (seen, result.message_id) == (["1-1"], 7)


async def test_a_job_that_is_leased_has_not_vanished(handle: JobHandle, worker: PlayedWorker, redis: Redis) -> None:
    await redis.set(keys.lease(handle.job_id), "owner:1")
    await redis.zrem(keys.QUEUE, handle.job_id)
    with pytest.raises(TimeoutError):
        await handle.result(timeout_s=state.SECOND_LOOK_S + 0.5)


async def test_a_reader_can_be_cancelled_at_any_moment(handle: JobHandle) -> None:
    for moment in range(60):
        reading = asyncio.create_task(handle.text())
        for _ in range(moment):
            await asyncio.sleep(0)
        reading.cancel()
        done, _ = await asyncio.wait({reading}, timeout=2)
        reading.cancel()  # or a lost cancellation would keep the test's loop from closing
        assert done, f"the cancellation at step {moment} was lost"
        assert reading.cancelled()


@pytest.mark.parametrize("last_id", ["$", "1", "", "\uff11-\uff11", "1-1 "])
async def test_a_last_id_that_is_none_is_refused(handle: JobHandle, last_id: str) -> None:
    with pytest.raises(InvalidRequest, match="last_id"):
        await ids(handle, last_id=last_id)


# A log that lacks events


async def told(handle: JobHandle, last_id: str | None = None) -> list[tuple[str, str, str | None]]:
    return [(event.type, event.id, event.text) async for event in handle.events(last_id)]


async def test_an_expired_log_is_a_gap_and_then_the_answer_as_stored(handle: JobHandle, worker: PlayedWorker) -> None:
    await worker.finish(handle.job_id, ANSWER)
    gap, delta, done = await told(handle)
    assert (gap[:2], delta, done[0]) == (("gap", "0-0"), ("delta", "0-0", "안녕하세요"), "done")
    assert await handle.text() == "안녕하세요"
    assert await told(handle, last_id=done[1]) == []
    assert (await told(handle, last_id="1-7"))[:2] == [("gap", "1-7", None), ("delta", "1-7", "안녕하세요")]
    [_, _, last] = [event async for event in handle.events()]
    assert (last.message_id, last.finish_reason, last.attempt) == (7, "stop", 1)
    assert last.usage is not None
    assert last.usage.output_tokens == 2


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "late"])
async def test_a_trimmed_log_is_a_gap_and_then_the_answer_as_stored(
    handle: JobHandle, worker: PlayedWorker, redis: Redis, is_live: bool
) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    reading = handle.events()
    assert (await anext(reading)).id == "1-1"
    first_read = asyncio.ensure_future(anext(reading)) if is_live else None
    async with redis.pipeline(transaction=True) as pipe:  # a reader must not see what is about to be lost
        for seq in (2, 3):
            data = {"v": 1, "type": "delta", "job_id": handle.job_id, "attempt": 1, "seq": seq, "text": "글"}
            pipe.xadd(keys.events(handle.job_id), {"data": json.dumps(data)}, id=f"1-{seq}")
        pipe.xtrim(keys.events(handle.job_id), maxlen=1, approximate=False)
        await pipe.execute()
    gap = await asyncio.wait_for(first_read or anext(reading), 5)
    assert (gap.type, gap.id) == ("gap", "1-1")
    waiting = asyncio.ensure_future(anext(reading))
    await worker.say(handle.job_id, "1-4", "done", message_id=7, finish_reason="stop")
    await worker.finish(handle.job_id, ANSWER)
    assert (await asyncio.wait_for(waiting, 5)).text == "안녕하세요"
    done = await anext(reading)
    assert (done.type, done.id) == ("done", "1-4")
    assert [event async for event in reading] == []
    assert await told(handle, last_id="1-2") == [("delta", "1-3", "글"), ("done", "1-4", None)]
    assert await handle.text() == "안녕하세요"


async def test_text_leaves_out_what_came_before_a_gap(handle: JobHandle, worker: PlayedWorker, redis: Redis) -> None:
    await worker.say(handle.job_id, "1-1", "delta", text="안녕")
    text = asyncio.create_task(handle.text())
    await until(lambda: blocked(redis), "a read blocks")
    await worker.say(handle.job_id, "1-3", "done", message_id=7, finish_reason="stop")
    await worker.finish(handle.job_id, ANSWER)
    assert await asyncio.wait_for(text, 5) == "안녕하세요"


async def test_a_log_that_lost_a_void_attempt_has_no_gap(handle: JobHandle, worker: PlayedWorker, redis: Redis) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    await worker.say(handle.job_id, "1-2", "delta", text="void")
    await worker.say(handle.job_id, "4-1", "restart", reason="lease_expired")
    await worker.say(handle.job_id, "4-2", "done", message_id=7, finish_reason="stop")
    await redis.xtrim(keys.events(handle.job_id), maxlen=2, approximate=False)
    assert await ids(handle) == ["4-1", "4-2"]
    assert await ids(handle, last_id="1-1") == ["4-1", "4-2"]


async def test_a_gap_in_an_answer_that_failed_ends_with_its_error(handle: JobHandle, worker: PlayedWorker) -> None:
    await worker.say(handle.job_id, "1-3", "delta", text="글")
    await worker.say(handle.job_id, "1-4", "error", code="stalled", message="no token for 30 s")
    await worker.finish(handle.job_id, JobError(ErrorCode.STALLED, "no token for 30 s"), success=False)
    assert await told(handle) == [("gap", "0-0", None), ("error", "1-4", None)]
    with pytest.raises(JobError, match="stalled"):
        await handle.text()


@pytest.mark.parametrize("last_id", ["99-1", "1-99"])
async def test_an_id_after_the_ending_is_a_gap_and_the_answer_as_stored(
    handle: JobHandle, worker: PlayedWorker, last_id: str
) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    live = asyncio.create_task(told(handle, last_id))
    await worker.say(handle.job_id, "1-2", "done", message_id=7, finish_reason="stop")
    await worker.finish(handle.job_id, ANSWER)
    expected = [("gap", last_id, None), ("delta", last_id, ANSWER["content"]), ("done", "1-2", None)]
    assert await asyncio.wait_for(live, 10) == expected
    assert await told(handle, last_id) == expected


async def test_an_id_after_an_error_is_a_gap_and_the_error(handle: JobHandle, worker: PlayedWorker) -> None:
    await worker.say(handle.job_id, "1-1", "error", code="stalled", message="no token for 30 s")
    await worker.finish(handle.job_id, JobError(ErrorCode.STALLED, "no token for 30 s"), success=False)
    assert await told(handle, "99-1") == [("gap", "99-1", None), ("error", "1-1", None)]


async def test_a_reader_with_an_id_to_come_holds_up_no_other(
    handle: JobHandle, worker: PlayedWorker, redis: Redis
) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    ahead = asyncio.create_task(told(handle, "99-1"))
    await until(lambda: blocked(redis), "the first reader's read blocks")
    looks = looks_at(handle)
    behind = asyncio.create_task(ids(handle))
    await asyncio.sleep(0.5)
    assert len(looks) < 5  # one that reads again and again has looked hundreds of times
    await worker.say(handle.job_id, "1-2", "done", message_id=7, finish_reason="stop")
    await worker.finish(handle.job_id, ANSWER)
    assert await asyncio.wait_for(behind, 10) == ["1-1", "1-2"]
    assert [kind for kind, _, _ in await asyncio.wait_for(ahead, 10)] == ["gap", "delta", "done"]


async def test_a_gap_without_a_result_is_an_error(handle: JobHandle, worker: PlayedWorker, redis: Redis) -> None:
    await worker.say(handle.job_id, "1-3", "delta", text="글")
    await redis.delete(keys.job(handle.job_id))
    await redis.zrem(keys.QUEUE, handle.job_id)
    with pytest.raises(JobVanished):
        await asyncio.wait_for(ids(handle), 5)
    await worker.say(handle.job_id, "1-4", "done", message_id=7, finish_reason="stop")
    with pytest.raises(EventsExpired, match="history"):
        await asyncio.wait_for(ids(handle), 5)


def looks_at(handle: JobHandle) -> list[str]:
    """Grows by a name with every call that the client of a handle makes from now on."""
    connection, made = handle._connection, list[str]()
    call = connection.call

    async def counted(operation: Any) -> Any:
        made.append("call")
        return await call(operation)

    connection.call = counted  # type: ignore[method-assign]
    return made


async def looked(looks: list[str], count: int) -> bool:
    return len(looks) >= count


# Many readers


async def test_many_readers_share_one_blocking_read(client: ChatClient, worker: PlayedWorker, redis: Redis) -> None:
    handles = [await ask(client, session_id=str(number)) for number in range(20)]
    readings = [asyncio.create_task(ids(handle)) for handle in handles for _ in range(5)]
    await until(lambda: blocked(redis), "a read blocks")
    for _ in range(20):  # between two blocks there is none
        assert await blocked(redis) in ([], ["protostar-client"])
    assert len([info for info in await redis.client_list() if info["name"] == "protostar-client"]) < 40
    for handle in handles:
        await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
        await worker.say(handle.job_id, "1-2", "done", message_id=7, finish_reason="stop")
    assert await asyncio.wait_for(asyncio.gather(*readings), 10) == [["1-1", "1-2"]] * 100


@pytest.fixture
def long_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a block comes too late to hide a lost wake-up."""
    monkeypatch.setattr(feed, "BLOCK_MS", 9_000)


@pytest.mark.usefixtures("long_block")
async def test_an_answer_that_is_added_is_heard_at_once(client: ChatClient, worker: PlayedWorker, redis: Redis) -> None:
    readings: list[asyncio.Task[list[str]]] = []
    for _ in range(5):
        handle = await ask(client)
        readings.append(asyncio.create_task(ids(handle)))
        await until(lambda: blocked(redis), "a read blocks")
        late = client.handle((await ask(client)).job_id, user_uuid=USER)
        hearing = asyncio.create_task(ids(late))
        await asyncio.sleep(0.05)  # the read that blocks does not have it
        await worker.say(late.job_id, "1-1", "done", message_id=7, finish_reason="stop")
        assert await asyncio.wait_for(hearing, 5) == ["1-1"]
    for reading in readings:
        reading.cancel()
    await asyncio.gather(*readings, return_exceptions=True)


@pytest.mark.usefixtures("long_block")
async def test_an_answer_that_is_added_is_heard_before_calls_that_queue(
    client: ChatClient, worker: PlayedWorker, redis: Redis, handle: JobHandle
) -> None:
    reading = asyncio.create_task(ids(handle))
    await until(lambda: blocked(redis), "a read blocks")
    connection = client._connection

    async def wait_long(redis: Redis) -> None:
        reply: Any = redis.blpop(["never"], 8)
        await reply

    calls = [asyncio.create_task(connection.call(wait_long)) for _ in range(50)]

    async def queue() -> bool:
        return len(await blocked(redis)) > 30

    await until(queue, "calls wait for others")
    late = client._reader._feed.join("late", START, START)
    assert late is not None
    await asyncio.sleep(0.05)  # the read that blocks does not have it
    await worker.say("late", "1-1", "done", message_id=7, finish_reason="stop")
    heard = await asyncio.wait_for(late.next(), 5)
    assert heard is not None
    assert heard[0].id == "1-1"
    for task in (reading, *calls):
        task.cancel()
    await asyncio.gather(reading, *calls, return_exceptions=True)


async def test_an_answer_that_is_left_and_joined_again_has_no_gap(
    client: ChatClient, worker: PlayedWorker, redis: Redis, handle: JobHandle
) -> None:
    feed_of_client = client._reader._feed
    ahead = feed_of_client.join(handle.job_id, START, START)
    assert ahead is not None
    for seq in range(1, 4):
        await worker.say(handle.job_id, f"1-{seq}", "delta", text="글")
        assert await asyncio.wait_for(ahead.next(), 5)
    await until(lambda: blocked(redis), "a read blocks, after the third event")
    feed_of_client.leave(ahead)
    behind = feed_of_client.join(handle.job_id, EntryId(1, 1), EntryId(1, 1))
    assert behind is not None
    await worker.say(handle.job_id, "1-4", "done", message_id=7, finish_reason="stop")
    heard = [await asyncio.wait_for(behind.next(), 5) for _ in range(3)]
    assert [item and item[0].id for item in heard] == ["1-2", "1-3", "1-4"]


async def test_a_slow_reader_is_let_go_with_its_id_and_goes_on_from_there(
    handle: JobHandle, worker: PlayedWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_EVENTS", 10)
    monkeypatch.setattr(feed, "BATCH", 5)
    slow, quick = handle.events(), asyncio.create_task(ids(handle))
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    seen = [(await anext(slow)).id]
    last = asyncio.ensure_future(anext(slow))  # waits for what comes, and then stands still
    await until(lambda: blocked(redis), "a read blocks")
    for seq in range(2, 60):
        await worker.say(handle.job_id, f"1-{seq}", "delta", text="글")
    await worker.say(handle.job_id, "1-60", "done", message_id=7, finish_reason="stop")
    every = [f"1-{seq}" for seq in range(1, 61)]
    assert await asyncio.wait_for(quick, 5) == every
    seen.append((await last).id)

    async def read_on() -> None:
        async for event in slow:
            seen.append(event.id)

    with pytest.raises(ReaderTooSlow) as caught:
        await read_on()
    assert caught.value.last_id == seen[-1]
    assert len(seen) <= 1 + 1 + 10
    assert seen + await ids(handle, last_id=caught.value.last_id) == every


async def test_a_late_reader_reads_as_slowly_as_it_likes(
    handle: JobHandle, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_EVENTS", 10)
    for seq in range(1, 100):
        await worker.say(handle.job_id, f"1-{seq}", "delta", text="글")
    await worker.say(handle.job_id, "1-100", "done", message_id=7, finish_reason="stop")
    seen = []
    async for event in handle.events():
        await asyncio.sleep(0.001)
        seen.append(event.id)
    assert len(seen) == 100


async def test_one_key_of_a_wrong_type_stops_its_own_readers_alone(
    client: ChatClient, worker: PlayedWorker, redis: Redis
) -> None:
    good, bad = await ask(client), await ask(client)
    readings = [asyncio.create_task(ids(handle)) for handle in (good, bad)]
    for handle in (good, bad):
        await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    await until(lambda: blocked(redis), "a read blocks")
    await redis.set(keys.events(bad.job_id), "no stream")
    with pytest.raises(RedisRefused):
        await asyncio.wait_for(readings[1], 10)
    await worker.say(good.job_id, "1-2", "done", message_id=7, finish_reason="stop")
    assert await asyncio.wait_for(readings[0], 5) == ["1-1", "1-2"]


async def test_closing_the_client_lets_its_readers_go(redis_url: str) -> None:
    async with ChatClient.connect(redis_url) as client:
        handle = await ask(client)
        reading = asyncio.create_task(ids(handle))
        await until(lambda: blocked(client._connection._redis), "a read blocks")
    with pytest.raises(ClientClosed, match="closed"):
        await asyncio.wait_for(reading, 5)


async def test_a_closed_client_says_so_and_stays_closed(redis_url: str, redis: Redis) -> None:
    async with ChatClient.connect(redis_url) as client:
        handle = await ask(client)
    before = await redis.dbsize()
    for late in (ask(client), ids(handle), handle.text(), handle.result(1), handle.cancel(timeout_s=1)):
        with pytest.raises(ClientClosed, match="closed"):
            await asyncio.wait_for(late, 5)
    assert await redis.dbsize() == before

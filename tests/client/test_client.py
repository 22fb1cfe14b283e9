"""The client asks, waits for results, cancels and reads history; against a real Redis and a played worker."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis as blocking_redis
from arq.connections import ArqRedis
from arq.jobs import Job, JobStatus
from protostar_client import (
    Cancelled,
    ChatClient,
    ClientClosed,
    ErrorCode,
    InvalidRequest,
    InvalidUrl,
    JobError,
    JobHandle,
    JobVanished,
    ProtostarError,
    QueueFull,
    SessionBusy,
    keys,
    sync,
)
from protostar_client.codec import dump_json, load_json
from protostar_client.contract import ChatRequest
from redis.asyncio import Redis

from tests.support.played_worker import ANSWER, USER, PlayedWorker, ask, ids

pytest_plugins = ["tests.support.client_fixtures"]


# Enqueueing


async def test_enqueue_writes_arqs_wire_format(client: ChatClient, redis: Redis) -> None:
    handle = await ask(client, "질문", context="글")
    payload = json.loads(await redis.get(keys.job(handle.job_id)))
    enqueued_ms = payload.pop("et")
    arguments = {
        "user_uuid": str(USER),
        "session_id": "s",
        "content": "질문",
        "mode": "general",
        "context": "글",
    }
    assert payload == {"t": None, "f": "generate_chat", "a": [], "k": arguments}
    assert abs(enqueued_ms - time.time() * 1000) < 5_000
    assert 86_390_000 < await redis.pttl(keys.job(handle.job_id)) <= 86_400_000
    assert int(await redis.zscore(keys.QUEUE, handle.job_id)) == enqueued_ms


async def test_stock_arq_reads_what_was_enqueued(handle: JobHandle, redis: Redis) -> None:
    job = Job(handle.job_id, redis, _deserializer=json.loads)
    info = await job.info()
    assert info is not None
    assert (info.function, info.kwargs["content"]) == ("generate_chat", "질문")
    await asyncio.sleep(0.002)  # the score's fraction of a millisecond is over
    assert await job.status() is JobStatus.queued


async def test_turns_of_one_millisecond_keep_their_order(client: ChatClient, redis: Redis) -> None:
    handles = [await ask(client, job_id=f"{number:03}-{uuid4().hex}") for number in range(200)]
    queued = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    assert [job_id.decode() for job_id, _ in queued] == [handle.job_id for handle in handles]
    assert len({score for _, score in queued}) == len(handles)


async def test_enqueue_wakes_an_idle_worker(client: ChatClient, heard: Callable[[], Awaitable[str]]) -> None:
    handle = await ask(client)
    assert await heard() == handle.job_id


async def test_the_same_id_again_is_the_same_turn(client: ChatClient, redis: Redis, worker: PlayedWorker) -> None:
    first = await ask(client, "first", job_id="turn")
    again = await ask(client, "second", job_id="turn")
    assert (first.created, again.created) == (True, False)
    assert load_json(await redis.get(keys.job("turn")))["k"]["content"] == "first"
    await worker.finish("turn", ANSWER)
    assert (await (await ask(client, job_id="turn")).result(1)).message_id == 7
    assert await redis.zcard(keys.QUEUE) == 0


async def test_an_id_of_another_users_job_is_refused(client: ChatClient) -> None:
    await ask(client, job_id="turn")
    with pytest.raises(InvalidRequest, match="job_id"):
        await ask(client, job_id="turn", user_uuid=uuid4())


async def test_an_id_of_the_workers_own_jobs_is_refused(client: ChatClient, redis: Redis) -> None:
    for prefix in keys.OWN_JOB_IDS:
        with pytest.raises(InvalidRequest, match="job_id"):
            await ask(client, job_id=f"{prefix}1")
    assert await redis.zcard(keys.QUEUE) == 0


async def test_a_full_queue_refuses_and_enqueues_nothing(redis_url: str, redis: Redis) -> None:
    async with ChatClient.connect(redis_url, max_queue=1) as client:
        first = await ask(client)
        with pytest.raises(QueueFull, match="queue_full: 1 jobs wait"):
            await ask(client)
        assert not (await ask(client, job_id=first.job_id)).created
    assert len(await redis.keys(keys.JOB_PREFIX + "*")) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_uuid", "nobody"),
        ("session_id", ""),
        ("session_id", "s" * 129),
        ("session_id", "a\nb"),
        ("session_id", "\ud800"),
        ("content", ""),
        ("content", "\x00"),
        ("content", "x" * 32_001),
        ("content", 5),
        ("context", "x" * 400_001),
        ("mode", "\x1b[0m"),
        ("job_id", ""),
        ("job_id", "a\x00b"),
        ("job_id", "x" * 257),
    ],
)
async def test_a_wrong_argument_is_named_and_nothing_is_enqueued(
    client: ChatClient, redis: Redis, field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest, match=f"^invalid_request: {field}: ") as caught:
        await ask(client, **{field: value})
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_REQUEST, field)
    assert await redis.dbsize() == 0


async def test_a_job_id_that_is_too_long_is_told_in_characters(client: ChatClient) -> None:
    with pytest.raises(InvalidRequest, match=r"^invalid_request: job_id: is too long; give at most 256 characters$"):
        await ask(client, job_id="글" * 257)
    with pytest.raises(InvalidRequest, match=r"^invalid_request: job_id: is empty; give at least one character$"):
        client.handle("", user_uuid=USER)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://someone:hush@host/0", "http"),
        ("hush@host:6379", "redis_url"),
        ("redis://someone:hu/sh@host:6379/0", "redis_url"),
        ("redis://:hush@host?db=first", "redis_url"),
    ],
)
def test_a_url_that_is_not_redis_is_refused_without_its_password(url: str, named: str) -> None:
    with pytest.raises(InvalidUrl, match=named) as caught, sync.ChatClient.connect(url):
        pass
    assert isinstance(caught.value, ProtostarError)
    assert not any(word in str(caught.value) for word in ("hush", "'hu'", "someone"))
    assert caught.value.__suppress_context__


def test_a_request_cleans_what_no_database_takes() -> None:
    request = ChatRequest.parse(
        {
            "user_uuid": str(USER),
            "session_id": "s",
            "content": "a\x00\x1b\x85b\t\r\n😀\ud83d",
            "context": "\udc00",
        }
    )
    assert (request.content, request.context) == ("ab\t\r\n😀\ufffd", "\ufffd")


# A session that is busy


async def test_reject_raises_while_a_turn_of_the_session_waits_and_enqueues_nothing(
    client: ChatClient, redis: Redis, worker: PlayedWorker
) -> None:
    first = await ask(client)
    with pytest.raises(SessionBusy) as caught:
        await ask(client, on_busy="reject")
    assert (caught.value.session_id, caught.value.job_id) == ("s", first.job_id)
    assert await redis.zcard(keys.QUEUE) == 1
    await ask(client, on_busy="reject", session_id="another")
    await ask(client, on_busy="reject", user_uuid=uuid4())
    assert not (await ask(client, on_busy="reject", job_id=first.job_id)).created
    await worker.finish(first.job_id, ANSWER)
    assert (await ask(client, on_busy="reject")).created


@pytest.mark.parametrize("more", [{}, {"_defer_by": 60}], ids=["due", "deferred"])
async def test_reject_and_interrupt_see_the_turns_of_other_producers(
    client: ChatClient, redis_url: str, redis: Redis, more: dict[str, Any]
) -> None:
    async with ArqRedis.from_url(redis_url) as other:
        other.job_serializer = dump_json
        turn = {"user_uuid": USER.hex.upper(), "session_id": "s", "content": "질문"}
        job = await other.enqueue_job("generate_chat", **turn, **more)
        await other.enqueue_job("read_history", user_uuid=str(USER), session_id="s")
    assert job is not None
    with pytest.raises(SessionBusy, match=job.job_id):
        await ask(client, on_busy="reject")
    await ask(client, on_busy="interrupt")
    asked = await redis.zrange(keys.ABORT, 0, -1, withscores=True)
    assert [name for name, _ in asked] == [job.job_id.encode()]
    queued_for = await redis.zscore(keys.QUEUE, job.job_id)
    assert queued_for is not None
    assert asked[0][1] >= int(queued_for)  # or the worker takes the request for an older job's


async def test_interrupt_asks_every_turn_of_the_session_to_end_once(
    client: ChatClient, redis: Redis, heard: Callable[[], Awaitable[str]]
) -> None:
    running, waiting, unseen, finished = [(await ask(client)).job_id for _ in range(4)]
    await ask(client, session_id="another")
    # As the worker keeps them: the running turn, one that waits for it, and what is left of one that is gone.
    session = keys.session(USER, "s")
    await redis.hset(keys.HOLDERS, session, running)  # type: ignore[misc]
    await redis.zadd(keys.turns(session), {waiting: 2, finished: 3})
    await redis.zadd(keys.QUEUE, {running: -1, waiting: -2})
    await redis.zrem(keys.QUEUE, finished)
    for _ in range(5):
        await heard()
    asking = [ask(client, on_busy="interrupt", job_id="new") for _ in range(2)]
    assert sorted(handle.created for handle in await asyncio.gather(*asking)) == [False, True]
    told = [await heard() for _ in range(4)]
    assert sorted(told[:3]) == sorted(keys.WAKE_ABORT_PREFIX + job_id for job_id in (running, waiting, unseen))
    assert told[3] == "new"
    assert await redis.zcard(keys.ABORT) == 3


async def test_a_full_queue_interrupts_nothing(redis_url: str, redis: Redis) -> None:
    async with ChatClient.connect(redis_url, max_queue=1) as client:
        await ask(client)
        with pytest.raises(QueueFull):
            await ask(client, on_busy="interrupt")
    assert await redis.exists(keys.ABORT) == 0


async def test_on_busy_is_one_of_three(client: ChatClient) -> None:
    with pytest.raises(InvalidRequest, match=r"on_busy: .*enqueue, reject, interrupt"):
        await ask(client, on_busy="wait")


# Results and cancelling


async def test_result_waits_for_the_worker(handle: JobHandle, worker: PlayedWorker) -> None:
    waiting = asyncio.create_task(handle.result(timeout_s=5))
    await worker.finish(handle.job_id, {**ANSWER, "of_a_newer_worker": 1})
    assert (await waiting).content == "안녕하세요"


async def test_result_of_a_waiting_job_times_out(handle: JobHandle) -> None:
    with pytest.raises(TimeoutError):
        await handle.result(timeout_s=0.05)


async def test_result_raises_what_the_job_raised(client: ChatClient, worker: PlayedWorker) -> None:
    failed, cancelled = await ask(client), await ask(client)
    await worker.finish(failed.job_id, JobError(ErrorCode.PROVIDER_ERROR, "no such model"), success=False)
    await worker.finish(cancelled.job_id, asyncio.CancelledError(), success=False)
    with pytest.raises(JobError, match="provider_error: no such model"):
        await failed.result(1)
    with pytest.raises(Cancelled):
        await cancelled.result(1)


async def test_a_pickled_result_is_an_error_and_runs_nothing(handle: JobHandle, redis: Redis) -> None:
    await redis.set(keys.result(handle.job_id), b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(JobError, match="internal"):
        await handle.result(1)


async def test_cancel_asks_and_waits_for_the_end(
    handle: JobHandle, worker: PlayedWorker, redis: Redis, heard: Callable[[], Awaitable[str]]
) -> None:
    cancelling = asyncio.create_task(handle.cancel(timeout_s=5))
    assert await heard() == f"abort:{handle.job_id}"
    assert abs(await redis.zscore(keys.ABORT, handle.job_id) - time.time() * 1000) < 5_000
    assert not cancelling.done()
    await worker.finish(handle.job_id, asyncio.CancelledError(), success=False)
    assert await cancelling is True


async def test_cancel_of_an_ended_job_leaves_no_request_behind(
    handle: JobHandle, worker: PlayedWorker, redis: Redis
) -> None:
    await worker.finish(handle.job_id, ANSWER)
    assert await handle.cancel() is False
    assert await redis.exists(keys.ABORT) == 0


async def test_cancel_of_a_job_that_left_no_trace_says_so(handle: JobHandle, redis: Redis) -> None:
    await redis.flushall()
    with pytest.raises(JobVanished):
        await handle.cancel(timeout_s=5)


async def test_cancel_without_a_worker_times_out(handle: JobHandle) -> None:
    with pytest.raises(TimeoutError):
        await handle.cancel(timeout_s=0.05)


async def test_another_user_reads_and_cancels_nothing(
    client: ChatClient, handle: JobHandle, worker: PlayedWorker, redis: Redis
) -> None:
    await worker.say(handle.job_id, "1-1", "delta", text="secret")
    for _ in range(2):
        stranger = client.handle(handle.job_id, user_uuid=uuid4())
        for attempt in (stranger.text(), stranger.result(1), stranger.cancel(timeout_s=1), ids(stranger)):
            with pytest.raises(JobVanished):
                await asyncio.wait_for(attempt, 5)
        assert await redis.exists(keys.ABORT) == 0
        if await redis.exists(keys.job(handle.job_id)):
            await worker.finish(handle.job_id, ANSWER)
    owner = client.handle(handle.job_id, user_uuid=str(USER).upper())
    assert (await owner.result(1)).message_id == 7


# History


async def test_history_is_read_by_a_job(
    client: ChatClient, worker: PlayedWorker, redis: Redis, heard: Callable[[], Awaitable[str]]
) -> None:
    reading = asyncio.create_task(client.history(user_uuid=USER, session_id="s", limit=2))
    job_id = await heard()
    job = load_json(await redis.get(keys.job(job_id)))
    assert (job["f"], job["k"]) == ("read_history", {"user_uuid": str(USER), "session_id": "s", "limit": 2})
    message = {
        "message_id": 1,
        "role": "user",
        "content": "질문",
        "summary": None,
        "status": "completed",
        "created_at": "2025-11-22T13:00:00+00:00",
        "job_id": "turn",
    }
    await worker.finish(job_id, {"messages": [message]})
    (read,) = await asyncio.wait_for(reading, 5)
    assert read.model_dump(mode="json") == {**message, "created_at": "2025-11-22T13:00:00Z"}
    assert await redis.keys("*") == []


# Without async


def test_sync_asks_reads_and_cancels(redis_url: str) -> None:
    with sync.ChatClient.connect(redis_url) as client, blocking_redis.Redis.from_url(redis_url) as redis:
        handle = client.enqueue(user_uuid=USER, session_id="s", content="질문", job_id="turn")
        for seq, kind in enumerate(("delta", "delta", "done"), start=1):
            data = {"v": 1, "type": kind, "job_id": "turn", "attempt": 1, "seq": seq, "text": "글"}
            redis.xadd(keys.events("turn"), {"data": json.dumps(data)}, id=f"1-{seq}")
        assert [event.id for event in handle.events()] == ["1-1", "1-2", "1-3"]
        assert [event.id for event in handle.events(last_id="1-2")] == ["1-3"]
        assert next(handle.events()).text == "글"
        assert handle.text() == "글글"
        with pytest.raises(TimeoutError):
            handle.result(timeout_s=0.05)
        with pytest.raises(TimeoutError):
            handle.cancel(timeout_s=0.05)
        with pytest.raises(TimeoutError):
            client.history(user_uuid=USER, session_id="s", timeout_s=0.05)
        with pytest.raises(JobVanished):
            client.handle("turn", user_uuid=uuid4()).text()
        with pytest.raises(InvalidRequest, match="content"):
            client.enqueue(user_uuid=USER, session_id="s", content="")
        with pytest.raises(SessionBusy, match="turn"):
            client.enqueue(user_uuid=USER, session_id="s", content="질문", on_busy="reject")
        client.enqueue(user_uuid=USER, session_id="s", content="질문", on_busy="interrupt")
        assert redis.zrange(keys.ABORT, 0, -1) == [b"turn"]


def test_sync_says_that_it_is_closed(redis_url: str) -> None:
    with sync.ChatClient.connect(redis_url) as client:
        handle = client.enqueue(user_uuid=USER, session_id="s", content="질문")
        begun, outcome = handle.events(), list[BaseException]()
        waiting = threading.Thread(target=lambda: outcome.append(_raised(handle.text)))
        waiting.start()
    waiting.join(10)
    ask_late = partial(client.enqueue, user_uuid=USER, session_id="s", content="질문")
    late: list[Callable[[], object]] = [handle.text, handle.result, handle.cancel, partial(next, begun), ask_late]
    outcome += [_raised(call) for call in late]
    assert [type(error) for error in outcome] == [ClientClosed] * 6


def _raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (which one is what is asked)
        call()
    return caught.value

"""The client against a real Redis. The worker's side is played by its protocol: events, then ARQ's result."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis as blocking_redis
from arq.jobs import Job, JobStatus, serialize_result
from protostar_client import (
    Cancelled,
    ChatClient,
    ConnectionLost,
    ErrorCode,
    EventsExpired,
    InvalidRequest,
    JobError,
    JobHandle,
    JobVanished,
    QueueFull,
    keys,
    sync,
)
from protostar_client.contract import ChatRequest, dump_json, load_json
from redis.asyncio import Redis

import stack.redis

USER = UUID("6f1c2f6e-5a0f-4b7e-9d1c-0d4f9a1b2c3d")
ANSWER = {
    "message_id": 7,
    "session_id": "s",
    "content": "안녕하세요",
    "finish_reason": "stop",
    "model": "m",
    "usage": {"input_tokens": 3, "output_tokens": 2, "cost": None, "estimated": False},
    "sources": [],
    "attempt": 1,
}


class PlayedWorker:
    """Writes what a worker writes."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def say(self, job_id: str, event_id: str, kind: str, **fields: Any) -> None:
        attempt, seq = map(int, event_id.split("-"))
        data = {"v": 1, "type": kind, "job_id": job_id, "attempt": attempt, "seq": seq, **fields}
        await self.redis.xadd(keys.events(job_id), {"data": json.dumps(data)}, id=event_id)

    async def finish(self, job_id: str, result: Any, *, success: bool = True) -> None:
        job = load_json(await self.redis.get(keys.job(job_id)))
        stored = serialize_result(
            job["f"],
            (),
            job["k"],
            1,
            job["et"],
            success,
            result,
            1,
            2,
            "ref",
            keys.QUEUE,
            job_id,
            serializer=dump_json,
        )
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.result(job_id), stored or b"")
            pipe.delete(keys.job(job_id))
            pipe.zrem(keys.QUEUE, job_id)
            await pipe.execute()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def worker(redis: Redis) -> PlayedWorker:
    return PlayedWorker(redis)


@pytest.fixture
async def heard(redis: Redis) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Waits for what the next idle worker hears."""

    async def next_message() -> str:
        while True:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=5)
            if message is not None:
                return str(message["data"].decode())

    async with redis.pubsub() as channel:
        await channel.subscribe(keys.WAKE)
        await channel.get_message(timeout=5)
        yield lambda: asyncio.wait_for(next_message(), 5)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[ChatClient]:
    async with ChatClient.connect(redis_url) as connected:
        yield connected


@pytest.fixture
async def handle(client: ChatClient) -> JobHandle:
    return await ask(client)


async def ask(client: ChatClient, content: str = "질문", **arguments: Any) -> JobHandle:
    defaults: dict[str, Any] = {"user_uuid": USER, "session_id": "s", "content": content}
    return await client.enqueue(**(defaults | arguments))


async def ids(handle: JobHandle, last_id: str | None = None) -> list[str]:
    return [event.id async for event in handle.events(last_id)]


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


async def test_on_busy_knows_enqueue_only(client: ChatClient) -> None:
    with pytest.raises(ValueError, match="on_busy"):
        await ask(client, on_busy="interrupt")


# Reading


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
    await redis.flushall()
    with pytest.raises(JobVanished):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(JobVanished):
        await asyncio.wait_for(reading, 10)


async def test_an_expired_log_is_told_and_text_still_has_the_answer(handle: JobHandle, worker: PlayedWorker) -> None:
    await worker.finish(handle.job_id, ANSWER)
    with pytest.raises(EventsExpired):
        await ids(handle)
    assert await handle.text() == "안녕하세요"


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


async def test_a_last_id_that_is_none_is_refused(handle: JobHandle) -> None:
    with pytest.raises(InvalidRequest, match="last_id"):
        await ids(handle, last_id="$")


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


# Redis away


@asynccontextmanager
async def losing_replies(redis_url: str, *, to: bytes, times: int) -> AsyncIterator[str]:
    """A server in front of Redis that carries out every command, but loses the first replies to one."""
    socket_path = redis_url.removeprefix("unix://")
    left = times

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(socket_path)
        try:
            while command := await reader.read(65_536):
                upstream_writer.write(command)
                reply = await upstream_reader.read(65_536)
                if to in command.upper() and not reply.startswith(b"-") and left > 0:
                    left -= 1
                    return
                writer.write(reply)
        finally:
            upstream_writer.close()
            writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert left == 0 or times > 1


async def test_a_lost_reply_is_no_duplicate(redis_url: str, redis: Redis) -> None:
    async with (
        losing_replies(redis_url, to=b"EVALSHA", times=1) as lossy_url,
        ChatClient.connect(lossy_url) as client,
    ):
        handle = await ask(client, job_id="turn")
    assert handle.created
    assert await redis.zrange(keys.QUEUE, 0, -1) == [b"turn"]


async def test_a_connection_that_stays_lost_names_the_id_to_enqueue_again(
    redis_url: str, redis: Redis, client: ChatClient
) -> None:
    async with (
        losing_replies(redis_url, to=b"EVALSHA", times=1_000) as lossy_url,
        ChatClient.connect(lossy_url, patience_s=0.2) as lossy,
    ):
        with pytest.raises(ConnectionLost) as caught:
            await ask(lossy)
    assert caught.value.job_id is not None
    await ask(client, job_id=caught.value.job_id)
    assert await redis.zrange(keys.QUEUE, 0, -1) == [caught.value.job_id.encode()]


async def test_a_reader_outlives_a_restart_of_redis(
    handle: JobHandle, worker: PlayedWorker, redis_server: stack.redis.Redis
) -> None:
    await worker.say(handle.job_id, "1-1", "start", session_id="s", model="m")
    events = handle.events()
    assert (await anext(events)).id == "1-1"
    following = asyncio.ensure_future(anext(events))
    await asyncio.to_thread(redis_server.stop)
    await asyncio.to_thread(redis_server.start)
    await worker.say(handle.job_id, "1-2", "delta", text="글")
    assert (await asyncio.wait_for(following, 10)).id == "1-2"
    await events.aclose()


async def test_connect_to_nothing_fails_at_once_with_one_line() -> None:
    with pytest.raises(ConnectionLost, match=r"^Redis can't be reached: [^\n]+$"):
        async with ChatClient.connect("redis://127.0.0.1:1/0"):
            pass


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

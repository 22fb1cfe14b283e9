"""The client against a real worker: reading, cancelling, taking turns in a session, and to whom an answer belongs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
from protostar_client import Cancelled, ChatClient, Event, EventType, JobHandle, JobVanished, SessionBusy, keys, sync

from tests.support.stack_under_test import Stack, until

PIECES = [f"{number}번째 조각. " for number in range(40)]
TEXT = "".join(PIECES)


@pytest.fixture
async def client(shared_stack: Stack) -> AsyncIterator[ChatClient]:
    async with ChatClient.connect(shared_stack.environment["REDIS_URL"]) as connected:
        yield connected


async def ask(client: ChatClient, content: str = "질문", **more: object) -> JobHandle:
    turn = {"user_uuid": uuid4(), "session_id": "s", "content": content, **more}
    return await client.enqueue(**turn)  # type: ignore[arg-type]


async def told(handle: JobHandle, last_id: str | None = None) -> list[Event]:
    return [event async for event in handle.events(last_id)]


async def settled(stack: Stack, handle: JobHandle) -> list[dict[str, Any]]:
    await handle.result()
    return await stack.messages(handle.job_id)


def text_of(events: list[Event]) -> str:
    """The text, as a reader joins it."""
    parts: list[str] = []
    for event in events:
        if event.type in (EventType.RESTART, EventType.GAP):
            parts.clear()
        parts.append(event.text or "")
    return "".join(parts)


async def test_readers_that_leave_and_come_back_hold_the_stored_answer(shared_stack: Stack, client: ChatClient) -> None:
    stack, chance = shared_stack, random.Random(4)
    stack.model.script({"pieces": PIECES, "delay_s": 0.01})
    handle = await ask(client)

    async def read(leave_after: int) -> list[Event]:
        events: list[Event] = []
        while not events or not events[-1].is_ending:
            async with ChatClient.connect(stack.environment["REDIS_URL"]) as process:
                again = process.handle(handle.job_id, user_uuid=handle.user_uuid)
                left = leave_after
                async for event in again.events(events[-1].id if events else None):
                    events.append(event)
                    left -= 1
                    if left == 0:
                        break
        return events

    readings = await asyncio.gather(*(read(chance.randint(1, 12)) for _ in range(20)))
    [_, answer] = await stack.messages(handle.job_id)
    assert answer["content"] == TEXT
    for events in readings:
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert text_of(events) == TEXT
    assert (await handle.result()).content == await handle.text() == TEXT


async def test_a_log_that_is_gone_in_the_middle_of_an_answer_ends_with_the_stored_answer(
    shared_stack: Stack, client: ChatClient
) -> None:
    stack = shared_stack
    stack.model.script({"pieces": PIECES, "after": 20, "hold": "middle"})
    handle = await ask(client)
    reading = asyncio.create_task(told(handle))
    await stack.model.until_waiting("middle")

    async def heard() -> bool:
        return int(await stack.redis.xlen(keys.events(handle.job_id))) > 1

    await until(heard, "the first half is in the log")
    await stack.redis.delete(keys.events(handle.job_id))
    late = [asyncio.create_task(told(handle, last_id)) for last_id in (None, "1-1")]
    stack.model.release("middle")
    [_, answer] = await settled(stack, handle)
    for first, task in zip(("0-0", "1-1"), late, strict=True):
        gap, delta, done = await task
        assert (gap.type, gap.id, delta.type, delta.text, done.type) == ("gap", first, "delta", TEXT, "done")
        assert done.message_id == answer["id"]
        assert await told(handle, done.id) == []
    assert text_of(await reading) == await handle.text() == TEXT


async def test_cancel_ends_a_running_turn_and_keeps_what_it_said(shared_stack: Stack, client: ChatClient) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"})
    handle = await ask(client)
    await stack.until_said(handle.job_id, "반쪽")
    assert await handle.cancel() is True
    await stack.model.until_idle()
    events = [event async for event in handle.events()]
    [_, answer] = await stack.messages(handle.job_id)
    assert (events[-1].type, events[-1].message_id) == ("cancelled", answer["id"])
    assert (answer["status"], answer["content"], text_of(events)) == ("cancelled", "반쪽", "반쪽")
    with pytest.raises(Cancelled):
        await handle.text()


async def test_reject_is_refused_from_enqueue_to_the_end_of_a_turn(shared_stack: Stack, client: ChatClient) -> None:
    stack, user = shared_stack, uuid4()
    stack.model.script({"pieces": ["하나."], "hold": "first"}, {"pieces": ["둘."]})
    first = await ask(client, user_uuid=user)
    with pytest.raises(SessionBusy):  # no worker may have seen it yet
        await ask(client, user_uuid=user, on_busy="reject")
    await stack.model.until_waiting("first")
    with pytest.raises(SessionBusy, match=first.job_id):
        await ask(client, user_uuid=user, on_busy="reject")
    stack.model.release("first")
    assert (await first.result()).content == "하나."
    second = await ask(client, user_uuid=user, on_busy="reject")
    assert await second.text() == "둘."


async def test_interrupt_ends_the_running_and_the_waiting_turns_and_answers_the_new_one(
    shared_stack: Stack, client: ChatClient
) -> None:
    stack, user = shared_stack, uuid4()
    stack.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"}, {"pieces": ["새 답."]})
    running = await ask(client, user_uuid=user)
    await stack.model.until_waiting("never")
    stock = await stack.ask("ARQ로 넣은 질문", user=str(user))
    waiting = [client.handle(stock.job_id, user_uuid=user), await ask(client, user_uuid=user)]
    new = await ask(client, user_uuid=user, on_busy="interrupt")
    assert await asyncio.wait_for(new.text(), 5) == "새 답."
    for handle in (running, *waiting):
        with pytest.raises(Cancelled):
            await asyncio.wait_for(handle.text(), 5)
    assert [len(await stack.messages(handle.job_id)) for handle in (running, *waiting, new)] == [2, 0, 0, 2]
    assert len(stack.model.requests()) == 2
    assert await stack.redis.exists(keys.ABORT) == 0


async def test_a_turn_that_was_just_enqueued_can_be_interrupted(shared_stack: Stack, client: ChatClient) -> None:
    stack, user = shared_stack, uuid4()
    stack.model.script(*({"contains": f"질문 {number}", "hold": "never"} for number in range(9)))
    turns = [await ask(client, f"질문 {number}", user_uuid=user, on_busy="interrupt") for number in range(10)]
    assert await turns[-1].text() != ""
    for turn in turns[:-1]:
        with pytest.raises(Cancelled):
            await asyncio.wait_for(turn.text(), 5)
    kept = await stack.rows(
        "SELECT m.status FROM messages m JOIN sessions s ON s.id = m.session_id"
        " WHERE s.user_uuid = $1 AND m.role = 'assistant' ORDER BY m.id",
        user,
    )
    assert [row["status"] for row in kept][-1] == "completed"
    assert all(row["status"] == "cancelled" for row in kept[:-1])


async def test_another_users_id_reads_follows_cancels_and_interrupts_nothing(
    shared_stack: Stack, client: ChatClient
) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["비밀", "."], "after": 1, "hold": "open"}, {"pieces": ["남의 답."]})
    handle = await ask(client)
    await stack.model.until_waiting("open")
    stranger = uuid4()
    other = client.handle(handle.job_id, user_uuid=stranger)
    for attempt in (other.text(), other.result(1), other.cancel(), anext(other.events())):
        with pytest.raises(JobVanished):
            await asyncio.wait_for(attempt, 5)
    # A session of the same name is the stranger's own.
    theirs = await ask(client, user_uuid=stranger, on_busy="reject")
    assert await theirs.text() == "남의 답."
    await ask(client, user_uuid=stranger, on_busy="interrupt")
    history = await client.history(user_uuid=stranger, session_id="s")
    assert "비밀" not in "".join(message.content for message in history)
    stack.model.release("open")
    assert await handle.text() == "비밀."
    with pytest.raises(JobVanished):
        await other.text()


async def test_without_async_it_is_the_same(shared_stack: Stack) -> None:
    stack, user = shared_stack, uuid4()
    stack.model.script(
        {"contains": "첫째", "pieces": ["반쪽"], "hold": "never"}, {"contains": "둘째", "pieces": ["새 답."]}
    )

    def talk() -> tuple[list[str], str]:
        with sync.ChatClient.connect(stack.environment["REDIS_URL"]) as client:
            running = client.enqueue(user_uuid=user, session_id="s", content="첫째 질문")
            types = [next(running.events()).type]
            with pytest.raises(SessionBusy):
                client.enqueue(user_uuid=user, session_id="s", content="질문", on_busy="reject")
            new = client.enqueue(user_uuid=user, session_id="s", content="둘째 질문", on_busy="interrupt")
            types += [event.type for event in running.events()][-1:]
            text = new.text()
            assert [message.content for message in client.history(user_uuid=user, session_id="s")][-1] == text
            return types, text

    assert await asyncio.to_thread(talk) == (["start", "cancelled"], "새 답.")


async def test_an_abandoned_reader_ends_when_its_job_is_deleted(shared_stack: Stack, client: ChatClient) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"})
    handle = await ask(client)
    await stack.model.until_waiting("never")
    async with aclosing(handle.events()) as events:
        while (await anext(events)).type != EventType.DELTA:  # the last that the worker writes before it is released
            pass
    reading = asyncio.create_task(handle.text())
    async with stack.redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.job(handle.job_id), keys.events(handle.job_id), keys.lease(handle.job_id))
        pipe.zrem(keys.QUEUE, handle.job_id)
        await pipe.execute()
    with pytest.raises(JobVanished):
        await asyncio.wait_for(reading, 10)
    stack.model.release("never")
    await until(lambda: asyncio.to_thread(lambda: stack.model.in_flight() == 0), "the upstream request is over")

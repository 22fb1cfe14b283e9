"""A service that knows only the older protocol (LPUSH, SUBSCRIBE) is served as before, and loses nothing."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protostar_client.codec import dump_json
from redis.asyncio import Redis

from stack.processes import Process
from stack.redis import Redis as RedisServer
from tasks.legacy.intake import (
    BURY,
    DEAD_ELEMENT_MAX_CHARACTERS,
    INTAKE,
    OlderIntake,
    UnusableElementError,
    parse_element,
)
from tests.support.stack_under_test import ROOT, Stack, until

OLDER_QUEUE = "chat:job:queue"
OLDER_DEAD = "chat:job:dead"
ANSWER = ["작업은 ", "잃지 않", "습니다. ", "Nothing is lost. ", "🪐"]


class Gateway:
    """An older gateway: a list to push to, a channel to listen on."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.uuid = str(uuid4())
        self.session_id = "gateway-session"

    def request(self, content: Any, **more: Any) -> dict[str, Any]:
        named = {"uuid": self.uuid, "sessionId": self.session_id, "content": content}
        return named | {"mode": "general", "context": "", "timestamp": "2026-01-09T10:00:00.000Z"} | more

    async def push(self, element: str | bytes) -> None:
        await push(self._redis, element)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(f"chat:stream:{self.uuid}-{self.session_id}")
            yield self._messages(pubsub)

    async def _messages(self, pubsub: Any) -> AsyncIterator[dict[str, Any]]:
        async with asyncio.timeout(30):
            async for raw in pubsub.listen():
                if raw["type"] == "message":
                    message = json.loads(raw["data"])
                    yield message
                    if message["type"] in ("done", "error"):
                        return


async def heard(messages: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message async for message in messages]


async def push(redis: Redis, element: str | bytes) -> None:
    await cast(Awaitable[int], redis.lpush(OLDER_QUEUE, element))


async def items(redis: Redis, key: str) -> list[bytes]:
    return await cast(Awaitable[list[bytes]], redis.lrange(key, 0, -1))


async def letters(redis: Redis) -> list[dict[str, Any]]:
    """What went to the dead ones, oldest first."""
    return [json.loads(item) for item in reversed(await items(redis, OLDER_DEAD))]


@pytest.mark.parametrize("by_id", [False, True], ids=["an object", "an id"])
async def test_an_unchanged_gateway_hears_the_stored_answer_and_then_done(shared_stack: Stack, by_id: bool) -> None:
    stack, gateway = shared_stack, Gateway(shared_stack.redis)
    stack.model.script({"pieces": ANSWER, "delay_s": 0.02})
    job_id = uuid4().hex
    request = gateway.request("워커가 죽으면 작업은 어떻게 되나요?", **({} if by_id else {"jobId": job_id}))
    if by_id:
        await stack.redis.set(f"chat:task:{job_id}", json.dumps(request))
    async with gateway.listening() as messages:
        await gateway.push(job_id if by_id else json.dumps(request))
        said = await heard(messages)

    question, answer = await stack.messages(job_id)
    assert question["content"] == request["content"]
    assert "".join(message["content"] for message in said[:-1]) == answer["content"] == "".join(ANSWER)
    assert [message["type"] for message in said] == ["message"] * (len(said) - 1) + ["done"]
    assert len(said) > 2
    assert said[-1]["content"] == "done"
    for message in said:
        assert (message["uuid"], message["sessionId"], message["jobId"]) == (gateway.uuid, gateway.session_id, job_id)
        assert message["timestamp"]
    assert await items(stack.redis, OLDER_QUEUE) == []


async def test_an_element_without_an_id_of_its_own_is_a_turn_too(shared_stack: Stack) -> None:
    stack, gateway = shared_stack, Gateway(shared_stack.redis)
    stack.model.script({"pieces": ["하나."]}, {"pieces": ["둘."]})
    for expected in ("하나.", "둘."):
        async with gateway.listening() as messages:
            # The same bytes twice are two questions: without an id nothing says that they are one.
            await gateway.push(json.dumps(gateway.request("같은 질문")))
            said = await heard(messages)
        assert [message["content"] for message in said] == [expected, "done"]


async def test_what_the_job_refuses_is_told_on_the_channel(shared_stack: Stack) -> None:
    gateway = Gateway(shared_stack.redis)
    async with gateway.listening() as messages:
        await gateway.push(json.dumps(gateway.request("질문", mode="poet")))
        [said] = await heard(messages)
    assert (said["type"], said["code"]) == ("error", "unknown_mode")
    assert "general" in said["content"]


async def test_what_cannot_become_a_job_is_told_on_the_channel_as_well(shared_stack: Stack) -> None:
    gateway = Gateway(shared_stack.redis)
    async with gateway.listening() as messages:
        await gateway.push(json.dumps(gateway.request(None, jobId=7)))
        [said] = await heard(messages)
    assert (said["type"], said["code"], said["jobId"]) == ("error", "invalid_request", "7")
    assert said["content"].startswith("content: ")


async def test_the_same_id_pushed_twice_is_one_turn(shared_stack: Stack) -> None:
    stack, gateway = shared_stack, Gateway(shared_stack.redis)
    stack.model.script({"pieces": ["한 번."], "hold": "twice", "after": 1})
    job_id = uuid4().hex
    await stack.redis.set(f"chat:task:{job_id}", json.dumps(gateway.request("한 번만")))
    async with gateway.listening() as messages:
        await gateway.push(job_id)
        await gateway.push(job_id)
        await stack.model.until_waiting("twice")
        await gateway.push(job_id)

        async def empty() -> bool:
            return not await items(stack.redis, OLDER_QUEUE)

        await until(empty, "every element is taken", stack.logs)
        stack.model.release("twice")
        assert [message["content"] for message in await heard(messages)] == ["한 번.", "done"]
    assert len(await stack.messages(job_id)) == 2
    assert len(stack.model.requests()) == 1


async def test_an_id_of_another_users_job_is_refused_and_shows_nothing(shared_stack: Stack) -> None:
    stack, job_id = shared_stack, uuid4().hex
    stack.model.script({"pieces": ["비밀."]})
    await stack.ask("질문", job_id=job_id)
    await stack.result(job_id)
    gateway = Gateway(stack.redis)
    async with gateway.listening() as messages:
        await gateway.push(json.dumps(gateway.request("훔치기", jobId=job_id)))
        [said] = await heard(messages)
    assert (said["type"], said["content"]) == ("error", "jobId: is the id of another job; use an id of your own")


async def test_turns_of_older_and_newer_producers_are_in_one_order(shared_stack: Stack) -> None:
    stack, gateway = shared_stack, Gateway(shared_stack.redis)
    stack.model.script({"pieces": ["네."], "times": None, "endpoint": "chat"})
    order: list[str] = []
    for number in range(20):
        word = f"{number}번째"
        order.append(word)
        if number % 4 == 3:

            async def taken() -> bool:
                return not await items(stack.redis, OLDER_QUEUE)

            await until(taken, "the older ones are queued before the newer one")
            # ARQ rounds the time of an enqueue to a whole millisecond: two jobs within one have no order.
            await next_millisecond(stack.redis)
            job = await stack.ask(word, user=gateway.uuid, session=gateway.session_id)
            await next_millisecond(stack.redis)
        else:
            await gateway.push(json.dumps(gateway.request(word)))
    await stack.events(job.job_id)
    assert [row["content"] for row in await questions(stack, gateway.uuid)] == order


async def next_millisecond(redis: Redis) -> None:
    """Wait until a time that was rounded to milliseconds is in the past."""
    seconds, microseconds = await redis.time()
    before = seconds * 1_000_000 + microseconds

    async def is_past() -> bool:
        seconds, microseconds = await redis.time()
        return bool(seconds * 1_000_000 + microseconds > before + 1_000)

    await until(is_past, "a millisecond has passed")


async def questions(stack: Stack, user: str) -> list[dict[str, Any]]:
    return await stack.rows(
        "SELECT m.* FROM messages m JOIN sessions s ON s.id = m.session_id "
        "WHERE s.user_uuid = $1 AND m.role = 'user' ORDER BY m.id",
        user,
    )


# What follows needs no worker: an intake, and what it leaves in Redis.


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@asynccontextmanager
async def intakes(redis: Redis, count: int = 1) -> AsyncIterator[None]:
    running = [OlderIntake(redis) for _ in range(count)]
    try:
        yield
    finally:
        for intake in running:
            await intake.close()


async def drained(redis: Redis) -> None:
    async def empty() -> bool:
        return not await items(redis, OLDER_QUEUE)

    await until(empty, "the list is empty")


async def queued(redis: Redis) -> list[dict[str, Any]]:
    """The jobs in the order of the queue, as ARQ stores them, each with its id."""
    ids = [job_id.decode() for job_id in await redis.zrange("arq:queue", 0, -1)]
    payloads = [json.loads(cast(bytes, await redis.get(f"arq:job:{job_id}"))) for job_id in ids]
    return [payload | {"id": job_id} for job_id, payload in zip(ids, payloads, strict=True)]


def element(content: Any, **more: Any) -> str:
    user = "6f1c0a3e-8d0b-4f0e-9b61-0d9c4a6b7e11"
    return json.dumps({"uuid": user, "sessionId": "s", "content": content, **more})


async def test_an_element_becomes_the_job_that_arq_itself_would_store(redis_client: Redis) -> None:
    async with intakes(redis_client), redis_client.pubsub() as pubsub:
        await pubsub.subscribe("protostar:wake")
        await push(redis_client, element("질문", sessionId=5, jobId=70, mode=None, more=[1]))
        await drained(redis_client)
        wakes = [await pubsub.get_message(timeout=5) for _ in range(2)]
    [job] = await queued(redis_client)
    assert job.pop("et") == pytest.approx(float((await redis_client.zscore("arq:queue", "70")) or 0), abs=1)
    user = "6f1c0a3e-8d0b-4f0e-9b61-0d9c4a6b7e11"
    arguments = {"user_uuid": user, "session_id": "5", "content": "질문", "mode": "general", "context": ""}
    assert job == {"id": "70", "t": None, "f": "generate_chat", "a": [], "k": arguments}
    assert 86_000_000 < await redis_client.pttl("arq:job:70") <= 86_400_000
    assert wakes[-1] is not None
    assert wakes[-1]["data"] == b"70"


async def test_several_intakes_take_each_element_once_and_in_order(redis_client: Redis) -> None:
    words = [str(number // 2) for number in range(400)]  # each twice, byte for byte
    async with intakes(redis_client, 4):
        for word in words:
            await push(redis_client, element(word))
        await drained(redis_client)
    assert [job["k"]["content"] for job in await queued(redis_client)] == words


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (b"", "an id of 1 to 256"),
        (b"nobody-knows-me", "chat:task:nobody-knows-me"),
        (b"12345678901234567890123", "chat:task:12345678901234567890123"),
        (b"null", "chat:task:null"),
        (b"x" * 257, "an id of 1 to 256"),
        (b"a\x00b", "an id of 1 to 256"),
        (b"\xff\xfe", "an id of 1 to 256"),
        (b"hash", "chat:task:hash is not a string"),
        (b"text", "not JSON"),
        (b'{"uuid": "', "not JSON"),
        (b'{"content": "\xff"}', "not UTF-8"),
        (b"[1, 2]", "not a JSON object"),
        (b'"quoted"', "not a JSON object"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":"' + b"x" * 9_000_000 + b'"}', "larger than 8388608 bytes"),
        (b"{}", "uuid: "),
        (element("", uuid="somebody").encode(), "uuid: "),
        (element("", uuid=5).encode(), "uuid: "),
        (element("", sessionId="").encode(), "sessionId: "),
        (element("", sessionId="a\x00b").encode(), "sessionId: "),
        (element("", sessionId="\ud800").encode(), "sessionId: "),
        (element("", sessionId=True).encode(), "sessionId: "),
        (element("", sessionId={"a": 1}).encode(), "sessionId: "),
        (element(["a"]).encode(), "content: "),
        (element(5).encode(), "content: "),
        (element("", context={"page": "a"}).encode(), "context: "),
        (element("", mode=1).encode(), "mode: "),
        (element("", jobId="x" * 257).encode(), "jobId: "),
        (element("", jobId=[]).encode(), "jobId: "),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_cannot_be_used_is_put_aside_with_the_reason_and_holds_nothing_up(
    redis_client: Redis, bad: bytes, named: str
) -> None:
    await redis_client.hset("chat:task:hash", "a", "b")  # type: ignore[misc]
    await redis_client.set("chat:task:text", "{")
    async with intakes(redis_client):
        await push(redis_client, bad)
        await push(redis_client, element("다음"))
        await drained(redis_client)
    [letter] = await letters(redis_client)
    assert letter.keys() == {"reason", "element", "at"}
    assert named in letter["reason"]
    assert letter["element"] == bad.decode(errors="backslashreplace")[:DEAD_ELEMENT_MAX_CHARACTERS]
    assert letter["at"].startswith("20")
    assert [job["k"]["content"] for job in await queued(redis_client)] == ["다음"]


FIELDS = st.sampled_from(["uuid", "sessionId", "content", "mode", "context", "jobId"])
VALUES = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()), st.just(str(UUID(int=7)))
)


@given(st.one_of(st.binary(), VALUES.map(json.dumps), st.dictionaries(FIELDS, VALUES).map(json.dumps)))
def test_every_element_is_a_job_or_says_why_not(data: bytes | str) -> None:
    try:
        job = parse_element(data if isinstance(data, bytes) else data.encode())
    except UnusableElementError as problem:
        reason = problem.reason
    else:
        reason = ""
        assert 1 <= len(job.job_id) <= 256
        dump_json(job.arguments)
    assert reason or job


async def test_the_guides_lines_put_dead_elements_back_in_order(redis_client: Redis, redis_url: str) -> None:
    for number in range(3):
        letter = {"reason": "", "element": element(number), "at": ""}
        await cast(Awaitable[int], redis_client.lpush(OLDER_DEAD, json.dumps(letter)))
    [lines] = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "from-brpop.md").read_text(), re.DOTALL)
    code = lines.replace('os.environ["REDIS_URL"]', repr(redis_url)) + "client.close()"
    await asyncio.to_thread(exec, code, {})
    assert await items(redis_client, OLDER_QUEUE) == [element(number).encode() for number in (2, 1, 0)]
    assert await letters(redis_client) == []


async def test_an_intake_that_was_frozen_takes_nothing_when_it_wakes(redis_client: Redis) -> None:
    """Between its look and its script another intake took the element, and the next one differs."""
    await push(redis_client, "next")
    assert await INTAKE.run(redis_client, "seen", "id", "{", 1000, str(uuid4())) == b"taken"
    assert await BURY.run(redis_client, "seen", "{}", "", "", 1, 1, "") == b"taken"
    assert await items(redis_client, OLDER_QUEUE) == [b"next"]
    assert await redis_client.keys() == [OLDER_QUEUE.encode()]


async def test_waiting_costs_next_to_nothing(redis_client: Redis) -> None:
    async with intakes(redis_client):
        await push(redis_client, element("하나"))
        await drained(redis_client)
        before = (await redis_client.info("stats"))["total_commands_processed"]
        await asyncio.sleep(3)
        assert (await redis_client.info("stats"))["total_commands_processed"] - before <= 5


async def test_an_intake_outlives_redis(redis_server: RedisServer, redis_client: Redis) -> None:
    async with intakes(redis_client):
        await redis_client.ping()
        redis_server.restart()
        async with Redis.from_url(redis_server.url) as client:
            await push(client, element("다시"))
            await drained(client)
            assert [job["k"]["content"] for job in await queued(client)] == ["다시"]


INTAKE_PROGRAM = """
import asyncio, sys
from redis.asyncio import Redis
from tasks.legacy.intake import OlderIntake
async def main():
    intake = OlderIntake(Redis.from_url(sys.argv[1]))
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_an_intake_killed_at_any_point_loses_and_doubles_nothing(redis_client: Redis, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    url = redis_client.connection_pool.connection_kwargs["path"]
    running: list[Process] = []

    def launch(number: int) -> Process:
        command = [sys.executable, "-c", INTAKE_PROGRAM, f"unix://{url}"]
        return Process(command, log=tmp_path / f"intake-{number}.log", cwd=ROOT)

    words: list[str] = []
    kills = 0
    try:
        running = [launch(0), launch(1)]
        while kills < 12 or len(words) < 3000:
            for _ in range(dice.randrange(1, 80)):
                word = str(len(words))
                words.append(word)
                if dice.random() < 0.3:
                    await redis_client.set(f"chat:task:t{word}", element(word))
                    await push(redis_client, f"t{word}")
                else:
                    await push(redis_client, element(word))
            # Killed while it works: one that has taken nothing yet would survive any bug.
            at_work = await redis_client.zcard("arq:queue") and await items(redis_client, OLDER_QUEUE)
            if at_work and dice.random() < 0.5:
                running.pop(dice.randrange(len(running))).kill()
                kills += 1
                running.append(launch(kills + 1))
            await asyncio.sleep(dice.random() * 0.05)
        await drained(redis_client)
    finally:
        for process in running:
            process.kill()
    assert [job["k"]["content"] for job in await queued(redis_client)] == words
    assert await letters(redis_client) == []


async def test_every_element_is_one_turn_whatever_workers_die(stack: Stack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    stack.model.script({"pieces": ["네, ", "그렇습니다."], "times": None, "delay_s": 0.01})
    environment = {"PROTOSTAR_LEASE": "1", "PROTOSTAR_REINDEX_MINUTES": "0", "PROTOSTAR_MAX_JOBS": "10"}
    running = [await stack.start_worker(**environment) for _ in range(2)]
    gateways = [Gateway(stack.redis) for _ in range(12)]
    pushed: dict[str, list[str]] = {gateway.uuid: [] for gateway in gateways}

    async def kill() -> None:
        for _ in range(3):  # fewer than a job has attempts
            await asyncio.sleep(0.3 + dice.random())
            running.pop(dice.randrange(len(running))).kill()
            running.append(await stack.start_worker(**environment))

    killing, number = asyncio.create_task(kill()), 0
    while not killing.done():
        gateway, word = dice.choice(gateways), f"질문 {number}"
        pushed[gateway.uuid].append(word)
        if dice.random() < 0.4:
            await stack.redis.set(f"chat:task:older-{number}", json.dumps(gateway.request(word)))
            await gateway.push(f"older-{number}")
        else:
            await gateway.push(json.dumps(gateway.request(word)))
        number += 1
        await asyncio.sleep(dice.random() * 0.06)
    await killing

    async def answered() -> bool:
        [row] = await stack.rows("SELECT count(*) FROM messages WHERE role = 'assistant'")
        return bool(row["count"] >= number)

    await until(answered, "every question is answered", stack.logs)
    assert await items(stack.redis, OLDER_QUEUE) == await items(stack.redis, OLDER_DEAD) == []
    for gateway in gateways:
        assert [row["content"] for row in await questions(stack, gateway.uuid)] == pushed[gateway.uuid]
    answers = await stack.rows("SELECT * FROM messages WHERE role = 'assistant'")
    assert {(row["status"], row["content"]) for row in answers} == {("completed", "네, 그렇습니다.")}
    assert len(answers) == number

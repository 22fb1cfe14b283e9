"""The worker as one who runs it sees it: starting jobs soon and fairly, dying, ARQ's own commands and calls."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any
from uuid import uuid4

from arq.jobs import Job, JobStatus
from protostar_client.codec import load_json

from tests.support.moments import pid_of_owner
from tests.support.stack_under_test import Stack, text_of, until

QUIET: dict[str, str] = {"PROTOSTAR_REINDEX_MINUTES": "0"}


async def started(stack: Stack, job_id: str, attempt: int = 1) -> dict[str, Any]:
    """The event with which an attempt starts."""
    async for event in stack.follow(job_id):
        if event["attempt"] >= attempt and event["type"] == "start":
            return event
    raise AssertionError(f"{job_id} ended without starting")


async def test_a_job_is_started_elsewhere_soon_after_its_worker_was_killed(stack: Stack) -> None:
    """Long before the lease of 15 s is over: the others see that the dead worker's connection has gone."""
    stack.model.script({"hold": "first"}, {"pieces": ["네."]})
    victim = await stack.start_worker(**QUIET)
    job = await stack.ask("질문")
    await stack.model.until_waiting("first")
    await stack.start_worker(**QUIET)
    victim.kill()
    killed_at = time.monotonic()
    await started(stack, job.job_id, attempt=2)
    assert time.monotonic() - killed_at < 12
    assert text_of(await stack.events(job.job_id)) == "네."


async def test_no_worker_starves_however_many_there_are(stack: Stack) -> None:
    """A stock worker looks at the first hundred ids alone, and five times its slots."""
    workers, slots = 6, 30
    stack.model.script({"hold": "all", "times": None})
    for _ in range(workers):
        stack.launch(**QUIET, PROTOSTAR_MAX_JOBS=str(slots))

    async def all_serve() -> bool:
        return len(await stack.owners()) == workers

    await until(all_serve, "all workers serve", stack.logs)
    for number in range(workers * slots):
        await stack.ask(f"질문 {number}", session=f"s{number}")
    await stack.model.until_waiting("all", workers * slots)


async def test_ten_thousand_queued_turns_of_one_session_hold_nobody_up(stack: Stack) -> None:
    stack.model.script({"contains": "긴 줄", "hold": "first"}, {"pieces": ["네."], "times": None})
    await stack.start_worker(**QUIET)
    user = str(uuid4())
    await stack.ask("긴 줄", user=user, session="long")
    await stack.model.until_waiting("first")
    await enqueue_turns(stack, user, 10_000)

    async def all_wait() -> bool:
        turns = [key async for key in stack.redis.scan_iter("protostar:turns:*", count=5000)]
        return bool(turns) and await stack.redis.zcard(turns[0]) == 10_000

    await started(stack, (await stack.ask("급합니다", session="short")).job_id)
    await until(all_wait, "all turns wait", stack.logs)
    await started(stack, (await stack.ask("급합니다", session="short")).job_id)


async def enqueue_turns(stack: Stack, user: str, count: int) -> None:
    """What a stock producer does, in few round trips."""
    now_ms = int(time.time() * 1000)
    arguments = {"user_uuid": user, "session_id": "long", "content": "다음"}
    payload = json.dumps({"t": None, "f": "generate_chat", "a": [], "k": arguments, "et": now_ms}).encode()
    for start in range(0, count, 1000):
        async with stack.redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 1000):
                pipe.set(f"arq:job:turn-{number:05}", payload, px=86_400_000)
                pipe.zadd("arq:queue", {f"turn-{number:05}": now_ms + number / 1000})
            await pipe.execute()


async def test_a_job_of_a_producer_that_publishes_nothing_starts_within_half_a_second(shared_stack: Stack) -> None:
    stack, waits_s = shared_stack, []
    stack.model.script({"pieces": ["네."], "times": None})
    for _ in range(7):
        asked_at = time.monotonic()
        job = await stack.ask("질문")
        await started(stack, job.job_id)
        waits_s.append(time.monotonic() - asked_at)
        await stack.events(job.job_id)
    assert statistics.median(waits_s) < 0.5, waits_s  # the median, for a busy machine may hold up any one of them


async def test_arqs_own_calls_tell_the_truth(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"hold": "status", "pieces": ["네."]})
    running = await stack.ask("첫째", user=user)
    await stack.model.until_waiting("status")
    waiting = await stack.ask("둘째", user=user)
    deferred = await stack.ask("나중", user=user, _defer_by=3600)
    assert await running.status() is JobStatus.in_progress
    assert await waiting.status() is JobStatus.queued
    assert await deferred.status() is JobStatus.deferred
    queued = {job.job_id: job for job in await stack.redis.queued_jobs()}
    assert {running.job_id, waiting.job_id, deferred.job_id} <= queued.keys()
    assert queued[waiting.job_id].kwargs["content"] == "둘째"
    for unwanted in (deferred, waiting):
        job = Job(unwanted.job_id, stack.redis, _deserializer=load_json)
        assert await job.abort(timeout=10, poll_delay=0.05) is True
    stack.model.release("status")
    assert (await running.result(timeout=10, poll_delay=0.05))["content"] == "네."
    assert await running.status() is JobStatus.complete
    info = await running.result_info()
    assert info is not None
    assert (info.success, info.job_try, info.function) == (True, 1, "generate_chat")


async def test_burst_does_what_is_queued_and_ends(stack: Stack) -> None:
    stack.model.script({"pieces": ["네."], "times": None})
    jobs = [await stack.ask(f"질문 {number}") for number in range(3)]
    worker = stack.launch("--burst", **QUIET)

    async def ended() -> bool:
        return not worker.running

    await until(ended, "the worker ends", stack.logs)
    assert worker.exit_code == 0, stack.logs()
    assert [(await stack.result(job.job_id))["s"] for job in jobs] == [True] * 3
    # A summary that was enqueued while the worker ended is the next one's.
    assert all(job_id.startswith(b"summary:") for job_id in await stack.redis.zrange("arq:queue", 0, -1))


async def test_check_is_true_while_a_worker_serves_and_false_after_its_death(stack: Stack) -> None:
    worker = await stack.start_worker(**QUIET)
    assert await check(stack) == 0
    worker.kill()

    async def noticed() -> bool:
        return not await stack.redis.exists("arq:queue:health-check")

    await until(noticed, "the health key is gone")
    assert await check(stack) == 1


async def check(stack: Stack) -> int | None:
    """The exit code of ARQ's own health check."""
    process = stack.launch("--check", **QUIET)

    async def ended() -> bool:
        return not process.running

    await until(ended, "the check ends")
    return process.exit_code


async def test_a_question_that_kills_its_worker_each_time_ends_alone(stack: Stack) -> None:
    """Three workers that are started again when they die; the reader of the question is informed of its end."""
    stack.model.script(
        {"contains": "독약", "hold": "poison", "times": None}, {"pieces": ["네", "."], "delay_s": 0.3, "times": None}
    )
    for _ in range(3):
        stack.launch(**QUIET)
    poison = await stack.ask("독약", session="poison")
    answers = [await stack.ask(f"질문 {number}", session=f"s{number}") for number in range(20)]
    deaths = 0

    async def poison_ended() -> bool:
        nonlocal deaths
        if await asyncio.to_thread(stack.model.waiting, "poison"):
            pid = await pid_of_owner(stack, poison.job_id)
            for worker in stack.workers:
                if worker.pid == pid and worker.running:
                    worker.kill()
                    deaths += 1
                    stack.launch(**QUIET)
        return bool(await stack.redis.exists(f"arq:result:{poison.job_id}"))

    await until(poison_ended, "the poison has ended", stack.logs, timeout_s=120)
    assert (await stack.events(poison.job_id))[-1]["code"] == "too_many_attempts"
    for answer in answers:
        assert (await stack.result(answer.job_id))["s"]
    assert deaths <= 8

"""A model that is limited or down is not asked by any worker before its time, and its jobs wait at no cost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from protostar_client import keys
from protostar_client.contract import ErrorCode, JobError
from redis.asyncio import Redis

from rag.providers import (
    CompletionRequest,
    ContextLengthError,
    Finish,
    ProviderBusyError,
    ProviderUnavailableError,
    RateLimitedError,
    make_provider,
)
from rag.providers.fallback import stream_with_fallback
from tasks.engine.claim import Again, Claim
from tasks.gate.gate import FAILURES, Gate
from tasks.gate.gated_provider import GatedProvider
from tasks.gate.rate_limits import RateLimits
from tasks.retry_policy import ChatRetryPolicy, Waited, judge
from tests.support.model_control import ModelControl
from tests.support.stack_under_test import Stack, check_order, text_of, until

FOREVER: dict[str, Any] = {"times": None}
SHORT = FOREVER | {"pieces": ["네."]}  # so short that it needs no summary
REQUEST = CompletionRequest("m", [{"role": "user", "content": "질문"}], 100, 50)
GATE = keys.gate("openai", "m")

MakeWorker = Callable[..., GatedProvider]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def worker(redis: Redis, model_server: ModelControl) -> AsyncIterator[MakeWorker]:
    """Makes what a worker asks the model server through."""
    model_server.reset()
    async with AsyncExitStack() as stack:

        def make(
            owner: str = "one", *, wait_s: float = 900, requests: int = 0, tokens: int = 0, on: Redis = redis
        ) -> GatedProvider:
            provider = make_provider(
                "openai", api_key="k", base_url=model_server.base_url, first_token_timeout_s=30, stall_timeout_s=30
            )
            stack.push_async_callback(provider.close)
            limits = RateLimits(on, requests_per_minute=requests, tokens_per_minute=tokens)
            gate = Gate(on, provider=provider.name, owner=owner, first_token_s=30, longest_wait_s=wait_s, limits=limits)
            return GatedProvider(provider, gate)

        yield make


async def answer(worker: GatedProvider, request: CompletionRequest = REQUEST) -> str:
    async with stream_with_fallback(worker, request, []) as (_, parts):
        return "".join([part async for part in parts if not isinstance(part, Finish)])


async def wait_of(worker: GatedProvider) -> float:
    """The seconds that a request has to wait, seen without making one; 0 if none."""
    try:
        async with worker.admitted(["m"], tokens=0):
            return 0.0
    except ProviderBusyError as error:
        return error.retry_after_s


async def break_down(worker: GatedProvider, model: ModelControl) -> None:
    """Have the breaker open; the model is down from here on."""
    model.script(FOREVER | {"status": 503})
    for _ in range(FAILURES):
        with pytest.raises(ProviderUnavailableError):
            await answer(worker)


async def end_pause(redis: Redis) -> None:
    await redis.hset(GATE, "until", "1")  # type: ignore[misc]


async def lives(redis: Redis, *owners: str) -> None:
    for owner in owners:
        await redis.set(keys.ALIVE_PREFIX + owner, "1")


async def test_a_pause_that_one_worker_receives_holds_for_all(worker: MakeWorker, model_server: ModelControl) -> None:
    model_server.script({"status": 429, "headers": {"Retry-After": "7"}})
    with pytest.raises(RateLimitedError):
        await answer(worker("one"))
    with pytest.raises(ProviderBusyError) as caught:
        await answer(worker("two"))
    assert 6 < caught.value.retry_after_s <= 7
    assert not caught.value.is_down
    assert len(model_server.requests()) == 1


async def test_a_pause_is_of_one_model(worker: MakeWorker, model_server: ModelControl) -> None:
    model_server.script({"status": 429, "headers": {"Retry-After": "7"}}, {"pieces": ["네."]})
    one = worker()
    with pytest.raises(RateLimitedError):
        await answer(one)
    async with stream_with_fallback(one, REQUEST, ["second"]) as (model, parts):
        assert (model, await anext(parts)) == ("second", "네.")
    assert [request["body"]["model"] for request in model_server.requests()] == ["m", "second"]


@pytest.mark.parametrize(("asked", "least_s", "most_s"), [(("9", "2"), 8, 9), (("2", "9"), 8, 9)])
async def test_a_pause_is_never_shortened(
    worker: MakeWorker, model_server: ModelControl, asked: tuple[str, str], least_s: float, most_s: float
) -> None:
    for number, seconds in enumerate(asked):
        model_server.script({"status": 429, "headers": {"Retry-After": seconds}, "hold": f"gate-{number}"})
    workers = [worker("one"), worker("two")]
    tasks = []
    for number, one in enumerate(workers):  # both are let through before either is refused
        tasks.append(asyncio.create_task(answer(one)))
        await model_server.until_waiting(f"gate-{number}")
    for number, task in enumerate(tasks):
        model_server.release(f"gate-{number}")
        with pytest.raises(RateLimitedError):
            await task
    assert least_s < await wait_of(workers[0]) <= most_s


async def test_a_refusal_without_a_time_pauses_for_longer_each_time(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    model_server.script({"status": 429, "times": 5}, {"pieces": ["네."]}, {"status": 429})
    one, waits = worker(), []
    for _ in range(5):
        with pytest.raises(RateLimitedError):
            await answer(one)
        waits.append(await wait_of(one))
        await end_pause(redis)
    assert all(0.1 * 2**n < wait_s <= 0.5 * 2**n for n, wait_s in enumerate(waits))
    assert await answer(one) == "네."
    with pytest.raises(RateLimitedError):
        await answer(one)
    assert await wait_of(one) <= 0.5


async def test_requests_a_minute_are_counted_for_all_workers(worker: MakeWorker, model_server: ModelControl) -> None:
    one, two = worker("one", requests=3), worker("two", requests=3)
    for asked in (one, two, one):
        await answer(asked)
    for asked in (two, one):
        with pytest.raises(ProviderBusyError) as caught:
            await answer(asked)
        assert 50 < caught.value.retry_after_s <= 60
        assert not caught.value.is_down
    assert len(model_server.requests()) == 3


async def test_tokens_a_minute_hold_prompts_and_the_longest_answers(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    one = worker(tokens=400)
    await answer(one)
    await answer(one)
    with pytest.raises(ProviderBusyError) as caught:
        await answer(one)  # 50 of the 150 that it takes are missing
    assert 7 < caught.value.retry_after_s <= 8
    await redis.delete(GATE)
    with pytest.raises(ProviderBusyError):
        await answer(one)
    assert len(model_server.requests()) == 2


async def test_a_request_above_the_limit_of_a_whole_minute_passes(worker: MakeWorker) -> None:
    assert await answer(worker(tokens=10))


async def test_a_model_that_is_down_is_asked_by_one_request_at_a_time(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    await lives(redis, "one", "two")
    one, two = worker("one"), worker("two")
    await break_down(one, model_server)
    assert 1 < await wait_of(two) <= 2
    await end_pause(redis)
    model_server.reset()
    model_server.script({"hold": "probe", "pieces": ["돌", "아왔다."], "after": 1})
    probe = asyncio.create_task(answer(one))
    await model_server.until_waiting("probe")

    async def is_closed() -> bool:
        return await wait_of(two) == 0  # its first token is enough

    await until(is_closed, "the breaker is closed")
    model_server.release("probe")
    assert await probe == "돌아왔다."
    assert await redis.hexists(GATE, "open") == 0  # type: ignore[misc]


async def test_while_a_probe_is_out_the_others_wait(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    await lives(redis, "one", "two")
    one, two = worker("one"), worker("two")
    await break_down(one, model_server)
    await end_pause(redis)
    model_server.reset()
    model_server.script(FOREVER | {"hold": "probe"})
    asked = [asyncio.create_task(answer(provider)) for provider in (one, two) * 5]

    async def all_but_one() -> bool:
        return sum(task.done() for task in asked) == len(asked) - 1

    await until(all_but_one, "all but the probe are refused")
    assert len(model_server.requests()) == 1
    model_server.release("probe")
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(error, ProviderBusyError) and error.is_down for error in ended) == len(asked) - 1


async def test_a_probe_that_fails_waits_on_and_the_pause_grows(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    await lives(redis, "one")
    one = worker()
    await break_down(one, model_server)
    waits = []
    for _ in range(6):
        await end_pause(redis)
        with pytest.raises(ProviderBusyError) as caught:
            await answer(one)
        waits.append(caught.value.retry_after_s)
        assert 0 < await wait_of(one) <= waits[-1]
    assert waits == pytest.approx([4, 8, 16, 32, 60, 60], abs=0.1)
    assert len(model_server.requests()) == FAILURES + 6


@pytest.mark.parametrize("how", ["dead", "cancelled", "refused"])
async def test_a_probe_without_an_outcome_blocks_no_request(
    worker: MakeWorker, redis: Redis, model_server: ModelControl, how: str
) -> None:
    await lives(redis, "one", "two")
    one, two = worker("one"), worker("two")
    await break_down(one, model_server)
    await end_pause(redis)
    model_server.reset()
    fault = {"status": 400, "error": {"code": "context_length_exceeded"}} if how == "refused" else {}
    model_server.script({"hold": "probe", **fault}, {"pieces": ["네."]})
    probe = asyncio.create_task(answer(one))
    await model_server.until_waiting("probe")
    assert await wait_of(two) > 0
    if how == "dead":
        await redis.delete(keys.ALIVE_PREFIX + "one")
    elif how == "cancelled":
        probe.cancel()
        await asyncio.wait({probe})
    else:
        model_server.release("probe")
        with pytest.raises(ContextLengthError):
            await probe
    assert await answer(two) == "네."
    model_server.release("probe")
    await asyncio.gather(probe, return_exceptions=True)


async def test_requests_from_before_the_breaker_neither_close_nor_lengthen_it(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    one = worker()
    model_server.script({"hold": "good"}, {"hold": "bad", "status": 503})
    good = asyncio.create_task(answer(one))
    await model_server.until_waiting("good")
    bad = asyncio.create_task(answer(one))
    await model_server.until_waiting("bad")
    await break_down(one, model_server)
    before = await redis.hgetall(GATE)  # type: ignore[misc]
    for gate, task in (("good", good), ("bad", bad)):
        model_server.release(gate)
        await asyncio.gather(task, return_exceptions=True)
    assert await redis.hgetall(GATE) == before  # type: ignore[misc]


async def test_an_answer_in_between_begins_the_count_anew(worker: MakeWorker, model_server: ModelControl) -> None:
    one = worker()
    for _ in range(2):
        model_server.script({"status": 503, "times": FAILURES - 1}, {"pieces": ["네."]})
        for _ in range(FAILURES - 1):
            with pytest.raises(ProviderUnavailableError):
                await answer(one)
        assert await answer(one) == "네."


async def test_a_break_after_the_first_token_counts_too(worker: MakeWorker, model_server: ModelControl) -> None:
    one = worker()
    model_server.script(FOREVER | {"pieces": ["반"], "fault": "end"})
    for _ in range(FAILURES):
        with pytest.raises(ProviderUnavailableError):
            await answer(one)
    assert await wait_of(one) > 0


async def test_a_flushed_redis_ends_the_pause_and_nothing_else(
    worker: MakeWorker, redis: Redis, model_server: ModelControl
) -> None:
    one = worker(requests=10, tokens=1000)
    await break_down(one, model_server)
    model_server.reset()
    await redis.flushall()
    await redis.script_flush()
    assert await answer(one)
    await break_down(one, model_server)
    assert await wait_of(one) > 0


async def test_requests_pass_while_redis_is_away(worker: MakeWorker, model_server: ModelControl) -> None:
    model_server.script({"status": 429}, {"pieces": ["네."]})
    async with Redis.from_url("redis://127.0.0.1:1") as nowhere:
        one = worker(on=nowhere, requests=5, tokens=500)
        with pytest.raises(RateLimitedError):
            await answer(one)
        assert await answer(one) == "네."


async def test_a_gate_key_of_a_wrong_type_lets_requests_pass(worker: MakeWorker, redis: Redis) -> None:
    await redis.set(GATE, "x")
    assert await answer(worker())


async def test_without_waiting_every_job_sends_its_own_request(worker: MakeWorker, model_server: ModelControl) -> None:
    one = worker(wait_s=0)
    model_server.script({"status": 429, "headers": {"Retry-After": "60"}, "times": 3}, {"pieces": ["네."]})
    for _ in range(3):
        with pytest.raises(RateLimitedError):
            await answer(one)
    assert await answer(one) == "네."


@pytest.mark.parametrize(("is_down", "code"), [(True, "provider_unavailable"), (False, "rate_limited")])
def test_a_job_waits_up_to_its_limit(is_down: bool, code: str) -> None:
    error = ProviderBusyError("busy", retry_after_s=30, longest_wait_s=900, is_down=is_down)

    def judged(since_s: float) -> Again | JobError | None:
        return judge(error, tries=5, max_tries=5, spared=100, waited=Waited(100, since_s))

    verdict = judged(870)
    assert isinstance(verdict, Again)
    assert verdict.spared
    assert 30 < verdict.delay_s < 35
    failure = judged(871)
    assert isinstance(failure, JobError)
    assert failure.code == ErrorCode(code)


async def test_waits_do_not_use_up_the_free_rate_limits() -> None:
    history = tuple({"attempt": n, "reason": "provider_busy", "at_ms": 1000 * n} for n in range(1, 41))
    claim = Claim(b"job", attempt=41, spared=40, rank_ms=0, payload=None, aborted=False, history=history)

    outcome = ChatRetryPolicy().judge(RateLimitedError("wait", retry_after_s=1), claim=claim, max_tries=5)
    assert isinstance(outcome, Again)
    assert outcome.spared
    assert Waited.of(history, now_ms=61_000) == Waited(40, 60.0)


async def record(stack: Stack, job_id: str) -> dict[str, Any]:
    fields = await stack.redis.hgetall(keys.RECORD_PREFIX + job_id)  # type: ignore[misc]
    return {name.decode(): value.decode() for name, value in fields.items()}


async def waits(stack: Stack, job_id: str) -> int:
    history = (await record(stack, job_id)).get("history", "")
    return sum(json.loads(line)["reason"] == "provider_busy" for line in history.splitlines())


async def until_waiting(stack: Stack, *job_ids: str, times: int = 1) -> None:
    async def do() -> bool:
        return all([await waits(stack, job_id) >= times for job_id in job_ids])

    await until(do, "the jobs wait for the provider", stack.logs)


async def two_workers(stack: Stack, **environment: str) -> None:
    for _ in range(2):
        stack.launch(PROTOSTAR_REINDEX_MINUTES="0", **environment)

    async def serve() -> bool:
        return len(await stack.owners()) == 2

    await until(serve, "two workers serve", stack.logs)


async def test_a_refusal_stops_two_workers_and_their_jobs_publish_nothing_meanwhile(stack: Stack) -> None:
    await two_workers(stack, PROTOSTAR_MAX_JOBS="2")
    stack.model.script({"status": 429, "headers": {"Retry-After": "2"}, "hold": "first"}, SHORT)
    first = await stack.ask("첫째")
    await stack.model.until_waiting("first")
    stack.model.release("first")

    async def is_paused() -> object:
        return await stack.redis.exists(keys.gate("openai", "test-model"))

    await until(is_paused, "the model is paused", stack.logs)
    others = [(await stack.ask(f"{n}번째")).job_id for n in range(6)]
    await until_waiting(stack, *others)
    assert await stack.redis.exists(*(keys.events(job_id) for job_id in others)) == 0
    told = [await stack.events(job_id) for job_id in [first.job_id, *others]]
    for events in told:
        check_order(events)
        assert events[-1]["type"] == "done"
    for events in told[1:]:
        assert {event["attempt"] for event in events} == {events[0]["attempt"]}
    arrived = sorted(request["arrived_at"] for request in stack.model.requests())
    assert len(arrived) == 8
    assert arrived[1] - arrived[0] >= 2
    charges = await stack.rows("SELECT count(*) FROM charges")
    assert charges[0]["count"] == 8


async def test_requests_a_minute_hold_over_two_workers(stack: Stack) -> None:
    await two_workers(stack, PROTOSTAR_REQUESTS_PER_MINUTE="3")
    stack.model.script(SHORT)
    jobs = [(await stack.ask(f"{n}번째")).job_id for n in range(6)]

    async def settled() -> bool:
        answered = [await stack.redis.exists(f"arq:result:{job_id}") for job_id in jobs]
        return all([done or await waits(stack, job_id) for done, job_id in zip(answered, jobs, strict=True)])

    await until(settled, "every job is answered or waits", stack.logs)
    assert len(stack.model.requests()) == 3
    waiting = [job_id for job_id in jobs if not await stack.redis.exists(f"arq:result:{job_id}")]
    assert len(waiting) == 3
    now_ms = (await stack.redis.time())[0] * 1000
    for job_id in waiting:
        score = await stack.redis.zscore(keys.QUEUE, job_id)
        assert score is not None
        assert now_ms + 40_000 < score < now_ms + 66_000
        assert await stack.redis.exists(keys.events(job_id)) == 0


async def test_jobs_outlive_a_provider_that_is_down_and_spend_next_to_nothing(stack: Stack) -> None:
    await two_workers(stack, PROTOSTAR_MAX_JOBS="2")
    stack.model.script(FOREVER | {"status": 503})
    jobs = [(await stack.ask(f"{n}번째")).job_id for n in range(16)]

    async def has_probed() -> bool:
        return int(await stack.redis.hget(keys.gate("openai", "test-model"), "level") or 0) >= 2  # type: ignore[misc]

    await until(has_probed, "a probe has failed", stack.logs)
    await until_waiting(stack, *jobs)
    # Four slots: those that are under way when the fifth fails, and a probe for each level of the breaker.
    asked = len(stack.model.requests())
    level: Any = await stack.redis.hget(keys.gate("openai", "test-model"), "level")  # type: ignore[misc]
    assert asked <= FAILURES + 3 + int(level)

    async def tries() -> int | None:
        # An attempt under way is not spared yet, and nearly all will be.
        found = [await record(stack, job_id) for job_id in jobs]
        is_running = any(job["state"] == "running" for job in found)
        return None if is_running else sum(int(job["attempt"]) - int(job["spared"]) for job in found)

    assert await until(tries, "no attempt is under way", stack.logs) <= FAILURES + 3
    stack.model.reset()
    stack.model.script(SHORT)
    for job_id in jobs:
        assert (await stack.events(job_id))[-1]["type"] == "done"
    assert len(stack.model.requests()) <= len(jobs) + 1  # a probe may have been under way


async def test_a_probe_whose_worker_is_killed_blocks_no_request(stack: Stack) -> None:
    await two_workers(stack, PROTOSTAR_LEASE="2")
    stack.model.script({"status": 503, "times": FAILURES}, {"hold": "probe"}, SHORT)
    jobs = [(await stack.ask(f"{n}번째")).job_id for n in range(FAILURES)]
    await stack.model.until_waiting("probe")
    prober: Any = await stack.redis.hget(keys.gate("openai", "test-model"), "prober")  # type: ignore[misc]
    os.kill(int(prober.decode().split("-")[-2]), signal.SIGKILL)
    for job_id in jobs:
        assert (await stack.events(job_id))[-1]["type"] == "done"


async def test_another_model_answers_while_the_first_is_paused(stack: Stack) -> None:
    await two_workers(stack, PROTOSTAR_FALLBACK_MODELS="second")
    stack.model.script(
        {"model": "test-model", "status": 429, "headers": {"Retry-After": "60"}},
        FOREVER | {"model": "second", "pieces": ["둘째입니다."]},
    )
    for _ in range(4):
        events = await stack.events((await stack.ask("질문")).job_id)
        assert (text_of(events), events[-1]["attempt"]) == ("둘째입니다.", 1)
    asked = [request["body"]["model"] for request in stack.model.requests()]
    assert asked == ["test-model", *["second"] * 4]


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "provider_unavailable")])
async def test_a_wait_that_is_too_long_ends_the_job_with_the_reason(stack: Stack, status: int, code: str) -> None:
    await two_workers(stack, PROTOSTAR_PROVIDER_WAIT="2")
    stack.model.script({"status": status, "headers": {"Retry-After": "60"}})
    await stack.ask("첫째")

    async def is_paused() -> object:
        return await stack.redis.exists(keys.gate("openai", "test-model"))

    await until(is_paused, "the model is paused", stack.logs)
    told = (await stack.events((await stack.ask("둘째")).job_id))[-1]
    assert (told["type"], told["code"]) == ("error", code)
    assert "asked again in" in told["message"]
    assert len(stack.model.requests()) == 1

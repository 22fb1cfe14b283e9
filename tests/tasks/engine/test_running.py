"""Attempts and how they are settled: every way a job function can end, against a real queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from arq import Retry, func
from protostar_client import keys
from protostar_client.codec import dump_json, load_json
from protostar_client.contract import ErrorCode, JobError

from tasks.engine.attempt import Attempt, JobOptions
from tasks.engine.claim import JobCancelledError, LeaseLostError, Outcome
from tasks.engine.finish import Settler, describe
from tasks.engine.hooks import Observer, RetryPolicy
from tasks.engine.running import JobHooks, OnFailure, RunningJobs
from tasks.engine.slots import Slots
from tests.support.stack_under_test import until
from tests.tasks.engine.conftest import Places

Function = Callable[..., Awaitable[Any]]


class Counts(Observer):
    """An observer that keeps what it receives."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, bool]] = []
        self.dead: list[str] = []

    def attempt_ended(self, function: str, outcome: str, seconds: float, *, is_held: bool, is_failure: bool) -> None:
        self.ended.append((function, outcome, is_held))

    def dead_letter_kept(self, code: str) -> None:
        self.dead.append(code)


class Bench:
    """Runs jobs of one function."""

    def __init__(self, places: Places, function: Function, on_failure: OnFailure | None = None, **options: Any) -> None:
        self.places = places
        self.observer = Counts()
        self.outcomes: list[str] = []
        self.unsettled = 0
        self.slots = Slots({"chat": 5}, {"job": "chat"})
        defaults: dict[str, Any] = {
            "functions": {"job": func(function, name="job")},  # type: ignore[arg-type]
            "queue_name": keys.QUEUE,
            "max_tries": 5,
            "job_timeout_s": 10.0,
            "keep_result_s": 60,
            "keep_result_forever": False,
            "allow_abort_jobs": True,
            "job_serializer": dump_json,
            "job_deserializer": load_json,
            "policy": RetryPolicy(),
        }
        job_options = JobOptions(**(defaults | options))
        self.running = RunningJobs(
            options=job_options,
            hooks=JobHooks(on_job_start=None, on_job_end=None, after_job_end=None, on_job_failure=on_failure),
            settler=Settler(places.queue(), job_options, self.observer),
            observer=self.observer,
            slots=self.slots,
            tasks={},
            count=self._count,
            ended=self._ended,
        )

    def _count(self, outcome: Outcome) -> None:
        self.outcomes.append(describe(outcome))

    def _ended(self, is_unsettled: bool) -> None:
        self.unsettled += is_unsettled

    async def start(self, job_id: str = "a", function: str = "job", **arguments: Any) -> None:
        await self.places.enqueue(job_id, function=function, **arguments)
        await self.claim()

    async def claim(self) -> None:
        for claim in (await self.places.queue().claim(self.slots.free())).claims:
            self.running.start(claim, {"shared": 1})

    async def run(self, job_id: str = "a", function: str = "job", **arguments: Any) -> dict[str, Any]:
        """Run one job to its end; returns ARQ's record of it."""
        await self.start(job_id, function, **arguments)
        await self.running.join()
        return await self.result(job_id)

    async def result(self, job_id: str = "a") -> dict[str, Any]:
        record: dict[str, Any] = json.loads(await self.places.redis.get(keys.result(job_id)) or b"{}")
        return record


async def test_a_job_gets_arqs_context_and_its_result_is_stored(places: Places) -> None:
    seen: dict[str, Any] = {}

    async def job(ctx: dict[Any, Any], *, text: str) -> str:
        seen.update(ctx)
        return text * 2

    bench = Bench(places, job)
    record = await bench.run(text="가")
    assert (record["s"], record["r"], record["f"], record["k"]) == (True, "가가", "job", {"text": "가"})
    assert {"job_id": "a", "job_try": 1, "shared": 1}.items() <= seen.items()
    assert bench.observer.ended == [("job", "done", True)]
    assert bench.running.ids() == set()


def raises(error: BaseException) -> Function:
    async def job(_: dict[Any, Any]) -> None:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "code", "is_dead"),
    [
        (JobError(ErrorCode.INVALID_REQUEST, "no"), "invalid_request", False),
        (JobError(ErrorCode.PROVIDER_ERROR, "no"), "provider_error", True),
        (ValueError("bug"), "internal", True),
    ],
)
async def test_a_failure_is_stored_as_an_error_and_kept_where_it_may_succeed_later(
    places: Places, error: Exception, code: str, is_dead: bool
) -> None:
    bench = Bench(places, raises(error))
    record = await bench.run()
    assert (record["s"], record["r"]["error"]["code"]) == (False, code)
    assert bench.observer.dead == ([code] if is_dead else [])
    assert await places.redis.xlen(keys.DEAD) == is_dead


async def test_an_unknown_function_names_the_known_ones(places: Places) -> None:
    bench = Bench(places, raises(ValueError()))
    record = await bench.run(function="other")
    assert record["r"]["error"]["code"] == "invalid_request"
    assert "job" in record["r"]["error"]["message"]
    assert bench.observer.ended == [("", "invalid_request", True)]


async def test_a_retry_leaves_the_job_in_the_queue(places: Places) -> None:
    bench = Bench(places, raises(Retry(defer=60)))
    assert await bench.run() == {}
    assert (await places.record("a"))["state"] == "deferred"
    assert bench.outcomes == ["again:retry"]


async def test_a_job_that_takes_too_long_is_cancelled(places: Places) -> None:
    async def job(_: dict[Any, Any]) -> None:
        await asyncio.sleep(60)

    record = await Bench(places, job, job_timeout_s=0.05).run()
    assert record["r"]["error"]["code"] == "job_timeout"


async def test_tries_that_are_used_up_end_the_job_without_a_call(places: Places) -> None:
    bench = Bench(places, raises(AssertionError("called")))
    await places.enqueue("a", function="job")
    for _ in range(5):
        await places.queue("other").claim({"chat": 1})
        await places.die("other")
    await places.redis.hset(keys.RECORD_PREFIX + "a", "deaths", "0")  # type: ignore[misc]
    await bench.claim()
    await bench.running.join()
    assert (await bench.result())["r"]["error"]["code"] == "too_many_attempts"


async def test_an_aborted_job_is_cancelled(places: Places) -> None:
    started = asyncio.Event()

    async def job(_: dict[Any, Any]) -> None:
        started.set()
        await asyncio.sleep(60)

    bench = Bench(places, job)
    await bench.start()
    await started.wait()
    bench.running.cancel([b"a"], "abort")
    await bench.running.join()
    assert bench.outcomes == ["cancelled"]
    assert not (await bench.result())["s"]


async def test_a_job_aborted_in_the_queue_is_never_called(places: Places) -> None:
    bench = Bench(places, raises(AssertionError("called")))
    await places.enqueue("a", function="job")
    await places.redis.zadd(keys.ABORT, {"a": await places.now_ms()})
    await bench.claim()
    await bench.running.join()
    assert bench.outcomes == ["cancelled"]


async def test_a_job_that_finds_itself_cancelled_ends_so(places: Places) -> None:
    bench = Bench(places, raises(JobCancelledError()))
    await bench.run()
    assert bench.outcomes == ["cancelled"]


@pytest.mark.parametrize("by_heartbeat", [True, False])
async def test_a_job_whose_lease_is_lost_leaves_no_trace(places: Places, by_heartbeat: bool) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def job(_: dict[Any, Any]) -> None:
        started.set()
        await go_on.wait()
        raise LeaseLostError

    bench = Bench(places, job)
    await bench.start()
    await started.wait()
    await places.die("w1")
    before = await places.record("a")
    if by_heartbeat:
        bench.running.lose({b"a"})
    else:
        go_on.set()
    await bench.running.join()
    assert bench.outcomes == ["lost"]
    assert bench.observer.ended == [("job", "lost", False)]
    assert await places.record("a") == before


async def test_a_job_handed_over_is_ready_for_another_worker(places: Places) -> None:
    started = asyncio.Event()

    async def job(_: dict[Any, Any]) -> None:
        started.set()
        await asyncio.sleep(60)

    bench = Bench(places, job)
    await bench.start()
    await started.wait()
    bench.running.cancel(bench.running.ids(), "hand_over")
    await bench.running.join()
    assert bench.outcomes == ["handed_over"]
    assert (await places.record("a"))["state"] == "ready"


async def test_an_ending_is_published_before_the_job_is_finished(places: Places) -> None:
    published: list[tuple[str, str, bool]] = []

    async def publish(_: dict[Any, Any], attempt: Attempt, error: JobError | asyncio.CancelledError) -> None:
        is_queued = await places.redis.zscore(keys.QUEUE, attempt.job_id) is not None
        published.append((attempt.job_id, type(error).__name__, is_queued))

    await Bench(places, raises(JobError(ErrorCode.PROVIDER_ERROR, "no")), publish).run()
    assert published == [("a", "JobError", True)]


async def test_an_ending_that_cannot_be_published_keeps_the_job(places: Places) -> None:
    async def publish(*_: Any) -> None:
        raise OSError("no route")

    bench = Bench(places, raises(JobError(ErrorCode.PROVIDER_ERROR, "no")), publish)
    assert await bench.run() == {}
    assert bench.outcomes == ["again:ending_not_recorded: OSError"]


async def test_an_ending_that_another_attempt_has_to_publish_leaves_no_trace(places: Places) -> None:
    async def publish(*_: Any) -> None:
        raise LeaseLostError

    bench = Bench(places, raises(JobError(ErrorCode.PROVIDER_ERROR, "no")), publish)
    assert await bench.run() == {}
    assert bench.outcomes == ["lost"]
    assert bench.observer.dead == []


async def test_a_cancellation_that_cannot_be_published_is_asked_for_again(places: Places) -> None:
    async def publish(*_: Any) -> None:
        raise OSError("no route")

    bench = Bench(places, raises(JobCancelledError()), publish)
    await bench.run()
    assert await places.redis.zscore(keys.ABORT, "a") is not None


async def test_a_hook_that_raises_harms_no_job(places: Places) -> None:
    bench = Bench(places, raises(JobError(ErrorCode.PROVIDER_ERROR, "no")))
    bench.running._hooks = JobHooks(
        on_job_start=raises(ValueError("hook")),
        on_job_end=raises(ValueError("hook")),
        after_job_end=raises(ValueError("hook")),
        on_job_failure=None,
    )
    assert (await bench.run())["r"]["error"]["code"] == "provider_error"


@pytest.mark.parametrize(("keep_s", "forever", "ttl"), [(60, False, range(1, 61)), (0, False, [-2]), (60, True, [-1])])
async def test_a_result_lives_as_long_as_the_settings_say(
    places: Places, keep_s: float, forever: bool, ttl: Any
) -> None:
    async def job(_: dict[Any, Any]) -> int:
        return 1

    await Bench(places, job, keep_result_s=keep_s, keep_result_forever=forever).run()
    assert await places.redis.ttl(keys.result("a")) in ttl


async def test_a_result_that_cannot_be_serialised_is_stored_as_a_failure(places: Places) -> None:
    async def job(_: dict[Any, Any]) -> object:
        return object()

    record = await Bench(places, job).run()
    assert not record["s"]


async def test_the_times_of_a_result_are_redis_own(places: Places) -> None:
    async def job(_: dict[Any, Any]) -> None: ...

    bench = Bench(places, job)
    await places.enqueue("a", function="job")
    [claim] = (await places.queue().claim({"chat": 1})).claims
    assert abs(claim.claimed_ms - await places.now_ms()) < 1000
    claim.claimed_ms -= 3_600_000  # as if Redis' clock were an hour behind the worker's
    bench.running.start(claim, {})
    await bench.running.join()
    assert (await bench.result())["st"] < await places.now_ms() - 3_500_000


async def test_every_job_gives_its_slot_back(places: Places) -> None:
    bench = Bench(places, raises(ValueError()))
    for number in range(12):
        await places.enqueue(f"j{number}", function="job")

    async def all_ended() -> bool:
        await bench.claim()
        await bench.running.join()
        return bool(await places.redis.zcard(keys.QUEUE) == 0)

    await until(all_ended, "all jobs have ended")
    assert len(bench.outcomes) == 12

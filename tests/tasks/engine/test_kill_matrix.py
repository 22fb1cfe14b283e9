"""The kill matrix: whatever dies at whatever moment, a question is answered once and its reader is told the truth."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import asyncpg
import pytest

from stack.places import Account
from stack.processes import Process, Server
from tasks.engine.claim import Again
from tasks.retry_policy import judge
from tests.support.arena import GRACE_S, LEASE_S, Arena, Ground, prepared_ground
from tests.support.model_control import ModelControl
from tests.support.moments import IN_TRANSACTION, STORED, STREAMING, TOLD, UNASKED, Moment, Stopped, again, stop_at
from tests.support.stack_under_test import until


def moments(*regressions: Moment) -> pytest.MarkDecorator:
    """All moments, of which a run without `--full` takes these and three more."""
    values = [pytest.param(moment, marks=pytest.mark.regression if moment in regressions else ()) for moment in Moment]
    return pytest.mark.parametrize("moment", values)


FREEZE_S: Final = 7.0  # longer than the worker waits for a reply of Redis


@pytest.fixture(scope="module")
def ground(account: Account | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Servers and workers that the cases share."""
    with prepared_ground(account, tmp_path_factory.mktemp("arena")) as ground:
        yield ground


@pytest.fixture
async def arena(ground: Ground, model_server: ModelControl) -> AsyncIterator[Arena]:
    """Two workers that serve."""
    arena = Arena(ground, model_server)
    await arena.open()
    yield arena
    arena.gate.reset()
    arena.model.reset()
    await arena.disconnect()


def expected_requests(moment: Moment) -> int:
    """How often the model is asked when the first attempt dies at a moment."""
    return 1 if moment in UNASKED | STORED else 2


def expected_attempt(moment: Moment) -> int:
    """The attempt that tells the ending when the first one dies at a moment."""
    return 1 if moment in TOLD else 2


def expected_summary_requests(moment: Moment) -> set[int]:
    """Once the answer is stored, the worker that dies may have its summary in hand too."""
    return {1, 2} if moment in STORED else {1}


@pytest.mark.sample(3)
@moments(Moment.CLAIM_UNHEARD, Moment.IN_COMMIT)
async def test_a_killed_workers_job_is_finished_by_another(arena: Arena, moment: Moment) -> None:
    stopped = await stop_at(arena, arena.gate, moment)
    arena.worker(stopped.pid).kill()
    stopped.let_go(drop=True)
    refill = asyncio.create_task(arena.refill())
    await arena.check_answered(stopped.job_id, attempt=expected_attempt(moment), requests=expected_requests(moment))
    await arena.check_nothing_left()
    assert await arena.summary_requests() in expected_summary_requests(moment)
    await refill


@pytest.mark.sample(3)
@moments(Moment.BEFORE_COMMIT)
async def test_a_frozen_worker_that_wakes_after_takeover_writes_nothing(arena: Arena, moment: Moment) -> None:
    stopped = await stop_at(arena, arena.gate, moment)
    zombie = arena.worker(stopped.pid)
    zombie.send(signal.SIGSTOP)
    try:
        if moment in IN_TRANSACTION:
            stopped.let_go()
        await arena.check_answered(stopped.job_id, attempt=expected_attempt(moment), requests=expected_requests(moment))
        await arena.check_nothing_left(outbox=False)
        before = await arena.record(stopped.job_id)
    finally:
        zombie.send(signal.SIGCONT)
    stopped.let_go()
    await until_awake(zombie, stopped)
    assert await arena.record(stopped.job_id) == before
    await arena.check_nothing_left()
    assert await arena.summary_requests() in expected_summary_requests(moment)
    assert await arena.chat_requests(stopped.job_id) == expected_requests(moment)


@pytest.mark.parametrize("moment", sorted(STREAMING))
async def test_a_worker_cut_off_from_redis_writes_nothing_after_takeover(arena: Arena, moment: Moment) -> None:
    """It still reaches the model and PostgreSQL, so only the fence of the rows is in its way."""
    stopped = await stop_at(arena, arena.gate, moment)
    arena.gate.cut_off(stopped.pid)
    await arena.check_answered(stopped.job_id, attempt=2, requests=2)
    before = await arena.record(stopped.job_id)
    stopped.let_go()
    await until_awake(arena.worker(stopped.pid), stopped)
    arena.gate.reset()
    assert await arena.record(stopped.job_id) == before
    await arena.check_nothing_left()


async def until_awake(zombie: Process, stopped: Stopped) -> None:
    """Wait until a woken worker has let go of its job, or has found out that its last command is void."""
    void = {Moment.CLAIM_UNHEARD: ["claim_failed"], Moment.IN_RELAY: ["outbox_failed"]}
    signs = [f"attempt_ended job_id={stopped.job_id}", *void.get(stopped.moment, [])]

    async def awake() -> bool:
        text = zombie.log.read_text()
        return any(sign in text for sign in signs)

    await until(awake, "the zombie lets go", zombie.last_lines)


HANDED_OVER: Final = STREAMING | set(IN_TRANSACTION) | {Moment.CLAIM_UNHEARD}
"""Moments that outlast the grace time, and a claim whose reply is lost; the others pass as soon as Redis answers."""


@pytest.mark.sample(3)
@moments(Moment.CLAIM_UNHEARD)
async def test_a_worker_told_to_stop_spends_no_attempt(arena: Arena, moment: Moment) -> None:
    stopped = await stop_at(arena, arena.gate, moment, hold_again=True)
    worker, told_at = arena.worker(stopped.pid), time.monotonic()
    worker.send(signal.SIGTERM)
    if moment is Moment.CLAIM_UNHEARD:
        stopped.let_go(drop=True)
    elif moment not in HANDED_OVER:
        stopped.let_go()
        arena.model.release(again(stopped.job_id))
    assert await exit_code(worker) == 0
    assert time.monotonic() - told_at < GRACE_S + 8
    if moment in HANDED_OVER:
        stopped.let_go()
        await arena.model.until_waiting(again(stopped.job_id))
        assert await arena.tries(stopped.job_id) == 1
        arena.model.release(again(stopped.job_id))
    refill = asyncio.create_task(arena.refill())
    handed_over = moment in HANDED_OVER
    await arena.check_answered(
        stopped.job_id,
        attempt=2 if handed_over else 1,
        requests=2 if handed_over and moment not in UNASKED else 1,
    )
    await arena.check_nothing_left()
    assert await arena.summary_requests() == 1
    await refill


async def exit_code(worker: Process) -> int | None:
    async def ended() -> bool:
        return not worker.running

    await until(ended, "the worker ends", worker.last_lines)
    return worker.exit_code


async def redis_restart(arena: Arena) -> None:
    await asyncio.to_thread(arena.servers.redis.stop)
    arena.servers.redis.start()


async def redis_kill(arena: Arena) -> None:
    await asyncio.to_thread(arena.servers.redis.kill)
    arena.servers.redis.start()


async def redis_freeze(arena: Arena) -> None:
    await frozen(arena.servers.redis)


async def redis_connections_lost(arena: Arena) -> None:
    arena.gate.drop_connections()


async def postgres_restart(arena: Arena) -> None:
    await asyncio.to_thread(arena.servers.postgres.stop)
    arena.servers.postgres.start()


async def postgres_kill(arena: Arena) -> None:
    await asyncio.to_thread(arena.servers.postgres.kill)
    arena.servers.postgres.start()


async def postgres_freeze(arena: Arena) -> None:
    await frozen(arena.servers.postgres)


async def frozen(server: Server) -> None:
    server.freeze()
    try:
        await asyncio.sleep(FREEZE_S)
    finally:
        server.thaw()


# A process whose finish, append or claim is stopped makes no other, so of these there is one each, at the end.
MOST_MOMENTS: Final = (
    Moment.FIRST_TOKEN,
    Moment.MID_STREAM,
    Moment.CLAIMED,
    Moment.BEFORE_COMMIT,
    Moment.IN_COMMIT,
    Moment.IN_RELAY,
)
UNSAID: Final = (Moment.BEFORE_FINISH, Moment.BEFORE_DONE)
UNHEARD: Final = (Moment.FINISH_UNHEARD, Moment.DONE_UNHEARD)
UNCLAIMED: Final = (Moment.FINISH_UNHEARD, Moment.CLAIM_UNHEARD)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("fault", "last"),
    [
        (redis_restart, UNSAID),
        (redis_restart, UNCLAIMED),
        (redis_kill, UNHEARD),
        (redis_kill, UNCLAIMED),
        (redis_freeze, UNHEARD),
        (redis_connections_lost, UNSAID),
        (redis_connections_lost, UNHEARD),
        pytest.param(redis_connections_lost, UNCLAIMED, marks=pytest.mark.regression),
        (postgres_restart, UNSAID),
        (postgres_kill, UNHEARD),
        pytest.param(postgres_freeze, UNSAID, marks=pytest.mark.regression),
    ],
    ids=lambda value: value.__name__ if callable(value) else "+".join(value),
)
async def test_a_server_that_goes_costs_no_attempt_at_any_moment(
    arena: Arena, fault: Callable[[Arena], Awaitable[None]], last: tuple[Moment, ...]
) -> None:
    serving = [worker for worker in arena.workers if worker.running]
    jobs = [await stop_at(arena, arena.gate, moment) for moment in (*MOST_MOMENTS, *last)]
    await fault(arena)
    for job in jobs:
        job.let_go()
    for job in jobs:
        # A claim that goes unheard is made anew, a read that fails is too: that spends a number but no attempt.
        renumbered = await arena.first_reason(job.job_id) in ("claim_unanswered", "storage_unavailable")
        await arena.check_answered(job.job_id, attempt=2 if renumbered else 1, requests=1)
    await arena.check_nothing_left()
    assert await arena.summary_requests() == len(jobs)
    assert all(worker.running for worker in serving)


def test_an_attempt_that_storage_cut_short_does_not_count() -> None:
    verdict = judge(asyncpg.ConnectionDoesNotExistError(), tries=5, max_tries=5, spared=0)
    assert isinstance(verdict, Again)
    assert verdict.spared


async def test_a_heartbeat_that_loses_its_connection_costs_no_attempt(arena: Arena) -> None:
    stopped = await stop_at(arena, arena.gate, Moment.MID_STREAM)
    for _ in range(6):
        for client in await arena.redis.client_list():
            if f"-{stopped.pid}-" in client["name"]:
                await arena.redis.client_kill_filter(_id=client["id"])
        await asyncio.sleep(random.uniform(1.0, 2.0))
    stopped.let_go()
    await arena.check_answered(stopped.job_id, attempt=1, requests=1)


async def test_a_redis_that_is_away_for_longer_than_the_lease_costs_no_attempt(arena: Arena) -> None:
    """Too short an absence for any call to fail: all leases are over when Redis is back."""
    stopped = await stop_at(arena, arena.gate, Moment.MID_STREAM)
    for _ in range(3):
        arena.servers.redis.freeze()
        await asyncio.sleep(LEASE_S + 1)
        arena.servers.redis.thaw()
        await asyncio.sleep(0.5)
    stopped.let_go()
    await arena.check_answered(stopped.job_id, attempt=1, requests=1)

"""The kill matrix: whatever dies at whatever moment, a question is answered once and its reader is told the truth."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import pytest

from stack.places import Account
from stack.processes import Process, Server
from tests.arena import GRACE_S, Arena, Ground, prepared_ground
from tests.house import until
from tests.model_control import ModelControl
from tests.moments import IN_TRANSACTION, STORED, STREAMING, TOLD, UNASKED, Moment, Stopped, again, stop_at

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


@pytest.mark.parametrize("moment", Moment)
async def test_a_killed_workers_job_is_finished_by_another(arena: Arena, moment: Moment) -> None:
    stopped = await stop_at(arena, arena.gate, moment)
    arena.worker(stopped.pid).kill()
    stopped.let_go(drop=True)
    refill = asyncio.create_task(arena.refill())
    await arena.check_answered(stopped.job_id, attempt=expected_attempt(moment), requests=expected_requests(moment))
    await arena.check_nothing_left()
    assert await arena.summary_requests() in expected_summary_requests(moment)
    await refill


@pytest.mark.parametrize("moment", Moment)
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


async def until_awake(zombie: Process, stopped: Stopped) -> None:
    """Wait until a woken worker has let go of its job, or has heard that it was never given it."""
    signs = [f"attempt_ended job_id={stopped.job_id}", "claim_failed", "outbox_failed"]

    async def awake() -> bool:
        text = zombie.log.read_text()
        return any(sign in text for sign in signs)

    await until(awake, "the zombie lets go", zombie.last_lines)


HANDED_OVER: Final = STREAMING | set(IN_TRANSACTION)
"""Moments that outlast the grace time; the others pass as soon as Redis answers."""


@pytest.mark.parametrize("moment", Moment)
async def test_a_worker_told_to_stop_spends_no_attempt(arena: Arena, moment: Moment) -> None:
    stopped = await stop_at(arena, arena.gate, moment, hold_again=True)
    worker, told_at = arena.worker(stopped.pid), time.monotonic()
    worker.send(signal.SIGTERM)
    if moment not in HANDED_OVER:
        stopped.let_go()
        arena.model.release(again(stopped.job_id))
    assert await exit_code(worker) == 0
    assert time.monotonic() - told_at < GRACE_S + 3
    if moment in HANDED_OVER:
        stopped.let_go()
        await arena.model.until_waiting(again(stopped.job_id))
        attempt, spared = await arena.redis.hmget(f"protostar:job:{stopped.job_id}", "attempt", "spared")
        assert (int(attempt), int(spared)) == (2, 1)
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


# The process of the last two appends nothing and claims nothing more, so they come last.
MOST_MOMENTS: Final = (
    Moment.FIRST_TOKEN,
    Moment.MID_STREAM,
    Moment.CLAIMED,
    Moment.BEFORE_COMMIT,
    Moment.IN_COMMIT,
    Moment.IN_RELAY,
    Moment.BEFORE_FINISH,
    Moment.FINISH_UNHEARD,
)


@pytest.mark.parametrize("last", [Moment.BEFORE_DONE, Moment.DONE_UNHEARD, Moment.CLAIM_UNHEARD])
@pytest.mark.parametrize(
    "fault",
    [
        redis_restart,
        redis_kill,
        redis_freeze,
        redis_connections_lost,
        postgres_restart,
        postgres_kill,
        postgres_freeze,
    ],
    ids=lambda fault: fault.__name__,
)
async def test_a_server_that_goes_costs_no_attempt_at_any_moment(
    arena: Arena, fault: Callable[[Arena], Awaitable[None]], last: Moment
) -> None:
    jobs = [await stop_at(arena, arena.gate, moment) for moment in (*MOST_MOMENTS, last)]
    await fault(arena)
    for job in jobs:
        job.let_go()
    for job in jobs:
        # A claim that went unheard is handed back and taken anew, which spends a number but no attempt.
        renumbered = await arena.first_reason(job.job_id) == "claim_unanswered"
        await arena.check_answered(job.job_id, attempt=2 if renumbered else 1, requests=1)
    await arena.check_nothing_left()
    assert await arena.summary_requests() == len(jobs)
    assert all(worker.running for worker in arena.workers[-2:])

"""The measurements. Each returns plain numbers; `benchmarks.report` makes the table of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from benchmarks.delivery.catalogue import PROTOSTAR, PROTOSTAR_PLAIN, Contender
from benchmarks.delivery.stage import Place, Stage, on_stage
from stack.processes import Process, wait_until

SLOTS: Final = 100
RATE: Final = 50.0
LONG_JOBS: Final = 100
LONG_MS: Final = 600_000
SETTLED_S: Final = 5.0
"""After this long a worker's reaper believes what it sees."""


@dataclass(frozen=True, slots=True)
class Delays:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Idle:
    """The price of 100 running jobs: per cent of a core, and Redis commands a second."""

    cpu_percent: float
    commands: float
    by_command: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rate:
    """Jobs a second, and the microseconds of processor time that a job took in the worker and in Redis.

    The second does not depend on what else the machine was doing.
    """

    jobs_a_second: float
    worker_us: float
    redis_us: float


def percentile(values: Sequence[float], per_cent: int) -> float:
    """The value that so many per cent of `values` do not exceed."""
    return quantiles(values, n=100, method="inclusive")[per_cent - 1]


def start_delays(place: Place, contender: Contender, *, jobs: int) -> Delays:
    """Enqueue to start of no-op jobs that come at random moments, `RATE` a second."""
    with on_stage(place, contender, rows=jobs, slots=SLOTS) as stage:
        stage.start_worker()
        first = stage.produce(jobs, rate=RATE)
        stage.wait_for_starts(first, jobs)
        delays = [row.delay_ms for row in stage.board.rows(first, jobs)]
        return Delays(median(delays), percentile(delays, 99))


def drain_rate(place: Place, contender: Contender, *, jobs: int, workers: int = 1, hold_ms: int = 0) -> Rate:
    """The rate from a queue that was filled while the workers were frozen."""
    with on_stage(place, contender, rows=jobs, slots=SLOTS if not hold_ms else HOLD_SLOTS) as stage:
        for _ in range(workers):
            stage.start_worker()
        stage.freeze()
        first = stage.produce(jobs, hold_ms=hold_ms)
        worker_s, redis_s = stage.cpu_s(), stage.redis_cpu_s()
        stage.thaw()
        stage.wait_for_starts(first, jobs)
        worker_us, redis_us = (stage.cpu_s() - worker_s) / jobs * 1e6, (stage.redis_cpu_s() - redis_s) / jobs * 1e6
        return Rate(_rate(stage, first, jobs), worker_us, redis_us)


HOLD_SLOTS: Final = 10
HOLD_MS: Final = 50


def busy_rate(place: Place, contender: Contender, *, jobs: int) -> float:
    """Jobs a second while a producer enqueues as fast as it can, on the same cores."""
    with on_stage(place, contender, rows=jobs, slots=SLOTS) as stage:
        stage.start_worker()
        first = stage.produce(jobs)
        stage.wait_for_starts(first, jobs)
        return _rate(stage, first, jobs)


def _rate(stage: Stage, first: int, jobs: int) -> float:
    starts = [row.first_start_ns for row in stage.board.rows(first, jobs)]
    return (jobs - 1) / ((max(starts) - min(starts)) / 1e9)


def idle_cost(place: Place, contender: Contender, *, seconds: float) -> Idle:
    """What one worker costs while 100 long jobs run, some slots are free and nothing else happens."""
    with on_stage(place, contender, rows=LONG_JOBS, slots=LONG_JOBS + 20) as stage:
        stage.start_worker()
        first = stage.produce(LONG_JOBS, hold_ms=LONG_MS)
        stage.wait_for_starts(first, LONG_JOBS)
        time.sleep(2)
        cpu_s, commands, calls, at = stage.cpu_s(), stage.commands(), stage.calls(), time.monotonic()
        time.sleep(seconds)
        past_s = time.monotonic() - at
        after = stage.calls()
        rates = {name: (count - calls.get(name, 0)) / past_s for name, count in after.items()}
        return Idle(
            (stage.cpu_s() - cpu_s) / past_s * 100,
            (stage.commands() - commands - 2) / past_s,  # two are ours
            {name: rate for name, rate in sorted(rates.items(), key=lambda item: -item[1]) if rate >= 0.2},
        )


def restarts_after_kill(place: Place, *, kills: int) -> list[float]:
    """Seconds from kill -9 of the worker that runs a job to the job's next start; two other workers go on."""
    with on_stage(place, PROTOSTAR, rows=kills, slots=SLOTS) as stage:
        for _ in range(3):
            stage.start_worker()
        time.sleep(SETTLED_S)
        return [_restart_after_kill(stage) for _ in range(kills)]


def _restart_after_kill(stage: Stage) -> float:
    number = stage.produce(1, hold_ms=LONG_MS)
    stage.wait_for_starts(number, 1)
    at_ns = time.monotonic_ns()
    stage.kill(_runner(stage, number))
    stage.start_worker()  # at once, as a supervisor does
    _wait_for_second_start(stage, number)
    time.sleep(SETTLED_S)
    return (stage.board[number].last_start_ns - at_ns) / 1e9


def restarts_after_freeze(place: Place, *, lease_s: float, freezes: int) -> list[float]:
    """Seconds from the freeze of a worker, as of a host that is lost, to its job's next start elsewhere."""
    with on_stage(place, PROTOSTAR, rows=freezes, slots=SLOTS, DELIVERY_LEASE=str(lease_s)) as stage:
        for _ in range(2):
            stage.start_worker()
        time.sleep(SETTLED_S)
        return [_restart_after_freeze(stage) for _ in range(freezes)]


def _restart_after_freeze(stage: Stage) -> float:
    number = stage.produce(1, hold_ms=LONG_MS)
    stage.wait_for_starts(number, 1)
    runner = _runner(stage, number)
    at_ns = time.monotonic_ns()
    os.killpg(runner.pid, signal.SIGSTOP)
    _wait_for_second_start(stage, number)
    stage.kill(runner)
    stage.start_worker()
    time.sleep(SETTLED_S)
    return (stage.board[number].last_start_ns - at_ns) / 1e9


def _runner(stage: Stage, number: int) -> Process:
    return next(worker for worker in stage.workers if worker.pid == stage.board[number].pid)


def _wait_for_second_start(stage: Stage, number: int) -> None:
    wait_until(lambda: stage.board[number].starts > 1, timeout_s=60, what="the job starts elsewhere")


def rates_by_workers(place: Place, *, jobs: int, hold_ms: int) -> tuple[float, float]:
    """Jobs a second of one worker and of three."""
    one, three = (drain_rate(place, PROTOSTAR_PLAIN, jobs=jobs, workers=count, hold_ms=hold_ms) for count in (1, 3))
    return one.jobs_a_second, three.jobs_a_second

"""Our ARQ worker: claims by script, owns leases, keeps turns, finishes only what it still holds.

`arq_settings.py` puts it at `arq.worker.Worker`, so that ARQ's own command runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from secrets import token_hex
from typing import Any, ClassVar, Final

import arq.worker
from arq.connections import log_redis_info
from arq.constants import default_queue_name
from arq.utils import timestamp_ms
from protostar_client.contract import ErrorCode, JobError
from protostar_client.keys import DEFAULT_CLASS
from redis.exceptions import RedisError

from tasks.engine.attempt import Attempt, Ending, Outcome, run_attempt
from tasks.engine.claim import LEASE_TTL_EXTRA_S, Claim, LeaseLostError
from tasks.engine.connection import StartupError, connect
from tasks.engine.finish import Settler
from tasks.engine.heartbeat import Heartbeat
from tasks.engine.queue import Queue
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.slots import Slots
from tasks.engine.takeover import Reaper
from tasks.engine.waiting import wait_for_event
from tasks.engine.wakeups import listen
from tasks.monitoring.traces import attempt_span

logger = logging.getLogger("protostar.worker")

POLL_S: Final = 0.25  # bounds how long a job waits whose producer publishes nothing
TEND_S: Final = 0.5
DRAIN_S: Final = 8.0  # for handing jobs over once the grace time is up

Hook = Callable[[dict[Any, Any]], Awaitable[Any]]
About = Callable[[dict[Any, Any]], Mapping[str, Any]]
OnFailure = Callable[[dict[Any, Any], "Attempt", JobError | asyncio.CancelledError], Awaitable[None]]


class Worker(arq.worker.Worker):
    """ARQ's worker with its own loop. Takes ARQ's parameters and these:

    Args:
        redis_url: the queue's Redis; needed unless `redis_pool` is given.
        lease_s: after how long the jobs of a lost host are taken over.
        classes: function name -> class; jobs of one class share its slots.
        slots: class -> jobs at once; what has no class shares `max_jobs`.
        turn_function: the function whose jobs are turns of a session.
        on_job_failure: told of every job that ends without a result, before it is finished.
        about: what else its heartbeat says of it (fields of `Beat`); asked from a thread of its own.
    """

    # ARQ takes from the settings class what the signature of its Worker names.
    __signature__: ClassVar[inspect.Signature]

    def __init__(
        self,
        functions: Sequence[Any] = (),
        *,
        redis_url: str | None = None,
        lease_s: float = 15,
        classes: Mapping[str, str] | None = None,
        slots: Mapping[str, int] | None = None,
        turn_function: str = "",
        on_job_failure: OnFailure | None = None,
        about: About | None = None,
        **stock: Any,
    ) -> None:
        super().__init__(functions, **stock)
        if self.queue_name != default_queue_name:
            raise ValueError(f"this worker serves ARQ's default queue {default_queue_name!r} only")
        self.owner = f"{re.sub(r'[^A-Za-z0-9.-]', '-', socket.gethostname())}-{os.getpid()}-{token_hex(4)}"
        self._redis_url = redis_url
        self._lease_ms = int(lease_s * 1000)
        self._on_job_failure = on_job_failure
        self._about = about
        self._started_s = self._looked_s = time.monotonic()
        self._slots = Slots({DEFAULT_CLASS: self.max_jobs, **(slots or {})}, classes or {})
        self._turn_function = turn_function
        self._attempts: dict[bytes, Attempt] = {}
        self._wake = asyncio.Event()
        self._tend_now = asyncio.Event()
        self._stop = asyncio.Event()
        self._reconcile_due = False
        self._hurry = asyncio.Event()

    def run(self) -> None:
        """Run until stopped; a start that fails ends the process with one line and exit code 1."""
        self.main_task = self.loop.create_task(self.main())
        try:
            self.loop.run_until_complete(self.main_task)
        except StartupError as error:
            raise SystemExit(f"protostar: {error}") from None
        finally:
            self.loop.run_until_complete(self.close())

    async def main(self) -> None:
        """Serve the queue until a signal, or in burst mode until it is empty."""
        if self._pool is None:
            self._pool = await connect(
                self._redis_url,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
                expires_extra_ms=self.expires_extra_ms,
            )
        self._queue = self._make_queue()
        self._settler = Settler(self, self._queue)
        self.ctx |= {"redis": self.pool, "queue": self._queue}
        if self.on_startup:
            await self.on_startup(self.ctx)
        logger.info("worker_starting owner=%s functions=%s", self.owner, ",".join(self.functions))
        await log_redis_info(self.pool, logger.info)
        heartbeat = self._make_heartbeat()
        await asyncio.to_thread(heartbeat.start)
        chores = [
            asyncio.create_task(listen(self.pool, wake=self._wake, abort=self._tend_now), name="listen"),
            asyncio.create_task(self._tend(), name="tend"),
            asyncio.create_task(Reaper(self.pool, self._queue).run(), name="reap"),
        ]
        try:
            await self._serve()
            await self._drain()
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await asyncio.to_thread(heartbeat.stop)
            await self._leave()

    async def _serve(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                await self._reconcile_if_due()
                wait_s = await self._claim()
                if self.burst and await self._burst_is_over():
                    return
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("claim_failed error=%s", error)
                self._reconcile_due = True
                wait_s = 1.0
            except Exception:  # one job's trouble must not end the worker and, after it, the next one
                logger.exception("claim_broke")
                self._reconcile_due = True
                wait_s = 1.0
            if wait_s > 0:
                await wait_for_event(self._wake, wait_s)

    async def _reconcile_if_due(self) -> None:
        """After a claim without a reply: give back what Redis may have handed to nobody."""
        if self._reconcile_due:
            await self._queue.reconcile(list(self._attempts))
            self._reconcile_due = False

    async def _claim(self) -> float:
        """Claim what is ready and start it; returns how long there is nothing to do, in seconds."""
        if not self.allow_pick_jobs:
            return POLL_S
        at_most = max(0, self.max_burst_jobs - self._jobs_started()) if self._is_bounded_burst else None
        claimed = await self._queue.claim(self._slots.free(at_most))
        self._looked_s = time.monotonic()
        for claim in claimed.claims:
            self._start(claim)
        if claimed.has_more:
            return 0.0
        until_due_s = (claimed.next_due_ms - timestamp_ms()) / 1000 if claimed.next_due_ms >= 0 else POLL_S
        return min(POLL_S, max(0.001, until_due_s))

    def _start(self, claim: Claim, *, takes_slot: bool = True) -> None:
        attempt = Attempt(claim, job_deserializer=self.job_deserializer)
        attempt.ctx = {**self.ctx, **attempt.context()}
        slot = self._slots.take(attempt.function) if takes_slot else self._slots.take_none()
        self._attempts[claim.id] = attempt
        task = self.loop.create_task(self._observed(attempt), name=f"job:{claim.job_id}")
        self.tasks[claim.job_id] = task
        task.add_done_callback(lambda done: self._ended(attempt, slot, done))

    async def _observed(self, attempt: Attempt) -> None:
        attempt.labels.bind()
        with attempt_span(attempt):
            await self._run_and_settle(attempt)

    async def _run_and_settle(self, attempt: Attempt) -> None:
        await self._hook(self.on_job_start, attempt.ctx)
        try:
            outcome = await run_attempt(self, attempt)
        except Exception:
            logger.exception("attempt_broke job_id=%s", attempt.job_id)
            outcome = JobError(ErrorCode.INTERNAL, "the job failed; the worker's log says why")
        if isinstance(outcome, JobError) or outcome is Ending.CANCELLED:
            outcome = await self._tell(attempt, outcome)
        await self._hook(self.on_job_end, attempt.ctx)
        await self._settler.settle(attempt, outcome)
        await self._hook(self.after_job_end, attempt.ctx)

    async def _tell(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """Let the job's reader know how it ended; where that fails, the job is kept for another attempt."""
        if self._on_job_failure is None:
            return outcome
        error = outcome if isinstance(outcome, JobError) else asyncio.CancelledError()
        try:
            await self._on_job_failure(attempt.ctx, attempt, error)
        except LeaseLostError:
            return Ending.LOST
        except Exception as problem:
            logger.exception("ending_not_told job_id=%s", attempt.job_id)
            return await self._settler.untold(attempt, outcome, problem)
        return outcome

    async def _hook(self, hook: Hook | None, ctx: dict[Any, Any]) -> None:
        if hook is None:
            return
        try:
            await hook(ctx)
        except Exception:
            logger.exception("hook_failed hook=%r job_id=%s", hook, ctx.get("job_id"))

    def _ended(self, attempt: Attempt, slot: str, task: asyncio.Task[None]) -> None:
        self._slots.release(slot)
        if self._attempts.get(attempt.claim.id) is attempt:
            del self._attempts[attempt.claim.id]
            self.tasks.pop(attempt.claim.job_id, None)
        if not task.cancelled() and (error := task.exception()):
            logger.error("attempt_broke job_id=%s", attempt.job_id, exc_info=error, extra=attempt.labels.extra)
            self._reconcile_due = True  # Redis still counts it as ours
        self._wake.set()

    @property
    def _is_bounded_burst(self) -> bool:
        return self.burst and self.max_burst_jobs >= 0

    async def _burst_is_over(self) -> bool:
        if self._is_bounded_burst and self._jobs_started() >= self.max_burst_jobs:
            await asyncio.gather(*self.tasks.values())
            return True
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            return not self.tasks and await self.pool.zcard(self.queue_name) == 0

    async def _tend(self) -> None:
        """Aborts and cron, twice a second."""
        while True:
            self._tend_now.clear()
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_S):
                    await self._tend_once()
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("tending_failed error=%s", error)
                self._reconcile_due = True
            except Exception:
                logger.exception("tending_failed")
            await wait_for_event(self._tend_now, TEND_S)

    async def _tend_once(self) -> None:
        if self.allow_abort_jobs:
            await self._abort_asked()
        if not self._stop.is_set():
            await self.heart_beat()

    async def record_health(self) -> None:
        """Nothing: every beat of the heartbeat records it."""

    async def _abort_asked(self) -> None:
        running, queued = await self._queue.aborts()
        for job_id in running:
            if attempt := self._attempts.get(job_id):
                attempt.cancel("abort")
        for claim in queued:
            self._start(claim, takes_slot=False)

    def _lost_from_thread(self, job_ids: set[bytes]) -> None:
        self.loop.call_soon_threadsafe(self._lost, job_ids)

    def _lost(self, job_ids: set[bytes]) -> None:
        for job_id in job_ids:
            if (attempt := self._attempts.get(job_id)) and attempt.cancel("lost"):
                logger.warning("lease_lost job_id=%s", attempt.job_id, extra=attempt.labels.extra)

    def handle_sig(self, signum: signal.Signals) -> None:
        """Stop: take nothing new, let jobs finish for the grace time; a second signal hands them over now."""
        if self._stop.is_set():
            self._hurry.set()
        logger.info("worker_stopping signal=%s running=%d", signal.Signals(signum).name, len(self.tasks))
        self.allow_pick_jobs = False
        self._stop.set()
        self._wake.set()
        if self.on_stop:
            self.on_stop(signal.Signals(signum))

    handle_sig_wait_for_completion = handle_sig

    async def _drain(self) -> None:
        running = set(self.tasks.values())
        if running and self._job_completion_wait and not self._hurry.is_set():
            either = {
                asyncio.create_task(self._hurry.wait()),
                asyncio.create_task(asyncio.wait(running)),
            }
            _, unfinished = await asyncio.wait(
                either, timeout=self._job_completion_wait, return_when=asyncio.FIRST_COMPLETED
            )
            for task in unfinished:
                task.cancel()
        for attempt in list(self._attempts.values()):
            attempt.cancel("hand_over")
        if running := set(self.tasks.values()):
            await asyncio.wait(running, timeout=DRAIN_S)

    async def _leave(self) -> None:
        """Sign off, so that nobody has to wait for the lease to take over what could not be handed over."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._queue.reconcile(list(self._attempts))
            await self._queue.reap(self.owner, only_expired=False)

    async def close(self) -> None:
        """Stop if running, run the shutdown hook, close the connections."""
        if self.main_task and not self.main_task.done():
            self.handle_sig(signal.SIGUSR1)
            await asyncio.gather(self.main_task, return_exceptions=True)
        if self._pool is None:
            return
        await self._hook(self.on_shutdown, self.ctx)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self.pool.close(close_connection_pool=True)
        self._pool = None

    def _health(self) -> str:
        return (
            f"j_complete={self.jobs_complete} j_failed={self.jobs_failed} "
            f"j_retried={self.jobs_retried} j_ongoing={len(self.tasks)}"
        )

    def _beat(self) -> str:
        now_s = time.monotonic()
        beat = {
            "up_s": now_s - self._started_s,
            "looked_s": now_s - self._looked_s,
            "is_stopping": self._stop.is_set(),
            "slots": self._slots.all,
            "busy": self._slots.taken,
            "jobs_complete": self.jobs_complete,
            "jobs_failed": self.jobs_failed,
            "jobs_retried": self.jobs_retried,
        }
        with contextlib.suppress(Exception):  # a beat must come, whatever it says
            beat |= self._about(self.ctx) if self._about else {}
        return json.dumps(beat)

    def _make_queue(self) -> Queue:
        return Queue(
            self.pool,
            owner=self.owner,
            classes={name: self._slots.class_of(name) for name in self.functions},
            turn_function=self._turn_function,
            lease_ttl_ms=self._lease_ttls_ms(),
        )

    def _make_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self._redis_url or "",
            owner=self.owner,
            lease_ms=self._lease_ms,
            health_key=self.health_check_key,
            health=self._health,
            beat=self._beat,
            held=lambda: set(self._attempts),
            on_lost=self._lost_from_thread,
        )

    def _lease_ttls_ms(self) -> dict[str, int]:
        timeouts_s: dict[str, float] = dict.fromkeys(self._slots.classes, 0.0)
        for name, function in self.functions.items():
            timeout_s = function.timeout_s or self.job_timeout_s
            job_class = self._slots.class_of(name)
            timeouts_s[job_class] = max(timeouts_s[job_class], timeout_s)
        return {name: int((seconds + LEASE_TTL_EXTRA_S) * 1000) for name, seconds in timeouts_s.items()}


def _merged_signature() -> inspect.Signature:
    stock = dict(inspect.signature(arq.worker.Worker).parameters)
    ours = inspect.signature(Worker.__init__).parameters
    for name, parameter in ours.items():
        if name not in ("self", "stock") and name not in stock:
            stock[name] = parameter
    return inspect.Signature(list(stock.values()))


Worker.__signature__ = _merged_signature()

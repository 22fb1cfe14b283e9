"""The worker's loop: claims jobs, ends aborted ones, enqueues cron jobs, until it is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta, tzinfo
from secrets import token_hex
from typing import Any, Final

import structlog
from arq.cron import CronJob
from arq.utils import to_unix_ms
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.hooks import Observer
from tasks.engine.queue import Queue, enqueue_own
from tasks.engine.running import RunningJobs
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.slots import Slots
from tasks.engine.takeover import Reaper
from tasks.engine.waiting import AWAY, keep_running, log_failure, wait_for_event

logger = structlog.stdlib.get_logger("protostar.worker")

POLL_S: Final = 0.25  # the longest time a job waits whose producer publishes no wake-up
TEND_S: Final = 0.5
RETRY_S: Final = 1.0
CRON_AHEAD: Final = timedelta(seconds=1)  # a cron job is in the queue by the time it is due
DRAIN_S: Final = 8.0  # for handing jobs over once the grace time is up


class Loop:
    """Serves the queue.

    Args:
        redis: the queue's Redis.
        queue: the worker's end of the queue.
        slots: how many jobs run at once.
        observer: informed of takeovers.
        cron_jobs: what to enqueue, and when.
        timezone: whose hours the cron jobs name.
        allow_abort_jobs: whether jobs can be aborted.
        burst_jobs: jobs left to start before the loop ends; None in ordinary service, infinity where it ends with
            the queue.
    """

    def __init__(
        self,
        redis: Redis,
        queue: Queue,
        slots: Slots,
        observer: Observer,
        *,
        cron_jobs: Sequence[CronJob],
        timezone: tzinfo | None,
        allow_abort_jobs: bool,
        burst_jobs: Callable[[], float | None],
    ) -> None:
        self._redis = redis
        self._queue = queue
        self._slots = slots
        self._observer = observer
        self._cron_jobs = cron_jobs
        self._timezone = timezone
        self._allow_abort_jobs = allow_abort_jobs
        self._burst_jobs = burst_jobs
        self._wake = asyncio.Event()
        self._tend_now = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reconcile_due = False
        self.looked_s = time.monotonic()

    @property
    def is_stopping(self) -> bool:
        """Whether the loop takes no new jobs."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Take nothing new and let jobs finish for the grace time; a second call hands them over now."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()
        self._wake.set()

    def attempt_ended(self, is_unsettled: bool) -> None:
        """Look for more; an attempt that left its job unsettled left it in Redis, too."""
        self._reconcile_due |= is_unsettled
        self._wake.set()

    async def run(self, running: RunningJobs, ctx: dict[Any, Any], *, grace_s: float) -> None:
        """Claim and run jobs until stopped, then let them end or hand them over."""
        chores = self._start_chores(running, ctx)
        try:
            await self._serve(running, ctx)
            await self._drain(running, grace_s)
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)

    def _start_chores(self, running: RunningJobs, ctx: dict[Any, Any]) -> list[asyncio.Task[Any]]:
        def start(name: str, run: Callable[[], Awaitable[None]], event: str) -> asyncio.Task[Any]:
            kept = keep_running(run, logger=logger, event=event, again_s=RETRY_S, on_failure=self._ask_reconcile)
            return asyncio.create_task(kept, name=name)

        return [
            start("listen", self._listen, "listening_failed"),
            start("tend", lambda: self._tend(running, ctx), "tending_failed"),
            # A reaper trusts what it sees only after a while of unbroken connection: after a failure, a new one starts.
            start("reap", lambda: Reaper(self._redis, self._queue, self._observer).run(), "reaper_failed"),
        ]

    async def _serve(self, running: RunningJobs, ctx: dict[Any, Any]) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                await self._reconcile_if_due(running)
                wait_s = await self._claim(running, ctx)
                if await self._burst_is_over(running):
                    return
            except Exception as error:  # one job's trouble must not end the worker and, after it, the next one
                log_failure(logger, "claim_failed" if isinstance(error, AWAY) else "claim_broke", error)
                self._ask_reconcile()
                wait_s = RETRY_S
            if wait_s > 0:
                await wait_for_event(self._wake, wait_s)

    def _ask_reconcile(self) -> None:
        """Have the next claim hand back the jobs that Redis may have given to this worker in a lost reply."""
        self._reconcile_due = True

    async def _reconcile_if_due(self, running: RunningJobs) -> None:
        if self._reconcile_due:
            await self._queue.reconcile(running.ids())
            self._reconcile_due = False

    async def _claim(self, running: RunningJobs, ctx: dict[Any, Any]) -> float:
        """Claim what is ready and start it; returns the seconds for which there is nothing to do."""
        claimed = await self._queue.claim(self._slots.free(self._burst_jobs()))
        self.looked_s = time.monotonic()
        for claim in claimed.claims:
            running.start(claim, ctx)
        if claimed.has_more:
            return 0.0
        return min(POLL_S, max(0.001, claimed.wait_ms / 1000)) if claimed.wait_ms >= 0 else POLL_S

    async def _burst_is_over(self, running: RunningJobs) -> bool:
        left = self._burst_jobs()
        if left is None:
            return False
        if left <= 0:
            await running.join()
            return True
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            return not running.ids() and await self._redis.zcard(keys.QUEUE) == 0

    async def _listen(self) -> None:
        """Look at once for every job that becomes ready, and for every request to abort one.

        A message published while the connection is away is lost: the polls find the job.
        """
        abort_prefix = keys.WAKE_ABORT_PREFIX.encode()
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(keys.WAKE)
            self._wake.set()
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                if message is not None:
                    (self._tend_now if message["data"].startswith(abort_prefix) else self._wake).set()

    async def _tend(self, running: RunningJobs, ctx: dict[Any, Any]) -> None:
        """End aborted jobs and enqueue cron jobs, then wait for the next time."""
        self._tend_now.clear()
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            if self._allow_abort_jobs:
                to_cancel, queued = await self._queue.aborts()
                running.cancel(to_cancel, "abort")
                for claim in queued:
                    running.start(claim, ctx, takes_slot=False)
            if not self._stop.is_set():
                await self._enqueue_cron_jobs()
        await wait_for_event(self._tend_now, TEND_S)

    async def _enqueue_cron_jobs(self) -> None:
        """Enqueue what is due by Redis' clock, under ids that no producer can block."""
        if not self._cron_jobs:
            return
        seconds, microseconds = await self._redis.time()
        now = datetime.fromtimestamp(seconds + microseconds / 1e6, self._timezone)
        for job in self._cron_jobs:
            if job.next_run is None and job.run_at_startup:
                job.next_run = now
            elif job.next_run is None:
                job.calculate_next(now)
            if job.next_run is not None and job.next_run < now + CRON_AHEAD:
                due_ms = to_unix_ms(job.next_run)
                job_id = job.job_id or f"{job.name}:{due_ms if job.unique else token_hex(8)}"
                await enqueue_own(self._redis, job_id, job.name, {}, due_ms)
                job.calculate_next(max(job.next_run, now))

    async def _drain(self, running: RunningJobs, grace_s: float) -> None:
        if running.ids() and grace_s and not self._hurry.is_set():
            either = {asyncio.create_task(self._hurry.wait()), asyncio.create_task(running.join())}
            _, unfinished = await asyncio.wait(either, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for task in unfinished:
                task.cancel()
        running.cancel(running.ids(), "hand_over")
        await running.join(timeout_s=DRAIN_S)

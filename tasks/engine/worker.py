"""Our ARQ worker: claims by script, owns leases, keeps turns, finishes only what it still holds.

`arq_settings.py` assigns it to `arq.worker.Worker`, so that ARQ's own command runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from secrets import token_hex
from typing import Any, ClassVar

import arq.worker
import structlog
from arq.connections import log_redis_info
from arq.constants import default_queue_name
from protostar_client.contract import JobError
from protostar_client.keys import DEFAULT_CLASS
from redis.exceptions import ResponseError

from tasks.engine.attempt import JobOptions
from tasks.engine.claim import Done, Ending, Outcome
from tasks.engine.connection import StartupError, connect
from tasks.engine.event_loop import LoopWatch
from tasks.engine.finish import Settler
from tasks.engine.heartbeat import Heartbeat
from tasks.engine.hooks import Observer, RetryPolicy
from tasks.engine.loop import Loop
from tasks.engine.queue import Queue
from tasks.engine.running import JobHooks, OnFailure, RunningJobs, run_hook
from tasks.engine.slots import Slots
from tasks.engine.waiting import AWAY

logger = structlog.stdlib.get_logger("protostar.worker")

About = Callable[[dict[Any, Any]], Mapping[str, Any]]


class Worker(arq.worker.Worker):
    """ARQ's worker with its own loop. Takes ARQ's parameters and these:

    Args:
        redis_url: the queue's Redis; needed unless `redis_pool` is given.
        lease_s: seconds after which the jobs of a lost host are taken over.
        classes: function name -> class; jobs of one class share its slots.
        slots: class -> jobs at once; what has no class shares `max_jobs`.
        turn_function: the function whose jobs are turns of a session.
        on_job_failure: called for every job that ends without a result, before it is finished.
        retry_policy: decides what a failed attempt means.
        observer: receives what is worth measuring.
        about: adds fields to the worker's heartbeat (`Beat`); called from a thread of its own.
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
        retry_policy: RetryPolicy | None = None,
        observer: Observer | None = None,
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
        self._policy = retry_policy or RetryPolicy()
        self._observer = observer or Observer()
        self._about = about
        self._started_s = time.monotonic()
        self._slots = Slots({DEFAULT_CLASS: self.max_jobs, **(slots or {})}, classes or {})
        self._turn_function = turn_function
        self._loop: Loop | None = None
        self._watch = LoopWatch()
        self._stop_asked = False

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
        queue = self._make_queue()
        self.ctx |= {"redis": self.pool, "queue": queue, "loop_watch": self._watch}
        if self.on_startup:
            await self.on_startup(self.ctx)
        logger.info("worker_starting", owner=self.owner, functions=",".join(self.functions))
        with contextlib.suppress(ResponseError):  # a server may refuse INFO
            await log_redis_info(self.pool, logging.getLogger("arq.worker").info)
        self._loop = loop = self._make_loop(queue)
        if self._stop_asked:
            loop.stop()
        running = self._make_running(queue, loop)
        heartbeat = self._make_heartbeat(loop, running)
        await asyncio.to_thread(heartbeat.start)
        self._watch.start()
        try:
            await loop.run(running, self.ctx, grace_s=self._job_completion_wait)
        finally:
            self._watch.stop()
            await asyncio.to_thread(heartbeat.stop)
            # Sign off, so that no worker has to wait for the lease to take over what could not be handed over.
            with contextlib.suppress(*AWAY):
                await queue.reconcile(running.ids())
                await queue.reap(self.owner, "leaving")

    def _count(self, outcome: Outcome) -> None:
        match outcome:
            case Done():
                self.jobs_complete += 1
            case JobError() | Ending.CANCELLED:
                self.jobs_failed += 1
            case _:
                self.jobs_retried += 1

    def _burst_jobs(self) -> float | None:
        if not self.burst:
            return None
        return max(0, self.max_burst_jobs - self._jobs_started()) if self.max_burst_jobs >= 0 else math.inf

    def handle_sig(self, signum: signal.Signals) -> None:
        """Stop: take nothing new, let jobs finish for the grace time; a second signal hands them over now."""
        logger.info("worker_stopping", signal=signal.Signals(signum).name, running=len(self.tasks))
        self._stop_asked = True
        if self._loop is not None:
            self._loop.stop()
        if self.on_stop:
            self.on_stop(signal.Signals(signum))

    handle_sig_wait_for_completion = handle_sig

    async def close(self) -> None:
        """Stop if running, run the shutdown hook, close the connections."""
        if self.main_task and not self.main_task.done():
            self.handle_sig(signal.SIGUSR1)
            await asyncio.gather(self.main_task, return_exceptions=True)
        if self._pool is None:
            return
        if self.on_shutdown:
            await run_hook(self.on_shutdown, self.ctx)
        with contextlib.suppress(*AWAY):
            await self.pool.close(close_connection_pool=True)
        self._pool = None

    def _health(self) -> str:
        """Make the text of ARQ's health key; empty, so that the key expires, where the event loop is held up."""
        if self._watch.held_up_s * 1000 > self._lease_ms / 2:
            return ""
        return (
            f"j_complete={self.jobs_complete} j_failed={self.jobs_failed} "
            f"j_retried={self.jobs_retried} j_ongoing={len(self.tasks)}"
        )

    def _beat(self, loop: Loop) -> str:
        now_s = time.monotonic()
        beat = {
            "up_s": now_s - self._started_s,
            "looked_s": now_s - loop.looked_s,
            "lag_s": round(self._watch.lag_s, 3),
            "is_stopping": loop.is_stopping,
            "slots": self._slots.all,
            "busy": self._slots.taken,
            "jobs_complete": self.jobs_complete,
            "jobs_failed": self.jobs_failed,
            "jobs_retried": self.jobs_retried,
        }
        with contextlib.suppress(Exception):  # a beat must come, whatever it holds
            beat |= self._about(self.ctx) if self._about else {}
        return json.dumps(beat)

    def _make_queue(self) -> Queue:
        return Queue(
            self.pool,
            owner=self.owner,
            classes={name: self._slots.class_of(name) for name in self.functions},
            turn_function=self._turn_function,
            lease_ttl_ms=self._slots.lease_ttls_ms(
                {name: function.timeout_s or self.job_timeout_s for name, function in self.functions.items()}
            ),
        )

    def _make_loop(self, queue: Queue) -> Loop:
        return Loop(
            self.pool,
            queue,
            self._slots,
            self._observer,
            cron_jobs=self.cron_jobs,
            timezone=self.timezone,
            allow_abort_jobs=self.allow_abort_jobs,
            burst_jobs=self._burst_jobs,
        )

    def _make_running(self, queue: Queue, loop: Loop) -> RunningJobs:
        options = JobOptions(
            functions=self.functions,
            queue_name=self.queue_name,
            max_tries=self.max_tries,
            job_timeout_s=self.job_timeout_s,
            keep_result_s=self.keep_result_s or 0,
            keep_result_forever=self.keep_result_forever,
            allow_abort_jobs=self.allow_abort_jobs,
            job_serializer=self.job_serializer,
            job_deserializer=self.job_deserializer,
            policy=self._policy,
        )
        hooks = JobHooks(
            on_job_start=self.on_job_start,
            on_job_end=self.on_job_end,
            after_job_end=self.after_job_end,
            on_job_failure=self._on_job_failure,
        )
        return RunningJobs(
            options=options,
            hooks=hooks,
            settler=Settler(queue, options, self._observer),
            observer=self._observer,
            slots=self._slots,
            tasks=self.tasks,
            count=self._count,
            ended=loop.attempt_ended,
        )

    def _make_heartbeat(self, loop: Loop, running: RunningJobs) -> Heartbeat:
        return Heartbeat(
            self._redis_url or "",
            owner=self.owner,
            lease_ms=self._lease_ms,
            health_key=self.health_check_key,
            health=self._health,
            beat=partial(self._beat, loop),
            held=running.ids,
            on_lost=lambda lost: self.loop.call_soon_threadsafe(running.lose, lost),
        )


def _merged_signature() -> inspect.Signature:
    stock = dict(inspect.signature(arq.worker.Worker).parameters)
    ours = inspect.signature(Worker.__init__).parameters
    for name, parameter in ours.items():
        if name not in ("self", "stock") and name not in stock:
            stock[name] = parameter
    return inspect.Signature(list(stock.values()))


Worker.__signature__ = _merged_signature()

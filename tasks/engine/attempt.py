"""One attempt at a job: reads its payload, runs its function, sorts how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
from arq.cron import CronJob
from arq.jobs import Deserializer, SerializationError, Serializer, deserialize_job_raw
from arq.utils import ms_to_datetime
from arq.worker import Function
from protostar_client.contract import ErrorCode, JobError

from tasks.engine.claim import (
    CANCEL_GRACE_S,
    Again,
    CancelReason,
    Claim,
    Done,
    Ending,
    JobCancelledError,
    LeaseLostError,
    Outcome,
)
from tasks.engine.hooks import RetryPolicy, attempts_used_up

logger = structlog.stdlib.get_logger("protostar.attempt")

LATEST_MS: Final = 253_402_300_800_000  # the year 10000, where Python's calendar ends


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What the settings class says about jobs; a function's own values come first."""

    functions: Mapping[str, Function | CronJob]
    queue_name: str
    max_tries: int
    job_timeout_s: float | None
    keep_result_s: float
    keep_result_forever: bool
    allow_abort_jobs: bool
    job_serializer: Serializer | None
    job_deserializer: Deserializer | None
    policy: RetryPolicy

    def max_tries_of(self, function: Function | CronJob) -> int:
        """The number of attempts that a job of the function has."""
        return self.max_tries if function.max_tries is None else function.max_tries

    def timeout_of(self, function: Function | CronJob) -> float | None:
        """The seconds that an attempt at a job of the function may take."""
        return self.job_timeout_s if function.timeout_s is None else function.timeout_s

    def keep_result_of(self, name: str) -> float | None:
        """The seconds that a job's result is kept; infinity for ever, None where there is no result."""
        function = self.functions.get(name)
        forever = getattr(function, "keep_result_forever", None)
        if self.keep_result_forever if forever is None else forever:
            return float("inf")
        keep_s = getattr(function, "keep_result_s", None)
        return (self.keep_result_s if keep_s is None else keep_s) or None


class Attempt:
    """A claim at work."""

    def __init__(self, claim: Claim, *, job_deserializer: Deserializer | None) -> None:
        self.claim = claim
        self.job_id = claim.job_id
        self.function = ""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.enqueue_ms = 0
        self.started_ms = claim.now_ms
        self.ctx: dict[Any, Any] = {}
        self.context: Context = copy_context()
        """The context variables of the attempt's task: a line logged in it has the job's labels."""
        self.unreadable: JobError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled_by: CancelReason | None = None
        self._over = False
        self._read(job_deserializer)

    def _read(self, job_deserializer: Deserializer | None) -> None:
        if self.claim.payload is None:
            self.unreadable = JobError(
                ErrorCode.INTERNAL, "the job waited longer than it may and expired; enqueue it again"
            )
            return
        try:
            function, args, kwargs, _, enqueue_ms = deserialize_job_raw(
                self.claim.payload, deserializer=job_deserializer
            )
            self.function, self.args, self.kwargs = str(function), tuple(args), dict(kwargs)
            self.enqueue_ms = _moment_ms(enqueue_ms, self.started_ms)
            self.claim.id.decode()
        except (SerializationError, TypeError, ValueError):
            self.unreadable = JobError(
                ErrorCode.INVALID_REQUEST,
                "the payload is not an ARQ job as JSON with a UTF-8 id; "
                "use JSON serializers (docs/protocol.md shows the format)",
            )

    def arq_context(self) -> dict[str, Any]:
        """What ARQ passes to a job function beside the worker's own context, and the claim."""
        return {
            "job_id": self.job_id,
            "job_try": self.claim.attempt,
            "enqueue_time": ms_to_datetime(self.enqueue_ms),
            "score": self.claim.rank_ms,
            "claim": self.claim,
        }

    def cancel(self, reason: CancelReason) -> bool:
        """Stop the function; False where it has ended already."""
        if self._over:
            return False
        self._cancelled_by = self._cancelled_by or reason
        if self._task is not None:
            self._task.cancel()
        return True

    async def run(self, options: JobOptions) -> Outcome:
        """Do everything between the claim of a job and the outcome of this attempt at it."""
        if self.unreadable is not None:
            return self.unreadable
        if self.claim.aborted and options.allow_abort_jobs:
            return Ending.CANCELLED
        function = options.functions.get(self.function)
        if function is None:
            known = ", ".join(sorted(options.functions))
            return JobError(
                ErrorCode.INVALID_REQUEST, f"there is no function {self.function!r}; the worker has: {known}"
            )
        max_tries = options.max_tries_of(function)
        if self.claim.tries > max_tries:
            return attempts_used_up(max_tries, self.claim.last_reason)
        timeout_s = options.timeout_of(function)
        await self._call(function.coroutine, timeout_s)
        return self._sort(timeout_s, max_tries, options.policy)

    async def _call(self, function: Any, timeout_s: float | None) -> None:
        if self._cancelled_by is None:
            self._task = asyncio.create_task(function(self.ctx, *self.args, **self.kwargs))
            _, unfinished = await asyncio.wait({self._task}, timeout=timeout_s)
            if unfinished:
                self.cancel("timeout")
                _, unfinished = await asyncio.wait({self._task}, timeout=CANCEL_GRACE_S)
                if unfinished:
                    logger.error("cancellation_ignored", job_id=self.job_id)
        self._over = True

    def _sort(self, timeout_s: float | None, max_tries: int, policy: RetryPolicy) -> Outcome:
        task = self._task
        if task is not None and task.done() and not task.cancelled():
            error = task.exception()
            if error is None:
                return Done(task.result())
            if isinstance(error, LeaseLostError):
                return Ending.LOST
            if isinstance(error, JobCancelledError):
                return Ending.CANCELLED
            if self._cancelled_by is None:
                return self._judge(error, max_tries, policy)
        match self._cancelled_by:
            case "abort":
                return Ending.CANCELLED
            case "lost":
                return Ending.LOST
            case "hand_over":
                return Ending.HANDED_OVER
            case "timeout":
                return JobError(ErrorCode.JOB_TIMEOUT, f"the job took longer than {timeout_s:g} s")
        return Again(0.0, "cancelled")

    def _judge(self, error: BaseException, max_tries: int, policy: RetryPolicy) -> Outcome:
        verdict = policy.judge(error, claim=self.claim, max_tries=max_tries)
        unexpected = isinstance(verdict, JobError) and verdict.code == ErrorCode.INTERNAL
        logger.warning(
            "attempt_failed",
            job_id=self.job_id,
            attempt=self.claim.attempt,
            error=type(error).__name__,
            verdict=verdict,
            exc_info=error if unexpected else None,
        )
        return verdict


def _moment_ms(value: object, now_ms: int) -> int:
    """The enqueue time that the payload names; the present where that is not a time."""
    is_time = isinstance(value, int | float) and 0 <= value < LATEST_MS
    return int(cast(float, value)) if is_time else now_ms

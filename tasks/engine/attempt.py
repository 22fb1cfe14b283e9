"""One attempt at a job: reading its payload, running its function, sorting how it ended."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast

from arq.jobs import Deserializer, SerializationError, deserialize_job_raw
from arq.utils import ms_to_datetime, timestamp_ms
from protostar_client.contract import ErrorCode, JobError

from tasks.engine.claim import CANCEL_GRACE_S, CancelReason, Claim, JobCancelledError, LeaseLostError
from tasks.monitoring.logs import JobLabels
from tasks.retry_policy import Again, Waited, attempts_used_up, judge

if TYPE_CHECKING:
    from tasks.engine.worker import Worker

logger = logging.getLogger("protostar.attempt")

LATEST_MS: Final = 253_402_300_800_000  # the year 10000, where Python's calendar ends


class Ending(Enum):
    """The outcomes that carry nothing."""

    CANCELLED = "cancelled"
    LOST = "lost"
    HANDED_OVER = "handed_over"


@dataclass(frozen=True, slots=True)
class Done:
    """The function returned."""

    result: Any


Outcome = Done | Again | JobError | Ending


class Attempt:
    """A claim being worked on."""

    def __init__(self, claim: Claim, *, job_deserializer: Deserializer | None) -> None:
        self.claim = claim
        self.job_id = claim.job_id
        self.function = ""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.enqueue_ms = 0
        self.started_ms = timestamp_ms()
        self.ctx: dict[Any, Any] = {}
        self.unreadable: JobError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled_by: CancelReason | None = None
        self._over = False
        self._read(job_deserializer)
        session = self.kwargs.get("session_id")
        self.labels = JobLabels(claim, session if isinstance(session, str) else "")

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
            self.enqueue_ms = _moment_ms(enqueue_ms)
            self.claim.id.decode()
        except (SerializationError, TypeError, ValueError):
            self.unreadable = JobError(
                ErrorCode.INVALID_REQUEST,
                "the payload is not an ARQ job as JSON with a UTF-8 id; "
                "use JSON serializers (docs/protocol.md shows the format)",
            )

    def context(self) -> dict[str, Any]:
        """What ARQ gives a job function besides the worker's own context, and the claim."""
        return {
            "job_id": self.job_id,
            "job_try": self.claim.attempt,
            "enqueue_time": ms_to_datetime(self.enqueue_ms),
            "score": self.claim.rank_ms,
            "claim": self.claim,
        }

    def cancel(self, reason: CancelReason) -> bool:
        """Stop the function, if it is still running or to run; says whether it is."""
        if self._over:
            return False
        self._cancelled_by = self._cancelled_by or reason
        if self._task is not None:
            self._task.cancel()
        return True

    async def run(self, function: Any, timeout_s: float | None, *, max_tries: int) -> Outcome:
        """Call the job function; whatever happens comes back as an outcome."""
        if self._cancelled_by is None:
            self._task = asyncio.create_task(function(self.ctx, *self.args, **self.kwargs))
            _, unfinished = await asyncio.wait({self._task}, timeout=timeout_s)
            if unfinished:
                self.cancel("timeout")
                _, unfinished = await asyncio.wait({self._task}, timeout=CANCEL_GRACE_S)
                if unfinished:
                    logger.error("function_ignores_cancelling job_id=%s", self.job_id)
        self._over = True
        return self._sort(timeout_s, max_tries)

    def _sort(self, timeout_s: float | None, max_tries: int) -> Outcome:
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
                return self._judge(error, max_tries)
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

    def _judge(self, error: BaseException, max_tries: int) -> Outcome:
        claim = self.claim
        waited = Waited.of(claim.history, timestamp_ms())
        verdict = judge(
            error,
            tries=claim.tries,
            max_tries=max_tries,
            spared=claim.spared - waited.times,
            waited=waited,
        )
        unexpected = isinstance(verdict, JobError) and verdict.code == ErrorCode.INTERNAL
        logger.warning(
            "attempt_failed job_id=%s attempt=%d error=%s verdict=%s",
            self.job_id,
            claim.attempt,
            type(error).__name__,
            verdict,
            exc_info=error if unexpected else None,
        )
        return verdict


def _moment_ms(value: object) -> int:
    """When the producer says it enqueued the job; the present where what it says is no time."""
    is_time = isinstance(value, int | float) and 0 <= value < LATEST_MS
    return int(cast(float, value)) if is_time else timestamp_ms()


async def run_attempt(worker: Worker, attempt: Attempt) -> Outcome:
    """Everything between the claim of a job and the outcome of this attempt at it."""
    claim = attempt.claim
    if attempt.unreadable is not None:
        return attempt.unreadable
    if claim.aborted and worker.allow_abort_jobs:
        return Ending.CANCELLED
    function = worker.functions.get(attempt.function)
    if function is None:
        known = ", ".join(sorted(worker.functions))
        return JobError(
            ErrorCode.INVALID_REQUEST, f"there is no function {attempt.function!r}; the worker has: {known}"
        )
    max_tries = worker.max_tries if function.max_tries is None else function.max_tries
    if claim.tries > max_tries:
        return attempts_used_up(max_tries, claim.last_reason)
    timeout_s = worker.job_timeout_s if function.timeout_s is None else function.timeout_s
    return await attempt.run(function.coroutine, timeout_s, max_tries=max_tries)

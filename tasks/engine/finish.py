"""Writing down how an attempt ended, in Redis, until Redis has it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from arq.jobs import serialize_result
from arq.utils import timestamp_ms
from protostar_client.contract import ErrorCode, JobError
from redis.exceptions import RedisError

from tasks.engine.attempt import Attempt, Done, Ending, Outcome
from tasks.engine.queue import Queue
from tasks.monitoring import metrics, traces
from tasks.retry_policy import Again
from tasks.turn.caps import CapReachedError

if TYPE_CHECKING:
    from tasks.engine.worker import Worker

logger = logging.getLogger("protostar.settle")

UNTOLD_DELAY_S: Final = 5.0
RETRY_S: Final = 0.5

# What the asker did wrong would fail again; everything else is kept to be put back.
_ASKERS_FAULT: Final = {
    ErrorCode.UNKNOWN_MODE,
    ErrorCode.PROMPT_TOO_LONG,
    ErrorCode.CONTEXT_LENGTH,
    ErrorCode.CONTENT_FILTERED,
}


class Settler:
    """Finishes attempts for one worker and keeps its counts."""

    def __init__(self, worker: Worker, queue: Queue) -> None:
        self._worker = worker
        self._queue = queue

    async def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Finish, retry or hand over the job; returns once Redis has taken it or the lease is another's."""
        claim, worker = attempt.claim, self._worker
        match outcome:
            case Done(result):
                worker.jobs_complete += 1
                held = await self._finish(attempt, result, success=True)
            case JobError():
                worker.jobs_failed += 1
                held = await self._finish(attempt, outcome, success=False)
            case Ending.CANCELLED:
                worker.jobs_failed += 1
                held = await self._finish(attempt, asyncio.CancelledError(), success=False)
            case Again(delay_s, reason, spared):
                worker.jobs_retried += 1
                held = await self._until_taken(
                    lambda: self._queue.retry(claim, delay_ms=int(delay_s * 1000), spared=spared, reason=reason)
                )
            case Ending.HANDED_OVER:
                worker.jobs_retried += 1
                held = await self._until_taken(lambda: self._queue.hand_over(claim))
            case Ending.LOST:
                worker.jobs_retried += 1
                held = False
        self._note_end(attempt, outcome, held=held)

    def _note_end(self, attempt: Attempt, outcome: Outcome, *, held: bool) -> None:
        how, took_ms = _describe(outcome), timestamp_ms() - attempt.started_ms
        known = attempt.function if attempt.function in self._worker.functions else ""
        metrics.attempt_ended(known, how if held else Ending.LOST.value, took_ms / 1000)
        traces.note(failed=isinstance(outcome, JobError | Again), **{"protostar.outcome": how})
        logger.info(
            "attempt_ended job_id=%s function=%s attempt=%d outcome=%s held=%s ms=%d",
            attempt.job_id,
            attempt.function,
            attempt.claim.attempt,
            how,
            held,
            took_ms,
        )

    async def untold(self, attempt: Attempt, outcome: Outcome, problem: Exception) -> Outcome:
        """What becomes of an ending that could not be recorded: the job tries to end again, soon."""
        logger.warning("ending_again job_id=%s outcome=%s", attempt.job_id, _describe(outcome))
        if outcome is Ending.CANCELLED:
            await self._until_taken(lambda: self._queue.ask_abort(attempt.claim))
        return Again(UNTOLD_DELAY_S, f"ending_not_recorded: {type(problem).__name__}")

    async def _finish(self, attempt: Attempt, result: Any, *, success: bool) -> bool:
        data, ttl_ms = self._result(attempt, result, success=success)
        dead_letter = "" if success else _dead_letter(attempt, result)
        held = await self._until_taken(
            lambda: self._queue.done(attempt.claim, result=data, result_ttl_ms=ttl_ms, dead_letter=dead_letter)
        )
        if held and dead_letter:
            metrics.DEAD_LETTERS.labels(result.code).inc()
        return held

    def _result(self, attempt: Attempt, result: Any, *, success: bool) -> tuple[bytes | None, int]:
        worker = self._worker
        function = worker.functions.get(attempt.function)
        forever = getattr(function, "keep_result_forever", None)
        keep_s = getattr(function, "keep_result_s", None)
        keep_s = worker.keep_result_s if keep_s is None else keep_s
        if worker.keep_result_forever if forever is None else forever:
            keep_s = 0
        elif not keep_s:
            return None, 0
        data = serialize_result(
            attempt.function,
            attempt.args,
            attempt.kwargs,
            attempt.claim.attempt,
            attempt.enqueue_ms,
            success,
            result,
            attempt.started_ms,
            timestamp_ms(),
            f"{attempt.job_id}:{attempt.function}",
            worker.queue_name,
            job_id=attempt.job_id,
            serializer=worker.job_serializer,
        )
        return data, int((keep_s or 0) * 1000)

    async def _until_taken(self, finish: Callable[[], Awaitable[bool]]) -> bool:
        while True:
            try:
                return await finish()
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("finish_failed error=%s", error)
                await asyncio.sleep(RETRY_S)


def _describe(outcome: Outcome) -> str:
    match outcome:
        case Done():
            return "done"
        case JobError(code=code):
            return code
        case Again(reason=reason):
            return f"again:{reason}"
        case Ending():
            return outcome.value


def _dead_letter(attempt: Attempt, error: BaseException) -> str:
    if not isinstance(error, JobError) or isinstance(error, CapReachedError) or error.code in _ASKERS_FAULT:
        return ""
    payload = attempt.claim.payload
    return json.dumps(
        {
            "job_id": attempt.job_id,
            "function": attempt.function,
            "payload": None if payload is None else payload.decode(errors="backslashreplace"),
            "code": error.code,
            "message": error.message,
            "attempt": attempt.claim.attempt,
            "history": list(attempt.claim.history),
            "at_ms": timestamp_ms(),
        },
        ensure_ascii=False,
    )

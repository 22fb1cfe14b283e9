"""Records in Redis how an attempt ended, until Redis has it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Final

import structlog
from arq.jobs import serialize_result
from protostar_client.contract import JobError

from tasks.engine.attempt import Attempt, JobOptions
from tasks.engine.claim import Again, Done, Ending, Outcome
from tasks.engine.hooks import Observer
from tasks.engine.queue import Queue
from tasks.engine.waiting import until_answered

logger = structlog.stdlib.get_logger("protostar.settle")

UNRECORDED_DELAY_S: Final = 5.0
RETRY_S: Final = 0.5
# A result is kept for hours, and nobody reads the request's page in it.
ARGUMENTS_MAX: Final = 20
ARGUMENT_MAX_CHARACTERS: Final = 1000


class Settler:
    """Finishes attempts for one worker."""

    def __init__(self, queue: Queue, options: JobOptions, observer: Observer) -> None:
        self._queue = queue
        self._options = options
        self._observer = observer

    async def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Finish, retry or hand over the job; returns once Redis has recorded it or the lease has another owner."""
        is_held = await self._settle(attempt, outcome)
        how, took_ms = describe(outcome), attempt.claim.now_ms - attempt.started_ms
        known = attempt.function if attempt.function in self._options.functions else ""
        is_failure = isinstance(outcome, JobError | Again)
        self._observer.attempt_ended(known, how, took_ms / 1000, is_held=is_held, is_failure=is_failure)
        logger.info(
            "attempt_ended",
            job_id=attempt.job_id,
            function=attempt.function,
            attempt=attempt.claim.attempt,
            outcome=how,
            held=is_held,
            ms=took_ms,
        )

    async def _settle(self, attempt: Attempt, outcome: Outcome) -> bool:
        claim = attempt.claim
        match outcome:
            case Done(result):
                return await self._finish(attempt, result, success=True)
            case JobError():
                return await self._finish(attempt, outcome, success=False)
            case Ending.CANCELLED:
                return await self._finish(attempt, asyncio.CancelledError(), success=False)
            case Again(delay_s, reason, spared):
                return await _until_recorded(
                    lambda: self._queue.retry(claim, delay_ms=int(delay_s * 1000), spared=spared, reason=reason)
                )
            case Ending.HANDED_OVER:
                return await _until_recorded(lambda: self._queue.hand_over(claim))
            case Ending.LOST:
                return False

    async def retry_ending(self, attempt: Attempt, outcome: Outcome, problem: Exception) -> Outcome:
        """Have the job end again, soon: its ending could not be published."""
        logger.warning("ending_retried", job_id=attempt.job_id, outcome=describe(outcome))
        if outcome is Ending.CANCELLED:
            await _until_recorded(lambda: self._queue.ask_abort(attempt.claim))
        return Again(UNRECORDED_DELAY_S, f"ending_not_recorded: {type(problem).__name__}")

    async def _finish(self, attempt: Attempt, result: Any, *, success: bool) -> bool:
        data, ttl_ms = self._result(attempt, result, success=success)
        is_kept = isinstance(result, JobError) and self._options.policy.is_dead_letter(result)
        dead_letter = _dead_letter(attempt, result) if is_kept else ""
        is_held = await _until_recorded(
            lambda: self._queue.done(attempt.claim, result=data, result_ttl_ms=ttl_ms, dead_letter=dead_letter)
        )
        if is_held and dead_letter:
            self._observer.dead_letter_kept(result.code)
        return is_held

    def _result(self, attempt: Attempt, result: Any, *, success: bool) -> tuple[bytes | None, int]:
        """ARQ's record of a finished job and its life in ms (0 for ever); None where none is kept."""
        keep_s = self._options.keep_result_of(attempt.function)
        if keep_s is None:
            return None, 0
        data = serialize_result(
            attempt.function,
            tuple(map(_shortened, attempt.args[:ARGUMENTS_MAX])),
            {name: _shortened(value) for name, value in islice(attempt.kwargs.items(), ARGUMENTS_MAX)},
            attempt.claim.attempt,
            attempt.enqueue_ms,
            success,
            result,
            attempt.started_ms,
            attempt.claim.now_ms,
            f"{attempt.job_id}:{attempt.function}",
            self._options.queue_name,
            job_id=attempt.job_id,
            serializer=self._options.job_serializer,
        )
        return data, 0 if math.isinf(keep_s) else int(keep_s * 1000)


def _shortened(argument: Any) -> Any:
    match argument:
        case str():
            return argument[:ARGUMENT_MAX_CHARACTERS]
        case None | bool() | int() | float():
            return argument
        case list():
            return [text[:ARGUMENT_MAX_CHARACTERS] for text in argument[:ARGUMENTS_MAX] if isinstance(text, str)]
        case _:
            return None


async def _until_recorded(call: Callable[[], Awaitable[bool]]) -> bool:
    return await until_answered(call, logger=logger, event="finish_failed", again_s=RETRY_S)


def describe(outcome: Outcome) -> str:
    """Name an outcome, for logs and metrics."""
    match outcome:
        case Done():
            return "done"
        case JobError(code=code):
            return code
        case Again(reason=reason):
            return f"again:{reason}"
        case Ending():
            return outcome.value


def _dead_letter(attempt: Attempt, error: JobError) -> str:
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
            "at_ms": attempt.claim.now_ms,
        },
        ensure_ascii=False,
    )

"""Ends an answer exactly once, and only after the data that the ending names is committed."""

from __future__ import annotations

import asyncio
from typing import Any

from protostar_client.contract import (
    GENERATE_CHAT,
    ChatRequest,
    ChatResult,
    ErrorCode,
    EventType,
    InvalidRequest,
    JobError,
    Usage,
)
from redis.asyncio import Redis

from models import Message, MessageStatus
from models.transaction import is_transient
from tasks.billing.charges import CANCELLED, DONE, OpenCharge
from tasks.billing.lost_charges import close_lost_charges
from tasks.context import Tools
from tasks.engine.attempt import Attempt
from tasks.engine.claim import Claim, Done, JobCancelledError, LeaseLostError
from tasks.turn.answer_events import AnswerEvents
from tasks.turn.event_log import EventLog
from tasks.turn.kept_answers import KeptAnswer, drop_kept_answer, keep_answer, read_kept_answer
from tasks.turn.open import open_turn
from tasks.turn.store import AnswerRecord, store_answer
from tasks.turn.stream import estimated_usage
from tasks.turn.values import StreamedAnswer, Turn, Unfinished


async def raise_recorded_ending(log: EventLog, claim: Claim) -> None:
    """Raise the failure or the cancellation that an earlier attempt has published, if any.

    Raises:
        JobError: the answer has ended with it.
        JobCancelledError: the answer has ended as cancelled.
    """
    ending = await log.ending(claim)
    if ending is None or ending.type == EventType.DONE:
        return
    if ending.type == EventType.CANCELLED:
        raise JobCancelledError
    raise JobError(ending.code or ErrorCode.INTERNAL, ending.message or "")


async def finish(tools: Tools, redis: Redis, turn: Turn, answer: StreamedAnswer) -> dict[str, Any]:
    """Commit a whole answer with its summary's job, then publish `done`; returns the job's result."""
    record = AnswerRecord(
        content=turn.events.text,
        status=MessageStatus.COMPLETED,
        outcome=DONE,
        finish_reason=answer.finish_reason,
        provider=tools.provider.name,
        model=answer.model,
        usage=answer.usage,
        sources=answer.prompt.sources,
        recipe=answer.prompt.recipe,
    )
    try:
        message = await _commit_or_keep(redis, turn, KeptAnswer(record, answer.charge))
    except (LeaseLostError, asyncio.CancelledError):
        await answer.charge.give_up()  # another attempt answers; the cost of this one is known all the same
        raise
    tools.outbox.wake()
    return await _publish_done(turn, message)


async def finish_kept(tools: Tools, redis: Redis, turn: Turn, kept: KeptAnswer) -> dict[str, Any]:
    """Commit an answer that PostgreSQL had refused, then publish it, as far as this attempt has not yet."""
    message = await store_answer(turn, kept.record, kept.charge)
    await drop_kept_answer(redis, turn.claim.job_id)
    tools.outbox.wake()
    if turn.events.text == message.content:
        return await _publish_done(turn, message)
    return await publish_stored(tools, turn, message)


async def _commit_or_keep(redis: Redis, turn: Turn, answer: KeptAnswer) -> Message:
    """Commit an answer; while PostgreSQL refuses it, Redis holds it for the case that this attempt does not live."""
    try:
        return await store_answer(turn, answer.record, answer.charge, retry_for_s=0)
    except Exception as error:
        if not is_transient(error):
            raise
    await keep_answer(redis, turn.claim.job_id, answer)
    message = await store_answer(turn, answer.record, answer.charge)
    await drop_kept_answer(redis, turn.claim.job_id)
    return message


async def publish_stored(tools: Tools, turn: Turn, stored: Message) -> dict[str, Any]:
    """End a job whose answer is stored: its worker died before it could, or the id was enqueued again.

    Raises:
        JobCancelledError: the stored answer was cancelled.
    """
    if await tools.events.ending(turn.claim) is not None:
        return _result(turn, stored)
    turn.events.start(stored.model or "")
    turn.events.sources(list(stored.sources or []))
    if stored.content:
        turn.events.append_text(stored.content)
    if stored.status == MessageStatus.CANCELLED:
        raise JobCancelledError
    return await _publish_done(turn, stored)


async def publish_failure(
    ctx: dict[Any, Any], attempt: Attempt, error: JobError | asyncio.CancelledError
) -> Done | None:
    """Commit what there is of a job that failed or was cancelled, then publish its ending.

    A job that failed while PostgreSQL refused its whole answer is done instead, once the answer is committed.
    """
    tools: Tools = ctx["tools"]
    unfinished: Unfinished = ctx.get("unfinished", Unfinished())
    await close_lost_charges(ctx["redis"], tools.ratios, attempt.claim)
    if attempt.function not in ("", GENERATE_CHAT):
        await _complete_charge(unfinished.charge, error)
        return None
    if await tools.events.ending(attempt.claim) is not None:
        return None
    turn = unfinished.turn or await _reopen(tools, attempt, error)
    if turn is not None and (kept := await read_kept_answer(ctx["redis"], attempt.claim)) is not None:
        if isinstance(error, JobError):
            return Done(await finish_kept(tools, ctx["redis"], turn, kept))
        await drop_kept_answer(ctx["redis"], attempt.job_id)
    message_id = None if turn is None else await _store_unfinished(tools, turn, unfinished, error)
    events = turn.events if turn else _events_of_unopened(tools.events, attempt)
    if isinstance(error, JobError):
        await events.error(code=error.code, message=error.message)
    else:
        await events.cancelled(message_id=message_id)
    return None


async def _store_unfinished(tools: Tools, turn: Turn, unfinished: Unfinished, error: BaseException) -> int:
    if turn.stored is not None:
        return int(turn.stored.id)
    prompt, charge = unfinished.prompt, unfinished.charge
    is_asked = prompt is not None and charge is not None
    record = AnswerRecord(
        content=turn.events.text,
        status=MessageStatus.FAILED if isinstance(error, JobError) else MessageStatus.CANCELLED,
        outcome=_outcome(error),
        provider=tools.provider.name if is_asked else None,
        model=charge.model if charge is not None and is_asked else None,
        usage=Usage(input_tokens=0, output_tokens=0) if prompt is None else estimated_usage(turn, prompt),
        sources=[] if prompt is None else prompt.sources,
        recipe=None if prompt is None else prompt.recipe,
    )
    message = await store_answer(turn, record, charge)
    return int(message.id)


async def _complete_charge(charge: OpenCharge | None, error: BaseException) -> None:
    if charge is not None:
        await charge.complete_alone(_outcome(error))


def _outcome(error: BaseException) -> str:
    return error.code if isinstance(error, JobError) else CANCELLED


async def _reopen(tools: Tools, attempt: Attempt, error: BaseException) -> Turn | None:
    """The turn of a job whose attempts all died; None where the fault is this attempt's own request."""
    if not isinstance(error, JobError) or error.code != ErrorCode.TOO_MANY_ATTEMPTS:
        return None
    try:
        request = ChatRequest.parse(attempt.kwargs)
    except InvalidRequest:
        return None
    return await open_turn(
        request,
        attempt.claim,
        named_user=str(attempt.kwargs["user_uuid"]),
        log=tools.events,
        raise_attempt=tools.raise_attempt,
    )


def _events_of_unopened(log: EventLog, attempt: Attempt) -> AnswerEvents:
    return log.open(
        attempt.claim,
        user_uuid=str(attempt.kwargs.get("user_uuid", "")),
        session_id=str(attempt.kwargs.get("session_id", "")),
    )


async def _publish_done(turn: Turn, message: Message) -> dict[str, Any]:
    result = _result(turn, message)
    await turn.events.done(message_id=message.id, finish_reason=result["finish_reason"], usage=result["usage"])
    return result


def _result(turn: Turn, message: Message) -> dict[str, Any]:
    return ChatResult(
        message_id=message.id,
        session_id=turn.request.session_id,
        content=message.content,
        finish_reason=message.finish_reason or "",
        model=message.model or "",
        usage=Usage.model_validate(message.usage),
        sources=list(message.sources or []),  # type: ignore[arg-type]  # validated here
        attempt=message.attempt,
    ).model_dump(mode="json")

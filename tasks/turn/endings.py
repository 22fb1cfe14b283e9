"""How an answer ends: exactly once, and only after what the ending speaks of is committed."""

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
    clean_text,
)

from models import Message, MessageStatus
from rag.providers import Finish
from tasks.context import Context, Tools
from tasks.engine.attempt import Attempt
from tasks.engine.claim import JobCancelledError, LeaseLostError
from tasks.monitoring import metrics
from tasks.turn.charges import CANCELLED, DONE, OpenCharge, close_lost
from tasks.turn.event_log import Answer
from tasks.turn.open import Turn, open_turn, store_answer


async def told_before(ctx: Context) -> None:
    """Raise what an earlier attempt has already told the reader, if it was a failure or a cancelling.

    Raises:
        JobError: the answer has ended with it.
        JobCancelledError: the answer has ended as cancelled.
    """
    ending = await ctx["tools"].events.ending(ctx["claim"])
    if ending is None or ending.type == EventType.DONE:
        return
    if ending.type == EventType.CANCELLED:
        raise JobCancelledError
    raise JobError(ending.code or ErrorCode.INTERNAL, ending.message or "")


async def complete(tools: Tools, turn: Turn, finish: Finish) -> dict[str, Any]:
    """Commit a whole answer with its summary's job, then tell `done`; returns the job's result."""
    usage = finish.usage or _estimated_usage(turn)
    metrics.answered(turn.model, usage.output_tokens, began_s=turn.began_s)
    turn.model = clean_text(finish.model)
    if turn.charge is not None:
        turn.charge.add(usage, model=turn.model)
    try:
        message = await store_answer(
            turn, status=MessageStatus.COMPLETED, outcome=DONE, finish_reason=finish.finish_reason, usage=usage
        )
    except (LeaseLostError, asyncio.CancelledError):
        if turn.charge is not None:  # the answer is another attempt's; what this one cost is known all the same
            await turn.charge.give_up()
        raise
    tools.outbox.wake()
    return await _tell_done(turn, message)


async def tell_again(tools: Tools, turn: Turn, stored: Message) -> dict[str, Any]:
    """End a job whose answer is stored: its worker died before saying so, or the id was enqueued again.

    Raises:
        JobCancelledError: what is stored is a cancelled answer.
    """
    if await tools.events.ending(turn.claim) is not None:
        return _result(turn, stored)
    turn.model = stored.model or ""
    turn.answer.start(turn.model)
    turn.answer.sources(list(stored.sources or []))
    if stored.content:
        turn.answer.say(stored.content)
    if stored.status == MessageStatus.CANCELLED:
        raise JobCancelledError
    return await _tell_done(turn, stored)


async def tell_failure(ctx: dict[Any, Any], attempt: Attempt, error: JobError | asyncio.CancelledError) -> None:
    """Commit what there is of a job that failed or was cancelled, then tell its reader."""
    tools: Tools = ctx["tools"]
    await close_lost(tools, ctx["redis"], attempt.claim)
    if attempt.function not in ("", GENERATE_CHAT):
        await _complete_charge(ctx.get("charge"), error)
        return
    if await tools.events.ending(attempt.claim) is not None:
        return
    turn: Turn | None = ctx.get("turn") or await _reopen(tools, attempt, error)
    message_id = None if turn is None else await _store_what_there_is(turn, error)
    answer = turn.answer if turn else _answer_of_unopened(tools, attempt)
    if isinstance(error, JobError):
        await answer.error(code=error.code, message=error.message)
    else:
        await answer.cancelled(message_id=message_id)


async def _store_what_there_is(turn: Turn, error: BaseException) -> int:
    if turn.stored is not None:
        return int(turn.stored.id)
    message = await store_answer(
        turn,
        status=MessageStatus.FAILED if isinstance(error, JobError) else MessageStatus.CANCELLED,
        outcome=_outcome(error),
        finish_reason=None,
        usage=_estimated_usage(turn),
    )
    return int(message.id)


async def _complete_charge(charge: OpenCharge | None, error: BaseException) -> None:
    if charge is not None:
        await charge.complete_alone(_outcome(error))


def _outcome(error: BaseException) -> str:
    return error.code if isinstance(error, JobError) else CANCELLED


async def _reopen(tools: Tools, attempt: Attempt, error: BaseException) -> Turn | None:
    """The turn of a job whose attempts all died; nothing where this attempt's own request was the trouble."""
    if not isinstance(error, JobError) or error.code != ErrorCode.TOO_MANY_ATTEMPTS:
        return None
    try:
        request = ChatRequest.parse(attempt.kwargs)
    except InvalidRequest:
        return None
    return await open_turn(tools, request, attempt.claim, named_user=str(attempt.kwargs["user_uuid"]))


def _answer_of_unopened(tools: Tools, attempt: Attempt) -> Answer:
    return tools.events.open(
        attempt.claim,
        user_uuid=str(attempt.kwargs.get("user_uuid", "")),
        session_id=str(attempt.kwargs.get("session_id", "")),
    )


async def _tell_done(turn: Turn, message: Message) -> dict[str, Any]:
    result = _result(turn, message)
    await turn.answer.done(message_id=message.id, finish_reason=result["finish_reason"], usage=result["usage"])
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


def _estimated_usage(turn: Turn) -> Usage:
    return Usage(
        input_tokens=turn.input_tokens,
        output_tokens=turn.count(turn.answer.text),
        cost=None,
        estimated=True,
    )

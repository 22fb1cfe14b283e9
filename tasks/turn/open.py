"""Opens a turn in PostgreSQL: stores the question, and fences older attempts at its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from protostar_client.contract import ChatRequest, ErrorCode, JobError, check_turn_id
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, Session
from models.transaction import transact
from tasks.engine.claim import Claim, LeaseLostError
from tasks.turn.event_log import EventLog
from tasks.turn.values import Turn

LONGEST_PAUSE_S: Final = 2.0  # a frozen worker's rows must be free when its job is taken over


async def open_turn(
    request: ChatRequest,
    claim: Claim,
    *,
    named_user: str,
    log: EventLog,
    raise_attempt: Callable[[Claim, int], Awaitable[bool]],
) -> Turn:
    """Store the question, or find it, and shut out every older attempt at its answer.

    Args:
        request: the question.
        claim: the claim of the job.
        named_user: the user's UUID as the producer spelled it, by which older readers listen.
        log: where the events of the answer go.
        raise_attempt: raises the job's number of attempts in Redis to at least a number; False where the lease is lost.

    Raises:
        JobError: the job id cannot be stored, or belongs to a turn of another session.
        LeaseLostError: another attempt has the job.
    """
    check_turn_id(claim.job_id)

    async def work(connection: BaseDBAsyncClient) -> _Rows:
        return await _open(connection, request, claim.job_id, claim.attempt)

    rows = await transact(work, longest_pause_s=LONGEST_PAUSE_S)
    if not rows.is_open:
        # Redis has forgotten the attempts of an earlier life of this job; PostgreSQL has not.
        if not await raise_attempt(claim, rows.question.attempt + 1):
            raise LeaseLostError
        rows = await transact(work, longest_pause_s=LONGEST_PAUSE_S)
    events = log.open(claim, user_uuid=named_user, session_id=request.session_id)
    return Turn(request, claim, rows.session, rows.question.id, rows.stored, events)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a turn; `is_open` is False where a newer attempt has opened it."""

    session: Session
    question: Message
    stored: Message | None
    is_open: bool


async def _open(connection: BaseDBAsyncClient, request: ChatRequest, job_id: str, attempt: int) -> _Rows:
    session, _ = await Session.get_or_create(
        user_uuid=request.user_uuid, session_id=request.session_id, using_db=connection
    )
    question, created = await Message.get_or_create(
        job_id=job_id,
        role=MessageRole.USER,
        defaults={"session": session, "content": request.content, "attempt": attempt},
        using_db=connection,
    )
    if question.session_id != session.id:  # type: ignore[attr-defined]  # Tortoise adds it
        raise JobError(
            ErrorCode.INVALID_REQUEST,
            f"the job id {job_id!r} belongs to another session; use a new one for a new question",
        )
    if created:
        await session.save(update_fields=["updated_at"], using_db=connection)
        return _Rows(session, question, stored=None, is_open=True)
    raised = await Message.filter(id=question.id, attempt__lt=attempt).using_db(connection).update(attempt=attempt)
    answers = Message.filter(job_id=job_id, role=MessageRole.ASSISTANT).using_db(connection)
    stored = await answers.exclude(status=MessageStatus.FAILED).first()
    return _Rows(session, question, stored, is_open=bool(raised))

"""A turn in PostgreSQL: the question, the answer, and the fence that lets only the newest attempt write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from protostar_client.contract import ChatRequest, ErrorCode, JobError, Usage, check_job_id
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, Session
from models.transaction import transact
from rag.prompt import Turn as EarlierTurn
from tasks.attempt import LeaseLostError
from tasks.context import Tools
from tasks.events import Answer
from tasks.outbox import add_summary_job
from tasks.queue import Claim

HISTORY_MESSAGES: Final = 200
LONGEST_PAUSE_S: Final = 2.0  # a frozen worker's rows must be free when its job is taken over


@dataclass(slots=True)
class Turn:
    """One question on its way to one answer."""

    request: ChatRequest
    claim: Claim
    question: Message
    stored: Message | None
    """The answer an earlier attempt, or an earlier job with this id, has committed."""
    answer: Answer
    """Where the events of this attempt go; its text is what has been said."""
    model: str = ""
    input_tokens: int = 0
    """Of the prompt, as counted before it was sent."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Of the passages the prompt holds, best first."""


async def open_turn(tools: Tools, request: ChatRequest, claim: Claim, *, named_user: str) -> Turn:
    """Store the question, or find it, and shut out every older attempt at its answer.

    `named_user` is the user's UUID as the producer spelled it: older readers listen under that name.

    Raises:
        JobError: the job id is none, or belongs to a turn of another session.
        LeaseLostError: another attempt has the job.
    """

    check_job_id(claim.job_id)

    async def work(connection: BaseDBAsyncClient) -> tuple[Message, bool]:
        return await _open(connection, request, claim.job_id, claim.attempt)

    question, is_open = await transact(work, longest_pause_s=LONGEST_PAUSE_S)
    if not is_open:
        # Redis has forgotten the attempts of an earlier life of this job; PostgreSQL has not.
        if not await tools.raise_attempt(claim, question.attempt + 1):
            raise LeaseLostError
        question, _ = await transact(work, longest_pause_s=LONGEST_PAUSE_S)
    answer = tools.events.open(claim, user_uuid=named_user, session_id=request.session_id)
    stored = await Message.filter(job_id=claim.job_id, role=MessageRole.ASSISTANT).first()
    if stored is not None and stored.status == MessageStatus.FAILED:
        stored = None
    return Turn(request, claim, question, stored, answer)


async def _open(connection: BaseDBAsyncClient, request: ChatRequest, job_id: str, attempt: int) -> tuple[Message, bool]:
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
            f"the job id {job_id!r} is another session's; use a new one for a new question",
        )
    if created:
        await session.save(update_fields=["updated_at"], using_db=connection)
        return question, True
    raised = await Message.filter(id=question.id, attempt__lt=attempt).using_db(connection).update(attempt=attempt)
    return question, bool(raised)


async def load_history(turn: Turn) -> list[EarlierTurn]:
    """The earlier turns of the session, oldest first; those without an answer are left out."""
    rows = await (
        Message.filter(session_id=turn.question.session_id, id__lt=turn.question.id)  # type: ignore[attr-defined]
        .order_by("-id")
        .limit(HISTORY_MESSAGES)
        .values("job_id", "role", "content", "summary")
    )
    questions = {row["job_id"]: row["content"] for row in rows if row["role"] == MessageRole.USER}
    return [
        EarlierTurn(questions[row["job_id"]], row["content"], row["summary"])
        for row in reversed(rows)
        if row["role"] == MessageRole.ASSISTANT and row["content"] and row["job_id"] in questions
    ]


async def store_answer(
    turn: Turn,
    *,
    status: MessageStatus,
    finish_reason: str | None,
    usage: Usage,
) -> Message:
    """Commit the answer as it was said, and with a completed one the job of its summary.

    Raises:
        LeaseLostError: a newer attempt has opened the turn.
    """
    fields = {
        "session_id": turn.question.session_id,  # type: ignore[attr-defined]
        "content": turn.answer.text,
        "status": status,
        "finish_reason": finish_reason,
        "model": turn.model or None,
        "usage": usage.model_dump(),
        "sources": turn.sources,
        "attempt": turn.claim.attempt,
    }

    async def work(connection: BaseDBAsyncClient) -> Message:
        question = await Message.filter(id=turn.question.id).using_db(connection).select_for_update().get()
        if question.attempt != turn.claim.attempt:
            raise LeaseLostError
        answer, created = await Message.get_or_create(
            job_id=turn.claim.job_id, role=MessageRole.ASSISTANT, defaults=fields, using_db=connection
        )
        if not created:
            await answer.update_from_dict(fields).save(using_db=connection)
        if status is MessageStatus.COMPLETED:
            await add_summary_job(answer.id, connection)
        return answer

    return await transact(work, longest_pause_s=LONGEST_PAUSE_S)

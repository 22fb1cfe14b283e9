"""A turn in PostgreSQL: the question, the answer, and the fence that lets only the newest attempt write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from protostar_client.contract import ChatRequest, ErrorCode, JobError, Usage, check_turn_id
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, Session
from models.transaction import transact
from rag.prompt.budget import History
from rag.prompt.token_ratio import CorrectedCount
from tasks.context import Tools
from tasks.engine.claim import Claim, LeaseLostError
from tasks.monitoring import metrics
from tasks.monitoring.steps import step
from tasks.outbox import add_summary_job
from tasks.turn.charges import OpenCharge
from tasks.turn.event_log import Answer
from tasks.turn.history import newest_messages, stored_turns
from tasks.turn.prompt_record import Recipe

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
    count: CorrectedCount
    """Counts tokens as the model is taken to."""
    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    """Of the prompt, as counted before it was sent."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Of the passages the prompt holds, best first."""
    recipe: Recipe | None = None
    """Of the prompt, once it is made."""
    charge: OpenCharge | None = None
    """Of this attempt, once it asks the model."""
    began_s: float = 0.0
    """When the first token came, by the monotonic clock."""

    def answered_by(self, model: str) -> None:
        """Note which of the models has begun to answer: its first token is here."""
        self.model = model
        self.began_s = metrics.first_token(model, self.claim.rank_ms)
        if self.charge is not None:
            self.charge.model = self.charge.asked = model


async def open_turn(tools: Tools, request: ChatRequest, claim: Claim, *, named_user: str) -> Turn:
    """Store the question, or find it, and shut out every older attempt at its answer.

    `named_user` is the user's UUID as the producer spelled it: older readers listen under that name.

    Raises:
        JobError: the job id is none, or belongs to a turn of another session.
        LeaseLostError: another attempt has the job.
    """

    check_turn_id(claim.job_id)

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
    return Turn(request, claim, question, stored, answer, await tools.ratios.count())


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
    question.session = session
    if created:
        await session.save(update_fields=["updated_at"], using_db=connection)
        return question, True
    raised = await Message.filter(id=question.id, attempt__lt=attempt).using_db(connection).update(attempt=attempt)
    return question, bool(raised)


async def load_history(turn: Turn) -> History:
    """The session's summary and the turns that it does not cover; those without an answer are left out."""
    session = turn.question.session
    rows = await newest_messages(session.id, after=session.summary_until, before=turn.question.id)
    return History([stored.turn for stored in stored_turns(rows)], session.summary or "")


async def store_answer(
    turn: Turn,
    *,
    status: MessageStatus,
    outcome: str,
    finish_reason: str | None,
    usage: Usage,
) -> Message:
    """Commit the answer as it was said with what it cost, and with a completed one the job of its summary.

    `outcome` is the charge's (`models.Charge`).

    Raises:
        LeaseLostError: a newer attempt has opened the turn.
    """
    fields = {
        "session_id": turn.question.session_id,  # type: ignore[attr-defined]
        "content": turn.answer.text,
        "status": status,
        "finish_reason": finish_reason,
        "provider": turn.provider or None,
        "model": turn.model or None,
        "prompt": None if turn.recipe is None else turn.recipe.fields,
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
        if turn.recipe is not None:
            await turn.recipe.store_texts(connection)
        if turn.charge is not None:
            await turn.charge.complete(outcome, connection)
        if status is MessageStatus.COMPLETED:
            await add_summary_job(answer.id, connection)
        return answer

    with step("store"):
        return await transact(work, longest_pause_s=LONGEST_PAUSE_S)

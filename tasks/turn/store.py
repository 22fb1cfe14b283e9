"""Commits an answer with its charge, its prompt and the job of its summary, fenced by the attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protostar_client.contract import Usage
from protostar_client.normalization import clean_text
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus
from models.transaction import RETRY_FOR_S, transact
from tasks.billing.charges import OpenCharge
from tasks.engine.claim import LeaseLostError
from tasks.monitoring.steps import step
from tasks.outbox import add_summary_job
from tasks.turn.prompt_record import Recipe
from tasks.turn.values import Turn

LONGEST_PAUSE_S: Final = 2.0  # a frozen worker's rows must be free when its job is taken over
FINISH_REASON_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """The row of an answer, apart from its turn, and the outcome of its charge."""

    content: str
    status: MessageStatus
    outcome: str
    usage: Usage
    finish_reason: str | None = None
    provider: str | None = None
    model: str | None = None
    sources: Sequence[Mapping[str, Any]] = ()
    recipe: Recipe | None = None

    def columns(self) -> Mapping[str, Any]:
        """The columns of the row."""
        return {
            "content": self.content,
            "status": self.status,
            "finish_reason": clean_text(self.finish_reason or "")[:FINISH_REASON_CHARACTERS] or None,
            "provider": self.provider,
            "model": clean_text(self.model or "") or None,
            "prompt": None if self.recipe is None else self.recipe.fields,
            "usage": self.usage.model_dump(),
            "sources": list(self.sources),
        }


async def store_answer(
    turn: Turn, record: AnswerRecord, charge: OpenCharge | None, *, retry_for_s: float = RETRY_FOR_S
) -> Message:
    """Commit an answer with its cost, and with a completed one the job of its summary.

    Raises:
        LeaseLostError: a newer attempt has opened the turn.
    """
    fields = {**record.columns(), "session_id": turn.session.id, "attempt": turn.claim.attempt}

    async def work(connection: BaseDBAsyncClient) -> Message:
        question = await Message.filter(id=turn.question_id).using_db(connection).select_for_update().get()
        if question.attempt != turn.claim.attempt:
            raise LeaseLostError
        answer, created = await Message.get_or_create(
            job_id=turn.claim.job_id, role=MessageRole.ASSISTANT, defaults=fields, using_db=connection
        )
        if not created:
            await answer.update_from_dict(fields).save(using_db=connection)
        if record.recipe is not None:
            await record.recipe.store_texts(connection, turn.session.id)
        if charge is not None:
            await charge.complete(record.outcome, connection)
        if record.status is MessageStatus.COMPLETED:
            await add_summary_job(answer.id, connection)
        return answer

    with step("store"):
        return await transact(work, retry_for_s=retry_for_s, longest_pause_s=LONGEST_PAUSE_S)

"""The job that sums an answer up in three sentences, for later turns."""

from __future__ import annotations

import asyncio
from typing import Any

from protostar_client.contract import ErrorCode, JobError, SummaryRequest, SummaryResult, Usage
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, Session
from models.transaction import transact
from rag.prompt.summary import build_summary_prompt, short_enough, to_summary, to_supported_summary, what_is_wrong
from rag.providers import ChatMessage
from tasks.billing.charges import DONE, OpenCharge
from tasks.billing.lost_charges import close_lost_charges
from tasks.context import Context, Tools
from tasks.monitoring.logs import label_session
from tasks.outbox import add_roll_up_job
from tasks.turn.history import is_outgrown, shares_of
from tasks.turn.summary_model import complete_with_repair

SUMMARY_MAX_TOKENS = 400
_NOTHING = Usage(input_tokens=0, output_tokens=0)


async def summarize_message(ctx: Context, *, message_id: int) -> dict[str, Any]:
    """Store the summary of a completed answer, once; a short answer is its own summary and costs no model call.

    Returns:
        A `SummaryResult`.

    Raises:
        InvalidRequest: `message_id` is not a number of a row.
        JobError: there is no such answer.
        ProviderError: no summary came.
    """
    tools, request = ctx["tools"], SummaryRequest.parse({"message_id": message_id})
    await close_lost_charges(ctx["redis"], tools.ratios, ctx["claim"])
    message = await _answer(tools.database, request.message_id)
    label_session(message.session.session_id)
    if message.summary is not None:
        return _result(message, "", _NOTHING)
    if short_enough(message.content):
        return _result(await _store(tools, message, to_summary(message.content)), "", _NOTHING)
    charge, text = await _ask(ctx, message)
    summary = await asyncio.to_thread(to_supported_summary, text, message.content)
    stored = await _store(tools, message, summary, charge)
    return _result(stored, charge.model, charge.spent)


async def _answer(database: BaseDBAsyncClient, message_id: int) -> Message:
    message = await Message.get_or_none(
        id=message_id, role=MessageRole.ASSISTANT, status=MessageStatus.COMPLETED, using_db=database
    ).select_related("session")
    if message is None:
        raise JobError(ErrorCode.INVALID_REQUEST, f"message_id: there is no completed answer {message_id}")
    return message


async def _ask(ctx: Context, message: Message) -> tuple[OpenCharge, str]:
    tools, settings = ctx["tools"], ctx["tools"].settings
    max_output_tokens = min(SUMMARY_MAX_TOKENS, settings.max_output_tokens)
    count = await tools.ratios.count()

    def compose(note: str) -> list[ChatMessage]:
        return build_summary_prompt(
            tools.prompts.summary,
            message.content,
            context_window=settings.context_window,
            max_output_tokens=max_output_tokens,
            count=count,
            note=note,
        )

    return await complete_with_repair(
        ctx,
        user_uuid=message.session.user_uuid,
        compose=compose,
        check=lambda text: what_is_wrong(text, message.content),
        max_output_tokens=max_output_tokens,
    )


async def _store(tools: Tools, message: Message, summary: str, charge: OpenCharge | None = None) -> Message:
    """Commit a summary, and the job that rolls the session up where it has outgrown its room in a prompt.

    The first summary stays: a second run of the job changes nothing.
    """

    count = await tools.ratios.count()
    shares = shares_of(tools.settings, tools.prompts, count)

    async def look(connection: BaseDBAsyncClient) -> tuple[Session, bool]:
        session = await Session.get(id=message.session.id, using_db=connection)
        return session, await is_outgrown(connection, session, message, summary=summary, shares=shares, count=count)

    # A transaction, because it is tried again: PostgreSQL's absence now must not cost another model call.
    session, outgrown = await transact(look)

    async def work(connection: BaseDBAsyncClient) -> Message:
        await Message.filter(id=message.id, summary__isnull=True).using_db(connection).update(summary=summary)
        if charge is not None:
            await charge.complete(DONE, connection)
        if outgrown:
            await add_roll_up_job(session.id, session.summary_until, connection)
        return await Message.get(id=message.id, using_db=connection)

    stored = await transact(work)
    tools.outbox.wake()
    return stored


def _result(message: Message, model: str, usage: Usage) -> dict[str, Any]:
    return SummaryResult(message_id=message.id, summary=message.summary or "", model=model, usage=usage).model_dump()

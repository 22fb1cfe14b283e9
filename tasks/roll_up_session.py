"""The job that rolls the older turns of a long session up into the session's summary."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from protostar_client.contract import ErrorCode, JobError, RollUpRequest, Usage
from tortoise.backends.base.client import BaseDBAsyncClient

from models import MessageRole, Session
from models.transaction import transact
from rag.prompt.budget import Count, PromptTooLongError
from rag.prompt.roll_up import Shares, build_roll_up
from rag.prompt.summary import to_session_summary, what_is_wrong
from tasks.billing.charges import DONE, OpenCharge
from tasks.billing.lost_charges import close_lost_charges
from tasks.context import Context
from tasks.monitoring.logs import label_session
from tasks.outbox import add_roll_up_job
from tasks.turn.history import (
    TAIL_MESSAGES,
    StoredTurn,
    first_that_stays,
    newest_messages,
    oldest_messages,
    shares_of,
    stored_turns,
)
from tasks.turn.summary_model import complete_with_repair, no_room

logger = structlog.stdlib.get_logger("protostar.summary")


async def roll_up_session(ctx: Context, *, session: int, until: int) -> dict[str, Any]:
    """Sum up the turns of a session after its message `until` (0: from the start), except for its newest turns.

    As much as one prompt holds; the rest is left to a further job. A session that is no longer where the
    job was to go on from is left alone: a second run changes nothing.

    Returns:
        The session's number, and the model and the usage, empty where none was asked.

    Raises:
        InvalidRequest: an argument is not a number of a row.
        JobError: there is no such session, or the model's text could not be used.
        ProviderError: no text came.
    """
    tools, request = ctx["tools"], RollUpRequest.parse({"session": session, "until": until})
    await close_lost_charges(ctx["redis"], tools.ratios, ctx["claim"])
    row = await _session(tools.database, request.session)
    label_session(row.session_id)
    count = await tools.ratios.count()
    shares = shares_of(tools.settings, tools.prompts, count)
    step = await _next_step(tools.database, row, shares, count) if (row.summary_until or 0) == request.until else None
    if step is None:
        return _result(row)
    charge, summary = None, row.summary
    if step.turns:
        charge, summary, step = await _sum_up(ctx, row, step, shares.summary, count)
    await _store(row, summary, step, charge)
    tools.outbox.wake()
    return _result(row, charge)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one job sums up: turns, the message they end with, and whether there are more to come."""

    turns: list[StoredTurn]
    until: int
    has_more: bool

    def first(self, count: int) -> _Step:
        """The step with its first `count` turns only."""
        if count == len(self.turns):
            return self
        return _Step(self.turns[:count], self.turns[count - 1].answer_id, has_more=True)


async def _session(database: BaseDBAsyncClient, session: int) -> Session:
    row = await Session.get_or_none(id=session, using_db=database)
    if row is None:
        raise JobError(ErrorCode.INVALID_REQUEST, f"session: there is no session {session}")
    return row


async def _next_step(database: BaseDBAsyncClient, session: Session, shares: Shares, count: Count) -> _Step | None:
    newest = await newest_messages(database, session.id, after=session.summary_until)
    if not newest or not shares.can_hold_summary:
        return None
    before = await asyncio.to_thread(first_that_stays, newest, shares, count)
    rows = await oldest_messages(database, session.id, after=session.summary_until, before=before)
    has_more = len(rows) == TAIL_MESSAGES
    if has_more and rows[-1]["role"] == MessageRole.USER:
        rows.pop()  # its answer may come next
    return _Step(stored_turns(rows), rows[-1]["id"], has_more) if rows else None


async def _sum_up(
    ctx: Context, session: Session, step: _Step, most_tokens: int, count: Count
) -> tuple[OpenCharge, str, _Step]:
    """The new summary, and as much of the step as it covers."""
    tools = ctx["tools"]
    max_tokens = min(most_tokens, tools.settings.max_output_tokens)
    try:
        prompt = await asyncio.to_thread(
            build_roll_up,
            tools.prompts.session_summary,
            session.summary,
            [stored.turn for stored in step.turns],
            context_window=tools.settings.context_window,
            max_output_tokens=max_tokens,
            count=count,
        )
    except PromptTooLongError:
        raise no_room() from None
    charge, text = await complete_with_repair(
        ctx,
        user_uuid=session.user_uuid,
        compose=prompt.messages,
        check=lambda text: what_is_wrong(text, prompt.source, max_sentences=None),
        max_output_tokens=max_tokens,
    )
    summary = await asyncio.to_thread(to_session_summary, text, prompt.source, max_tokens=max_tokens, count=count)
    if not summary:
        raise JobError(
            ErrorCode.PROVIDER_ERROR, "the model wrote no summary that could be kept; a later turn asks again"
        )
    return charge, summary, step.first(prompt.turns)


async def _store(session: Session, summary: str | None, step: _Step, charge: OpenCharge | None = None) -> None:
    """Commit the summary with the end of what it covers, and the job of what is left: only if nobody else has."""

    async def work(connection: BaseDBAsyncClient) -> bool:
        as_read = Session.filter(id=session.id, summary_until=session.summary_until)
        if session.summary_until is None:
            as_read = Session.filter(id=session.id, summary_until__isnull=True)
        moved = await as_read.using_db(connection).update(summary=summary, summary_until=step.until)
        if moved and step.has_more:
            await add_roll_up_job(session.id, step.until, connection)
        if charge is not None:
            await charge.complete(DONE, connection)
        return bool(moved)

    moved = await transact(work)
    logger.info("session_rolled_up", row=session.id, until=step.until, turns=len(step.turns), moved=moved)


def _result(session: Session, charge: OpenCharge | None = None) -> dict[str, Any]:
    usage = charge.spent if charge else Usage(input_tokens=0, output_tokens=0)
    model = charge.model if charge else ""
    return {"session": session.id, "model": model, "usage": usage.model_dump()}

"""The history of a session: its summary, and its tail, the newest turns that the summary does not cover."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, Session
from protostar.settings import Settings
from rag.prompt.budget import Count, History, Turn
from rag.prompt.modes import Prompts
from rag.prompt.roll_up import Shares, history_tokens, newest_that_stay

TAIL_MESSAGES: Final = 200
"""Messages of a session that are read for a prompt; the tail is rolled up before it is as long."""
LONG_TAIL_MESSAGES: Final = 150
SHORT_TAIL_MESSAGES: Final = 40
"""The most of the newest messages that stay when a tail is rolled up."""

# One range of the index (session_id, id): with `session_id = $1`, PostgreSQL may scan the messages of all sessions by
# id instead.
NEWEST: Final = """
SELECT id, job_id, role, content, summary, status FROM messages
WHERE (session_id, id) > ($1::bigint, $2::bigint) AND (session_id, id) < ($1::bigint, $3::bigint)
ORDER BY session_id DESC, id DESC LIMIT $4::int
"""
OLDEST: Final = NEWEST.replace(" DESC", "")
_PAST_ALL: Final = 2**63 - 1

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn with a completed answer, and the ids of its messages."""

    question_id: int
    answer_id: int
    turn: Turn


async def read_history(database: BaseDBAsyncClient, session: Session, *, before: int) -> History:
    """Read the session's summary, and its turns after that and before the message `before`."""
    rows = await newest_messages(database, session.id, after=session.summary_until, before=before)
    return History([stored.turn for stored in stored_turns(rows)], session.summary or "")


async def newest_messages(
    database: BaseDBAsyncClient, session_id: int, *, after: int | None, before: int = _PAST_ALL
) -> list[Row]:
    """Read the newest `TAIL_MESSAGES` of a session between two ids, oldest first: one read, however long it is."""
    return (await _read(database, NEWEST, session_id, after, before))[::-1]


async def oldest_messages(database: BaseDBAsyncClient, session_id: int, *, after: int | None, before: int) -> list[Row]:
    """Read the oldest `TAIL_MESSAGES` of a session between two ids, oldest first."""
    return await _read(database, OLDEST, session_id, after, before)


async def _read(database: BaseDBAsyncClient, query: str, session_id: int, after: int | None, before: int) -> list[Row]:
    return await database.execute_query_dict(query, [session_id, after or 0, before, TAIL_MESSAGES])


def stored_turns(rows: Iterable[Row]) -> list[StoredTurn]:
    """Pair questions and answers of messages that stand oldest first.

    A turn whose answer failed, was cancelled or does not exist is left out with its question: a later prompt, summary
    or roll-up must not present a fragment as the answer that was given.
    """
    questions: dict[str, Row] = {}
    turns = []
    for row in rows:
        if row["role"] == MessageRole.USER:
            questions[row["job_id"]] = row
        elif row["status"] == MessageStatus.COMPLETED and row["content"] and row["job_id"] in questions:
            question = questions[row["job_id"]]
            turn = Turn(question["content"], row["content"], row["summary"])
            turns.append(StoredTurn(question["id"], row["id"], turn))
    return turns


def shares_of(settings: Settings, prompts: Prompts, count: Count) -> Shares:
    """Compute how the history shares its room in a prompt with the longest persona."""
    return Shares.of_window(
        settings.context_window,
        max_output_tokens=settings.max_output_tokens,
        persona_tokens=max(count(persona) for persona in prompts.personas.values()),
    )


async def is_outgrown(
    database: BaseDBAsyncClient, session: Session, answer: Message, *, summary: str, shares: Shares, count: Count
) -> bool:
    """Whether a session's tail and its summary have outgrown their share of a prompt, and the room that others leave.

    The room is that of the prompt of `answer`, whose `summary` is about to be stored.
    """
    newest = await newest_messages(database, session.id, after=session.summary_until)
    rows = [{**row, "summary": summary} if row["id"] == answer.id else row for row in newest]
    if len(rows) < LONG_TAIL_MESSAGES and not _left_turns_out(answer, rows):
        return False
    return await asyncio.to_thread(_is_outgrown, session.summary, rows, shares, count)


def _left_turns_out(answer: Message, rows: Sequence[Row]) -> bool:
    """Whether the prompt of an answer had no room for all turns of the tail; true where that is unknown."""
    turns = (answer.prompt or {}).get("turns")
    before = takewhile(lambda row: row["job_id"] != answer.job_id, rows)
    return not isinstance(turns, list) or len(turns) < len(stored_turns(before))


def _is_outgrown(summary: str | None, rows: Sequence[Row], shares: Shares, count: Count) -> bool:
    if not rows or not shares.can_hold_summary or first_that_stays(rows, shares, count) <= rows[0]["id"]:
        return False
    if len(rows) >= LONG_TAIL_MESSAGES:
        return True
    turns = [stored.turn for stored in stored_turns(rows)]
    return history_tokens(summary, turns, count) > shares.history


def first_that_stays(rows: Sequence[Row], shares: Shares, count: Count) -> int:
    """The id of the message at which the newest turns begin that stay out of a roll-up; at least one turn does."""
    newest = rows[-SHORT_TAIL_MESSAGES:]
    stored = stored_turns(newest)
    if not stored:
        return int(newest[0]["id"])
    stay = newest_that_stay(shares, [each.turn for each in stored_turns(rows)], count)
    return stored[-min(stay, len(stored))].question_id

"""The job that reads a session back to its owner."""

from __future__ import annotations

from typing import Any, Final

from protostar_client.contract import HistoryRequest
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Session
from tasks.context import Context

# One range of the index (session_id, id), as in `tasks.turn.history`.
_NEWEST: Final = """
SELECT id, role, content, summary, status, created_at, job_id FROM messages
WHERE (session_id, id) > ($1::bigint, 0) AND (session_id, id) < ($1::bigint, 9223372036854775807)
ORDER BY session_id DESC, id DESC LIMIT $2::int
"""


async def read_history(ctx: Context, *, user_uuid: str, session_id: str, limit: int = 50) -> dict[str, Any]:
    """Read the newest messages of a session, oldest first; none where the user has no such session.

    Raises:
        InvalidRequest: an argument is wrong.
    """
    request = HistoryRequest.parse({"user_uuid": user_uuid, "session_id": session_id, "limit": limit})
    return {"messages": await stored_messages(ctx["tools"].database, request)}


async def stored_messages(database: BaseDBAsyncClient, request: HistoryRequest) -> list[dict[str, Any]]:
    """Read the messages that a request asks for, as JSON values."""
    session = await Session.get_or_none(user_uuid=request.user_uuid, session_id=request.session_id, using_db=database)
    if session is None:
        return []
    rows = await database.execute_query_dict(_NEWEST, [session.id, request.limit])
    return [_entry(row) for row in reversed(rows)]


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("role", "content", "summary", "status", "job_id")}
    return {"message_id": row["id"], **kept, "created_at": row["created_at"].isoformat()}

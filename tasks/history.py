"""The job that reads a session back to its owner."""

from __future__ import annotations

from typing import Any

from protostar_client.contract import HistoryRequest

from models import Message
from tasks.context import Context


async def read_history(_ctx: Context, **arguments: Any) -> dict[str, Any]:
    """The newest messages of a session, oldest first; none where the user has no such session.

    Raises:
        InvalidRequest: an argument is missing or wrong.
    """
    request = HistoryRequest.parse(arguments)
    messages = await (
        Message.filter(session__user_uuid=request.user_uuid, session__session_id=request.session_id)
        .order_by("-id")
        .limit(request.limit)
    )
    return {"messages": [_entry(message) for message in reversed(messages)]}


def _entry(message: Message) -> dict[str, Any]:
    return {
        "message_id": message.id,
        "role": message.role.value,
        "content": message.content,
        "summary": message.summary,
        "status": message.status.value,
        "created_at": message.created_at.isoformat(),
        "job_id": message.job_id,
    }

"""The older protocol's messages: what is published on a session's channel beside each event of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from protostar_client.contract import EventType


def channel_message(
    event_type: EventType, fields: Mapping[str, Any], *, user_uuid: str, session_id: str, job_id: str
) -> dict[str, Any] | None:
    """Translate an event for older readers; None where they receive nothing."""
    match event_type:
        case EventType.DELTA:
            message = {"type": "message", "content": fields["text"]}
        case EventType.DONE:
            message = {"type": "done", "content": "done"}
        case EventType.RESTART:
            message = {"type": "restart", "content": fields["reason"]}
        case EventType.ERROR:
            message = {"type": "error", "content": fields["message"], "code": fields["code"]}
        case EventType.CANCELLED:
            message = {"type": "error", "content": "cancelled", "code": "cancelled"}
        case _:
            return None
    return {
        **message,
        "uuid": user_uuid,
        "sessionId": session_id,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "jobId": job_id,
    }

"""`protostar history`: the messages of a session."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from protostar_client.contract import HISTORY_MAX_MESSAGES, HistoryRequest

from protostar.cli.support.errors import failing_on, using_client
from protostar.cli.support.options import User, account_uuid
from protostar.cli.support.output import note, write, write_json
from protostar.settings import DatabaseSettings, load


def history(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    user: User = None,
    limit: Annotated[int, typer.Option(min=1, max=HISTORY_MAX_MESSAGES, help="The most messages to print.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per message.")] = False,
) -> None:
    """Print the messages of a session, oldest first. Reads PostgreSQL; needs neither Redis nor a worker."""
    from models.database import DatabaseError

    with using_client(), failing_on(DatabaseError):
        asked = {"user_uuid": user or account_uuid(), "session_id": session, "limit": limit}
        messages = asyncio.run(_read(load(DatabaseSettings), HistoryRequest.parse(asked)))
    for message in messages:
        write_json(message) if json else write(_readable(message))
    if not messages and not json:
        note("the user has no such session, or nothing is stored in it; --user names another one")


async def _read(settings: DatabaseSettings, request: HistoryRequest) -> list[dict[str, Any]]:
    from models.database import connect
    from tasks.read_history import stored_messages

    async with connect(settings.database_url.get_secret_value()) as database:
        return await stored_messages(database, request)


def _readable(message: dict[str, Any]) -> str:
    at = message["created_at"][:19].replace("T", " ")
    status = "" if message["status"] == "completed" else f", {message['status']}"
    return f"--- {message['role']}{status} · {at} · {message['job_id']}\n{message['content']}\n\n"

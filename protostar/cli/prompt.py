"""`protostar prompt`: the prompt of an answer."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from protostar.cli.support.errors import failing_on
from protostar.cli.support.output import note, write, write_json
from protostar.settings import DatabaseSettings, SettingsError, load

if TYPE_CHECKING:
    from tasks.turn.prompt_record import SentPrompt


def prompt(
    job: Annotated[str, typer.Argument(help="The id of a chat job that has ended.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the messages.")] = False,
) -> None:
    """Print the prompt of an answer exactly as the model received it, also after the corpus has changed."""
    from models.database import DatabaseError
    from tasks.turn.prompt_record import RecipeError

    with failing_on(SettingsError, DatabaseError, RecipeError):
        sent = asyncio.run(_load(load(DatabaseSettings), job))
    if json:
        write_json(asdict(sent))
        return
    for message in sent.messages:
        write(f"--- {message['role']} ---\n{message['content']}\n")
    parameters = " ".join(f"{name}={value}" for name, value in sent.parameters.items())
    note(f"attempt={sent.attempt} provider={sent.provider} model={sent.model} version={sent.version[:12]} {parameters}")


async def _load(settings: DatabaseSettings, job_id: str) -> SentPrompt:
    from models.database import connect
    from tasks.turn.prompt_record import load_prompt

    async with connect(settings.database_url.get_secret_value()) as database:
        return await load_prompt(database, job_id)

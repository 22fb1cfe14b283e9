"""Options that several commands share."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import typer

from protostar.cli.support.errors import CommandError

User = Annotated[UUID | None, typer.Option(help="The user's UUID.", show_default="a UUID of the account's name")]
Session = Annotated[str | None, typer.Option(help="The session's id.", show_default="a new one")]
Mode = Annotated[str, typer.Option(help="The mode: the prompt file to answer with.")]
ContextFile = Annotated[
    Path | None, typer.Option("--context", help="A file with a page to answer from; - reads standard input.")
]
Job = Annotated[str, typer.Argument(help="The id of the job.")]


def account_uuid() -> UUID:
    """The same UUID at every call of one account, so that its sessions can be gone on with."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        name = "somebody"
    return uuid5(NAMESPACE_URL, f"protostar-cli-{name}")


def new_session() -> str:
    """Make the id of a new session."""
    return f"cli-{uuid4().hex[:8]}"


def read_context(file: Path | None) -> str:
    """The text of a context file; empty without one.

    Raises:
        CommandError: it can't be read.
    """
    if file is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{file} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file} is not UTF-8; save it as UTF-8") from error

"""The command line put together: one module for each group of commands."""

from __future__ import annotations

import logging
import sys

import typer

from cli import chat, corpus, database, jobs, prompt, search, usage
from cli.errors import CommandError

app = typer.Typer(
    name="protostar",
    help="Look after Protostar's database and corpus, and ask its workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(database.migrate)
app.command()(corpus.reindex)
app.command()(search.search)
app.command()(corpus.chunks)
app.command()(chat.ask)
app.command()(jobs.dead)
app.command()(jobs.retry)
app.command()(prompt.prompt)
app.command()(usage.usage)


def main() -> None:
    """Run the command line. Exits with 0 (done), 1 (failed, one line says why) or 2 (wrong use)."""
    logging.getLogger("protostar").addHandler(logging.NullHandler())  # a command says what happens itself
    try:
        app(prog_name="protostar")
    except CommandError as error:
        print(f"protostar: {error}", file=sys.stderr)
        sys.exit(1)

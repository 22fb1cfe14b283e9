"""Assembles the command line from one module for each group of commands."""

from __future__ import annotations

import logging
import sys
from typing import Final

import typer

import protostar.collisions
import protostar.log  # noqa: F401  (configures structlog)
from protostar.cli import ask, corpus, doctor, follow, history, jobs, migrate, prompt, search, status, usage
from protostar.cli.support.errors import CommandError

_EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 failed, with the reason on one line of standard error; 2 wrong use; 130 interrupted. "
    "Data goes to standard output, everything else to standard error."
)

app = typer.Typer(
    name="protostar",
    help="Manage Protostar's database, corpus and queue, and ask its workers questions.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    ask.ask,
    ask.chat,
    ask.enqueue,
    follow.watch,
    follow.cancel,
    history.history,
    prompt.prompt,
    jobs.jobs,
    jobs.retry,
    status.status,
    doctor.doctor,
    usage.usage,
    corpus.reindex,
    corpus.chunks,
    search.search,
    migrate.migrate,
):
    app.command()(command)


def main() -> None:
    """Run the command line. Exits with one of the codes that `--help` names."""
    logging.getLogger("protostar").addHandler(logging.NullHandler())  # commands report errors themselves
    try:
        app(prog_name="protostar")
    except CommandError as error:
        print(f"protostar: {error}", file=sys.stderr)
        sys.exit(1)

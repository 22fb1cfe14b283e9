"""Output of the commands: data to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from protostar_client.normalization import clean_text
from rich.cells import cell_len
from rich.console import Console

from protostar.cli.support.errors import CommandError

notes = Console(stderr=True, highlight=False, soft_wrap=True)
"""For people: what happens, and how far it is."""


def write(text: str) -> None:
    """Write data unbuffered, so that a reader of the pipe receives it at once.

    Raises:
        CommandError: standard output takes no data.
        BrokenPipeError: the reader of the pipe has left; Typer ends the command quietly.
    """
    if sys.stdout is None:  # it was closed before the start
        raise CommandError("standard output is closed; open it or send it to a file")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise CommandError(f"can't write to standard output: {error.strerror}") from error


def write_json(value: Any) -> None:
    """Write one line of JSON."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """Write a line to standard error, without markup."""
    notes.print(text, markup=False, style="dim")


def one_line(text: str) -> str:
    """Make foreign text safe for one line: no line breaks and no control characters."""
    return " ".join(clean_text(text).split())


def column(text: object, width: int) -> str:
    """A text as a column: Hangul takes two cells of a terminal for a character."""
    shown = str(text)
    return shown + " " * (width - cell_len(shown))


def span(seconds: float | None) -> str:
    """Format a duration; `-` where it is unknown."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _drop_output() -> None:
    """Discard the rest of the buffer, so that Python does not fail again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

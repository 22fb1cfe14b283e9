"""`protostar doctor`: problems and their remedies."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from protostar.cli.checks.finding import Finding
from protostar.cli.support.output import write, write_json

_STYLES: Final = {"ok": "green", "note": "yellow", "problem": "bold red", "skipped": "dim"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Do not ask the models, which costs about twenty tokens each.")
    ] = False,
) -> None:
    """Check every part of the installation and print problems and remedies. Exits with 1 if there is a problem."""
    # Imported here: the checks need nearly all there is, and the other commands start faster without.
    from protostar.cli.checks.run import diagnose

    findings = asyncio.run(diagnose(asks_models=not no_model))
    for finding in findings:
        write_json(asdict(finding)) if json else _show(finding)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    line = f"{finding.state:<8} {finding.check + ':':<18} {finding.says}{remedy}"
    if sys.stdout is not None and sys.stdout.isatty():
        text = Text(line)
        text.stylize(_STYLES[finding.state], 0, len(finding.state))
        Console(highlight=False, soft_wrap=True).print(text)
    else:
        write(line + "\n")

"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protostar.cli.support.output import one_line

State = Literal["ok", "note", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's output. `remedy` is empty where nothing has to be done."""

    check: str
    state: State
    says: str
    remedy: str = ""


class Away(Exception):  # noqa: N818  # named after the state
    """A part of the installation that a check needs can't be used.

    The check of that part reports `cause` and `remedy`; the other checks report `why` they were skipped.
    """

    def __init__(self, part: str, why: str, cause: str, remedy: str) -> None:
        super().__init__(why)
        self.part = part
        self.why = why
        self.cause = cause
        self.remedy = remedy


def ok(check: str, says: str) -> Finding:
    """Report that a part is in order."""
    return Finding(check, "ok", one_line(says))


def note(check: str, says: str, remedy: str = "") -> Finding:
    """Report something worth knowing that is not a problem."""
    return Finding(check, "note", one_line(says), one_line(remedy))


def problem(check: str, says: str, remedy: str) -> Finding:
    """Report something that is broken, or soon will be."""
    return Finding(check, "problem", one_line(says), one_line(remedy))


def skipped(check: str, why: str) -> Finding:
    """Report that a check was skipped."""
    return Finding(check, "skipped", one_line(f"not checked: {why}"))


def told(message: str, *, otherwise: str = "correct it") -> tuple[str, str]:
    """Split an error message of the form "cause; remedy"."""
    cause, _, remedy = message.partition("; ")
    return cause, remedy or otherwise

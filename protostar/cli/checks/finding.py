"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protostar.cli.support.output import one_line

State = Literal["ok", "note", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. `remedy` is what to do, empty where there is nothing to do."""

    check: str
    state: State
    says: str
    remedy: str = ""


class Away(Exception):  # noqa: N818  # it says what is not there
    """A part of the house that a check needs can't be used.

    The check that looks after that part tells `cause` and `remedy`; the others say `why` they did not look.
    """

    def __init__(self, part: str, why: str, cause: str, remedy: str) -> None:
        super().__init__(why)
        self.part = part
        self.why = why
        self.cause = cause
        self.remedy = remedy


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", one_line(says))


def note(check: str, says: str, remedy: str = "") -> Finding:
    """Worth to know; nothing is broken."""
    return Finding(check, "note", one_line(says), one_line(remedy))


def problem(check: str, says: str, remedy: str) -> Finding:
    """Something is broken, or soon will be."""
    return Finding(check, "problem", one_line(says), one_line(remedy))


def skipped(check: str, why: str) -> Finding:
    """Nothing can be said."""
    return Finding(check, "skipped", one_line(f"not checked: {why}"))


def told(message: str, *, otherwise: str = "mend that") -> tuple[str, str]:
    """The cause and the remedy of an error that explains itself: "what is wrong; what to do"."""
    cause, _, remedy = message.partition("; ")
    return cause, remedy or otherwise

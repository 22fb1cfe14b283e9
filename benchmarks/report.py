"""Tables in Markdown, with the machine and the day, kept in a README between markers."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Section:
    """What one part found: a table, what it means next to its targets, and how often it was measured."""

    part: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[str]
    setup: str

    def markdown(self) -> str:
        """The section's text."""
        lines = [_line(self.header), _line(["---", *("---:" for _ in self.header[1:])]), *map(_line, self.rows)]
        notes = [f"- {verdict}" for verdict in self.verdicts]
        return "\n".join([*lines, "", *notes, "", f"{_machine()}; {self.setup}."])


def verdict(what: str, value: float, target: float, unit: str, *, at_least: bool = False) -> str:
    """One figure next to its target."""
    reached = value >= target if at_least else value <= target
    bound = "at least" if at_least else "at most"
    return f"{what}: **{figure(value)}{unit}**, target {bound} {target:g}{unit}: {'reached' if reached else 'MISSED'}"


def figure(value: float) -> str:
    """A number as a table shows it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(section: Section, readme: Path) -> None:
    """Replace the part's text in a README.

    Raises:
        ValueError: the README has no place for it.
    """
    text, begin, end = readme.read_text(), f"<!-- {section.part} -->", f"<!-- /{section.part} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{readme.name} has no markers {begin} and {end}; put them where the table belongs")
    readme.write_text(pattern.sub(lambda _: f"{begin}\n{section.markdown()}\n{end}", text))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    today = datetime.now(UTC).date().isoformat()
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = model[1].strip() if model else platform.machine()
    return f"{today}, {len(os.sched_getaffinity(0))} cores ({cpu}), Python {platform.python_version()}"

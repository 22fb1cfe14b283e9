"""What the pages say in code: fenced blocks, commands in running text, links, and names of variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.stack_under_test import ROOT

PAGES: Final = (
    ROOT / "README.md",
    ROOT / "README.ko.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
)
_FENCE: Final = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Found:
    """Something on a page. `kind` is a fence's info string."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def label(self) -> str:
        """The name and the kind, for the name of its test."""
        return f"{self.name}:{self.kind}"


def fences() -> list[Found]:
    """Every fenced block of every page."""
    return [_found(page, match, match["kind"], match["text"]) for page in PAGES for match in _matches(_FENCE, page)]


def unclosed() -> list[str]:
    """Pages whose fences don't come in pairs."""
    return [str(page) for page in PAGES if len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE)) % 2]


def spans() -> Iterator[Found]:
    """Every code span outside fences."""
    for page in PAGES:
        prose = _without_fences(page)
        for match in _SPAN.finditer(prose):
            yield Found(page, prose.count("\n", 0, match.start()) + 1, "", match[1])


def links() -> Iterator[Found]:
    """Every link that stays in the project."""
    for page in PAGES:
        prose = _without_fences(page)
        for match in _LINK.finditer(prose):
            if "://" not in match[1]:
                yield Found(page, prose.count("\n", 0, match.start()) + 1, "", match[1])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _without_fences(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(script: str) -> list[list[str]]:
    """The commands of a shell block, one a line, a backslash joining lines; comments left out."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _matches(pattern: re.Pattern[str], page: Path) -> Iterator[re.Match[str]]:
    return pattern.finditer(page.read_text())


def _found(page: Path, match: re.Match[str], kind: str, text: str) -> Found:
    return Found(page, match.string.count("\n", 0, match.start()) + 1, kind.strip(), text)


def _without_fences(page: Path) -> str:
    """The page with its fences' lines left empty, so that lines keep their numbers."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text())

"""Where the tables of this benchmark are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from benchmarks.delivery.report import Section

README: Final = Path(__file__).with_name("README.md")


def write(section: Section) -> None:
    """Replace the part's text in the README."""
    text, begin, end = README.read_text(), f"<!-- {section.part} -->", f"<!-- /{section.part} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{README.name} has no markers {begin} and {end}; put them where the table belongs")
    README.write_text(pattern.sub(lambda _: f"{begin}\n{section.markdown()}\n{end}", text))

"""The word lists of `rag/analysis/data`: words between blanks, comments after `#`, sections under `[NAME]`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

ListName = Literal["loan_words.txt", "weak_words.txt", "word_ends.txt"]

_FOLDER: Final = Path(__file__).parent / "data"


def read_words(name: ListName) -> list[str]:
    """Read the words of a list without sections, in order."""
    return [word for words in read_sections(name).values() for word in words]


def read_sections(name: ListName) -> dict[str, list[str]]:
    """Read the words of a list by section, in order; words before the first section are in the section ""."""
    sections: dict[str, list[str]] = {}
    section = ""
    for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("["):
            section = words.strip("[]")
        elif words:
            sections.setdefault(section, []).extend(words.split())
    return sections

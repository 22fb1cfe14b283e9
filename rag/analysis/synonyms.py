"""The synonyms of a corpus: `synonyms.txt` in its folder, one group a line, commas between the words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rag.analysis.terms import fold

FILE_NAME: Final = "synonyms.txt"
MAX_BYTES: Final = 256 * 1024
_MOST_WORDS: Final = 20


@dataclass(frozen=True, slots=True)
class Synonyms:
    """Groups of words that mean the same in one corpus."""

    _groups: Mapping[str, tuple[str, ...]]

    def of(self, word: str) -> tuple[str, ...]:
        """The other words of the groups that a word is in, in lower case."""
        return self._groups.get(word, ())


NO_SYNONYMS: Final = Synonyms({})


class SynonymsFile:
    """The synonyms of a corpus folder as its file is now; it is read again after a change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[int, int] | None = None
        self._synonyms = NO_SYNONYMS

    async def current(self) -> Synonyms:
        """Read the file if it has changed since it was last read."""
        try:
            status = (self._folder / FILE_NAME).stat()
        except OSError:
            self._stamp, self._synonyms = None, NO_SYNONYMS
            return self._synonyms
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._synonyms = await asyncio.to_thread(read_synonyms, self._folder)
            self._stamp = stamp
        return self._synonyms


def read_synonyms(folder: Path) -> Synonyms:
    """Read the synonyms of a corpus folder.

    Lines that begin with `#` are comments. At most 256 KiB are read and 20 words of a line; a folder without the file,
    or with one that is not UTF-8 text, has no synonyms.
    """
    try:
        with (folder / FILE_NAME).open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig", errors="ignore")
    except OSError:
        return NO_SYNONYMS
    return parse_synonyms(text.splitlines())


def parse_synonyms(lines: Iterable[str]) -> Synonyms:
    """Make the groups of the lines of a file."""
    groups: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        words = [word for part in line.split(",")[:_MOST_WORDS] if (word := fold(part).strip().lower())]
        for word in words:
            others = [other for other in words if other != word]
            groups[word] = tuple(dict.fromkeys((*groups.get(word, ()), *others)))
    return Synonyms(groups)

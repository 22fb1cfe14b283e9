"""Mixed Korean and English Markdown in any amount: the words of the shipped corpus, shuffled by a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).resolve().parents[2] / "corpus"
_HANGUL: Final = re.compile("[가-힣]")
_WORD: Final = re.compile(r"[^\s`|#>*\[\]()]+")
_ENDINGS: Final = ("한다.", "된다.", "합니다.", "있습니다.", "않는다.", "였습니다.")


def shipped_texts() -> list[str]:
    """The files of the shipped corpus."""
    return [path.read_text() for path in sorted(SHIPPED.rglob("*.md"))]


@cache
def _vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Korean and English words, as often as they occur."""
    words = _WORD.findall("\n".join(shipped_texts()))
    korean = tuple(word for word in words if _HANGUL.search(word))
    english = tuple(word for word in words if word.isascii() and word.isalpha())
    return korean, english


class Writer:
    """Writes documents of about a size; what it writes follows from the seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._korean, self._english = _vocabulary()

    def documents(self, total_bytes: int, file_bytes: int) -> Iterator[str]:
        """Documents of about `file_bytes` each until they have `total_bytes` together."""
        written = 0
        while written < total_bytes:
            text = self.document(file_bytes)
            written += len(text.encode())
            yield text

    def document(self, size_bytes: int) -> str:
        """One document: sections of paragraphs, lists, tables and code."""
        parts = [f"---\ntitle: {self._words(3)}\ndate: 2026-01-02\ntags: [a, b]\n---\n\n# {self._words(4)}\n\n"]
        size = len(parts[0].encode())
        while size < size_bytes:
            part = self._section()
            parts.append(part)
            size += len(part.encode())
        return "".join(parts)

    def _section(self) -> str:
        level = self._random.choice(("##", "##", "###"))
        blocks = [f"{level} {self._words(self._random.randint(2, 5))}"]
        for _ in range(self._random.randint(2, 5)):
            kind = self._random.random()
            if kind < 0.7:
                blocks.append(" ".join(self._sentence() for _ in range(self._random.randint(2, 8))))
            elif kind < 0.82:
                blocks.append("\n".join(f"- {self._sentence()}" for _ in range(self._random.randint(2, 6))))
            elif kind < 0.9:
                blocks.append(self._table())
            else:
                blocks.append(self._code())
        return "\n\n".join(blocks) + "\n\n"

    def _sentence(self) -> str:
        if self._random.random() < 0.6:
            return f"{self._words(self._random.randint(4, 14))} {self._random.choice(_ENDINGS)}"
        words = self._random.choices(self._english, k=self._random.randint(6, 18))
        return " ".join(words).capitalize() + "."

    def _words(self, count: int) -> str:
        return " ".join(
            self._random.choice(self._korean if self._random.random() < 0.75 else self._english) for _ in range(count)
        )

    def _table(self) -> str:
        rows = [f"| {self._words(1)} | {self._words(3)} | {self._random.randint(0, 9999)} |" for _ in range(6)]
        return "\n".join(["| 이름 | value | n |", "|---|---|--:|", *rows])

    def _code(self) -> str:
        names = self._random.choices(self._english, k=8)
        lines = [f"    {a.lower()}_{b.lower()} = {self._random.randint(0, 99)}" for a, b in pairwise(names)]
        return "\n".join([f"```python\ndef {names[0].lower()}():", *lines, "```"])

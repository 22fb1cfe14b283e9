"""A long session and passages, of the sentences of this project's own corpus."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rag.prompt.budget import Turn
from rag.prompt.sentences import split_sentences

CORPUS: Final = Path(__file__).resolve().parent.parent.parent / "corpus"
TURNS: Final = 1_000
PASSAGES: Final = 20
NOT_SUMMED_UP: Final = 5
"""Of the newest turns: their summaries are still being made."""
PASSAGE_TOKENS: Final = 300


@dataclass(frozen=True, slots=True)
class Passage:
    """What a prompt needs of a chunk."""

    document: str
    heading: str
    text: str
    chunk_id: int


class Material:
    """Text without end, the same for the same seed. No two texts are alike, so that nothing has been counted before."""

    def __init__(self, seed: int, count: Callable[[str], int]) -> None:
        self._random = random.Random(seed)
        self._count = count
        self._sentences = [
            sentence
            for path in sorted(CORPUS.rglob("*.md"))
            for sentence in split_sentences(path.read_text())
            if any("가" <= letter <= "힣" for letter in sentence) and "\n" not in sentence
        ]

    def sentences(self, number: int) -> str:
        """So many sentences, each with a number of its own."""
        return " ".join(
            f"{self._random.randrange(10**6)}: {sentence}"
            for sentence in self._random.choices(self._sentences, k=number)
        )

    def turn(self, *, summed_up: bool) -> Turn:
        """A turn of the usual length: an answer of three paragraphs."""
        answer = "\n\n".join(self.sentences(4) for _ in range(3))
        return Turn(self.sentences(1), answer, self.sentences(3) if summed_up else None)

    def session(self) -> list[Turn]:
        """A long session."""
        return [self.turn(summed_up=number < TURNS - NOT_SUMMED_UP) for number in range(TURNS)]

    def passages(self) -> list[Passage]:
        """Passages of the size of a chunk."""
        return [self._passage(number) for number in range(PASSAGES)]

    def _passage(self, number: int) -> Passage:
        text = self.sentences(3)
        while self._count(text) < PASSAGE_TOKENS:
            text += "\n" + self.sentences(1)
        return Passage(f"guide/{number}.md", "운영 > 임대", text, number)

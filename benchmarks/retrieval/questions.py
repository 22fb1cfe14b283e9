"""The questions, what is relevant to them, and how a ranking is measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("questions.jsonl")
SETS: Final = ("church", "payments", "python")
HALVES: Final = ("tuning", "held-out")
OFF_CORPUS: Final = "off-corpus"
TOP: Final = 10

_HEADING_LINE = re.compile(r"^#+ +(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is ranked: a chunk, or a paragraph."""

    id: int
    document: str
    heading: str
    text: str

    def speaks_of(self, document: str, section: str) -> bool:
        """Whether it stands in a section of a document, or holds its heading."""
        if document not in self.document:
            return False
        return section in self.heading or any(section in line for line in _HEADING_LINE.findall(self.text))


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one set; it has no relevant sections where the texts do not speak of it."""

    id: int
    set: str
    kind: str
    half: str
    text: str
    relevant: tuple[tuple[str, str], ...]
    history: tuple[str, ...]

    def wants(self, unit: Unit) -> bool:
        """Whether a unit is relevant."""
        return any(unit.speaks_of(document, section) for document, section in self.relevant)


def load() -> list[Question]:
    """Every question of the file."""
    records = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            record["id"],
            record["set"],
            record["kind"],
            record["half"],
            record["text"],
            tuple((gold["document"], gold["section"]) for gold in record["relevant"]),
            tuple(record.get("history", ())),
        )
        for record in records
    ]


def ndcg(hits: Sequence[bool], relevant_count: int) -> float:
    """nDCG@10 of a ranking with binary relevance."""
    gain = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits[:TOP]) if hit)
    best = sum(1 / math.log2(rank + 2) for rank in range(min(relevant_count, TOP)))
    return gain / best


def found_one(hits: Sequence[bool]) -> float:
    """Whether the first ten hold anything relevant: with answers in one place, that is the recall that counts."""
    return float(any(hits[:TOP]))

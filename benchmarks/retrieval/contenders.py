"""Ways to rank units for a question; all but ours live here, in memory or in one table."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.retrieval.questions import TOP, Question, Unit
from rag.analysis.terms import terms

Ranking = list[Unit]
_K1: Final = 1.2
_B: Final = 0.75


class Bm25:
    """Plain BM25 over heading and text, with any way to make terms."""

    def __init__(self, units: Sequence[Unit], make_terms: Callable[[str], list[str]]) -> None:
        self._units = units
        self._terms = make_terms
        self._counts = [Counter(make_terms(f"{unit.heading} {unit.text}")) for unit in units]
        self._lengths = [count.total() for count in self._counts]
        self._average = sum(self._lengths) / max(len(units), 1)
        self._frequency = Counter(term for count in self._counts for term in count)

    async def rank(self, question: Question) -> Ranking:
        scores = [0.0] * len(self._units)
        for term in self._terms(_with_history(question)):
            frequency = self._frequency[term]
            idf = math.log(1 + (len(self._units) - frequency + 0.5) / (frequency + 0.5))
            for index, count in enumerate(self._counts):
                if tf := count[term]:
                    norm = _K1 * (1 - _B + _B * self._lengths[index] / self._average)
                    scores[index] += idf * tf * (_K1 + 1) / (tf + norm)
        return _best(self._units, scores)


def whitespace_terms(text: str) -> list[str]:
    """Words as blanks divide them."""
    return text.lower().split()


def bigram_terms(text: str) -> list[str]:
    """The terms of our index: bigrams and stems."""
    return terms(text)


class OlderMatching:
    """The way of the service this one takes over from: files cut at blank lines, words of the question counted."""

    def __init__(self, folder: Path) -> None:
        self.units = [unit for path in sorted(folder.rglob("*.md")) for unit in _paragraphs(path, folder)]

    async def rank(self, question: Question) -> Ranking:
        words = _with_history(question).lower().split()
        return _best(self.units, [float(sum(word in unit.text.lower() for word in words)) for unit in self.units])


class FullText:
    """PostgreSQL's full text search with the configuration `simple`, any word of the question counting."""

    def __init__(self, database: Any, units: Sequence[Unit]) -> None:
        self._database = database
        self._units = {unit.id: unit for unit in units}

    async def rank(self, question: Question) -> Ranking:
        rows = await self._database.execute_query_dict(_FULL_TEXT, [_with_history(question), TOP])
        return [self._units[row["id"]] for row in rows]


def _with_history(question: Question) -> str:
    # The others get the session as plainly as can be: the question before, joined.
    return " ".join([*question.history[-1:], question.text])


def _best(units: Sequence[Unit], scores: Sequence[float]) -> Ranking:
    order = sorted((index for index in range(len(units)) if scores[index] > 0), key=lambda index: -scores[index])
    return [units[index] for index in order[:TOP]]


def _paragraphs(path: Path, folder: Path) -> list[Unit]:
    heading, found = "", []
    for number, paragraph in enumerate(path.read_text(encoding="utf-8").split("\n\n")):
        if lines := re.findall(r"^#+ +(.*)$", paragraph, re.MULTILINE):
            heading = lines[-1]
        if len(paragraph.strip()) >= 10:
            name = str(path.relative_to(folder))
            found.append(Unit(number, name, heading, f"[{name} {number}] {paragraph}"))
    return found


_FULL_TEXT: Final = """
WITH asked AS (
    SELECT string_agg(quote_literal(lexeme), ' | ')::tsquery AS query FROM unnest(to_tsvector('simple', $1))
)
SELECT chunks.id FROM chunks, asked
WHERE to_tsvector('simple', heading || ' ' || text) @@ asked.query
ORDER BY ts_rank_cd(to_tsvector('simple', heading || ' ' || text), asked.query, 1) DESC, chunks.id LIMIT $2
"""

"""Whether a question finds its page however it is written: every variant of every pair, and questions of no page."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks.report import Section
from benchmarks.retrieval.stage import indexed
from benchmarks.retrieval.variants import CORPORA, ORIGINAL, Pair, off_corpus, pages, pairs, variants
from rag.search.retrieve import retrieve
from stack.postgres import Postgres

TOP: Final = 5
LEAST_OF_ORIGINAL: Final = 0.9
MORE_REFUSED: Final = 0.02
MOST_REFUSED: Final = 0.01
LEAST_OFF_REFUSED: Final = 0.9


@dataclass(slots=True)
class Outcome:
    """nDCG@5 of each question by variant, beside that of the same question as it was first written, and refusals."""

    ndcg: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    original: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    off_refused: list[bool] = field(default_factory=list)

    async def ask(self, pair: Pair) -> None:
        """Ask a question in every way. The index of its corpus is connected."""
        first = 0.0
        for name, asked in variants(pair).items():
            found = [passage.document for passage in await retrieve(asked.text, history=asked.history)]
            gain = ndcg(list(dict.fromkeys(found)), pair.document)
            first = gain if name == ORIGINAL else first
            self.ndcg[name].append(gain)
            self.original[name].append(first)
            self.refused[name].append(not found)

    async def ask_off_corpus(self, questions: Sequence[str]) -> None:
        """Ask questions that no page answers."""
        self.off_refused += [not await retrieve(question) for question in questions]

    def misses(self) -> list[str]:
        """The targets that are missed, a line each."""
        found = []
        refused_first = mean(self.refused[ORIGINAL])
        for name, gains in self.ndcg.items():
            if mean(gains) < LEAST_OF_ORIGINAL * mean(self.original[name]):
                found.append(f"{name}: nDCG@5 {mean(gains):.3f}, of the originals {mean(self.original[name]):.3f}")
            if mean(self.refused[name]) > refused_first + MORE_REFUSED:
                found.append(f"{name}: {mean(self.refused[name]):.3f} refused, of the originals {refused_first:.3f}")
        if refused_first > MOST_REFUSED:
            found.append(f"originals: {refused_first:.3f} refused")
        if self.off_refused and mean(self.off_refused) < LEAST_OFF_REFUSED:
            found.append(f"off-corpus questions: only {mean(self.off_refused):.3f} refused")
        return found


def ndcg(ranked: Sequence[str], wanted: str) -> float:
    """nDCG@5 where one page is relevant."""
    return 1 / math.log2(ranked.index(wanted) + 2) if wanted in ranked[:TOP] else 0.0


async def measure(server: Postgres) -> Outcome:
    """Ask everything."""
    outcome = Outcome()
    for corpus in CORPORA:
        with tempfile.TemporaryDirectory() as temporary:
            for name, text in pages(corpus).items():
                (Path(temporary) / name).write_text(text, encoding="utf-8")
            async with indexed(server, f"invariance_{corpus}", Path(temporary), None):
                for pair in pairs(corpus):
                    await outcome.ask(pair)
                await outcome.ask_off_corpus(off_corpus())
    return outcome


def section(outcome: Outcome) -> Section:
    """The table of the README."""
    rows = [
        [
            name,
            str(len(gains)),
            f"{mean(gains):.3f}",
            f"{mean(gains) / mean(outcome.original[name]):.2f}",
            f"{mean(outcome.refused[name]):.3f}",
        ]
        for name, gains in outcome.ndcg.items()
    ]
    header = ["variant", "questions", "nDCG@5", "of the original", "refused"]
    verdicts = [f"off-corpus questions refused: {mean(outcome.off_refused):.2f}"]
    verdicts += [f"MISSED: {miss}" for miss in outcome.misses()] or ["all targets reached"]
    return Section("invariance", header, rows, verdicts, f"{len(outcome.ndcg[ORIGINAL])} questions, words alone")

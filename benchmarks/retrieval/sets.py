"""Question sets that are not in this repository, measured the same way: public ones, or your own."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks.report import Section
from benchmarks.retrieval.contenders import Bm25, bigram_terms
from benchmarks.retrieval.quality import HYBRID, LEXICAL, PLAIN
from benchmarks.retrieval.questions import TOP, Question, ndcg
from benchmarks.retrieval.stage import indexed, local_embedder, units_of
from rag.corpus.chunk import ChunkSettings
from rag.providers.embedder import Embedder
from rag.search.retrieve import retrieve
from stack.postgres import Postgres

_FOREIGN: Final = 100
_CHUNKS_ASKED_FOR: Final = 2 * TOP  # some are of one document

Rank = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the documents that answer it."""

    text: str
    documents: frozenset[str]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A folder with `docs/` and `questions.jsonl`, whose lines have `question` and `documents` (paths in `docs/`)."""

    folder: Path
    questions: Sequence[Asked]


def load(folder: Path, most: int) -> QuestionSet:
    """A set, with a seeded sample of its questions where it has more than are wanted."""
    records = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [Asked(record["question"], frozenset(record["documents"])) for record in records]
    return QuestionSet(folder, random.Random(1).sample(questions, min(most, len(questions))))


async def measure(server: Postgres, sets: Sequence[QuestionSet], settings: ChunkSettings) -> list[Section]:
    """Rankings by document, and how often each way gives passages: for a set's questions, and for the others'."""
    embedder = local_embedder()
    ranks: dict[str, list[str]] = {}
    given: dict[tuple[str, str], list[str]] = {}
    for number, each in enumerate(sets):
        foreign = [
            asked.text
            for other in sets
            if other is not each
            for asked in random.Random(2).sample(other.questions, min(_FOREIGN, len(other.questions)))
        ]
        async with indexed(server, f"set_{number}", each.folder / "docs", embedder, settings) as database:
            plain = Bm25(await units_of(database), bigram_terms)
            for way, rank in _ways(plain, embedder).items():
                scores = [_ndcg(await rank(asked.text), asked.documents) for asked in each.questions]
                ranks.setdefault(way, []).append(f"{mean(scores):.3f}")
            for way, with_vectors in ((HYBRID, embedder), (LEXICAL, None)):
                own = [asked.text for asked in each.questions]
                for whose, texts in (("its own questions", own), ("the questions of the others", foreign)):
                    found = [bool(await retrieve(text, embedder=with_vectors)) for text in texts]
                    given.setdefault((way, whose), []).append(f"{mean(found):.2f}" if found else "")
    names = [each.folder.name for each in sets]
    setup = f"{', '.join(str(len(each.questions)) for each in sets)} questions"
    rows = [[f"{way}, {whose}", *shares] for (way, whose), shares in given.items()]
    return [
        Section("sets", ["nDCG@10 by document", *names], [[way, *row] for way, row in ranks.items()], [], setup),
        Section("sets-floor", ["share of questions that get passages", *names], rows, [], setup),
    ]


def _ways(plain: Bm25, embedder: Embedder) -> dict[str, Rank]:
    def ours(with_vectors: Embedder | None) -> Rank:
        async def rank(text: str) -> list[str]:
            found = await retrieve(text, top_k=_CHUNKS_ASKED_FOR, floor=False, embedder=with_vectors)
            return [passage.document for passage in found]

        return rank

    async def by_bm25(text: str) -> list[str]:
        return [unit.document for unit in await plain.rank(Question(0, "", "", "", text, (), ()))]

    return {HYBRID: ours(embedder), LEXICAL: ours(None), PLAIN: by_bm25}


def _ndcg(ranked: Sequence[str], wanted: frozenset[str]) -> float:
    documents = list(dict.fromkeys(ranked))
    return ndcg([document in wanted for document in documents], len(wanted))

"""How well each way ranks, and what the floor lets through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks.report import Section
from benchmarks.retrieval.contenders import Bm25, FullText, OlderMatching, Ranking, bigram_terms, whitespace_terms
from benchmarks.retrieval.questions import HALVES, OFF_CORPUS, SETS, TOP, Question, Unit, found_one, load, ndcg
from benchmarks.retrieval.stage import indexed, local_embedder, units_of
from rag.providers.embedder import Embedder
from rag.search.retrieve import retrieve
from stack.postgres import Postgres

Rank = Callable[[Question], Awaitable[Ranking]]
LEXICAL: Final = "**protostar, words alone**"
HYBRID: Final = "**protostar, words and vectors**"
PLAIN: Final = "BM25 over bigrams and stems"


class Scores:
    """Every measure of every question, by way, set and half."""

    def __init__(self) -> None:
        self.ndcg: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.recall: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.given: dict[tuple[str, bool, str], list[float]] = defaultdict(list)

    def ranked(self, way: str, question: Question, hits: Sequence[bool], relevant_count: int) -> None:
        self.ndcg[way, question.set, question.half].append(ndcg(hits, relevant_count))
        self.recall[way, question.half].append(found_one(hits))


async def measure(server: Postgres, texts: Path) -> Scores:
    """Ask every question of its set in every way."""
    scores, embedder = Scores(), local_embedder()
    for name in SETS:
        questions = [question for question in load() if question.set == name]
        async with indexed(server, f"quality_{name}", texts / name, embedder) as database:
            units = await units_of(database)
            older = OlderMatching(texts / name)
            ways: dict[str, tuple[Sequence[Unit], Rank]] = {
                HYBRID: (units, _ours(units, embedder)),
                LEXICAL: (units, _ours(units, None)),
                PLAIN: (units, Bm25(units, bigram_terms).rank),
                "BM25 over words between blanks": (units, Bm25(units, whitespace_terms).rank),
                "PostgreSQL full text, `simple`": (units, FullText(database, units).rank),
                "older paragraph matching": (older.units, older.rank),
            }
            for question in questions:
                await _floor(scores, question, embedder)
                if question.kind != OFF_CORPUS:
                    for way, (ranked, rank) in ways.items():
                        hits = [question.wants(unit) for unit in await rank(question)]
                        scores.ranked(way, question, hits, sum(map(question.wants, ranked)))
    return scores


def _ours(units: Sequence[Unit], embedder: Embedder | None) -> Rank:
    by_id = {unit.id: unit for unit in units}

    async def rank(question: Question) -> Ranking:
        found = await retrieve(question.text, top_k=TOP, floor=False, history=question.history, embedder=embedder)
        return [by_id[passage.chunk_id] for passage in found]

    return rank


async def _floor(scores: Scores, question: Question, embedder: Embedder) -> None:
    is_off = question.kind == OFF_CORPUS
    for way, with_vectors in ((LEXICAL, None), (HYBRID, embedder)):
        found = await retrieve(question.text, history=question.history, embedder=with_vectors)
        scores.given[way, is_off, question.half].append(float(bool(found)))


def sections(scores: Scores) -> list[Section]:
    """The tables of the README."""
    ways = list(dict.fromkeys(way for way, _, _ in scores.ndcg))
    columns = [(name, half) for name in SETS for half in HALVES]
    rows = [
        [way, *(f"{mean(scores.ndcg[way, *column]):.3f}" for column in columns)]
        + [f"{mean(scores.recall[way, half]):.2f}" for half in HALVES]
        for way in ways
    ]
    header = ["nDCG@10", *(f"{name}, {half}" for name, half in columns), *(f"one in ten, {half}" for half in HALVES)]
    verdicts = [
        f"{name}: {_of_set(scores, way, name):.3f}, {PLAIN} {_of_set(scores, PLAIN, name):.3f} ({way.strip('*')})"
        for way in (LEXICAL, HYBRID)
        for name in SETS
    ]
    setup = f"{len(load())} questions"
    floor_rows = [
        [way, *(f"{mean(scores.given[way, is_off, half]):.2f}" for is_off in (False, True) for half in HALVES)]
        for way in (LEXICAL, HYBRID)
    ]
    floor_header = ["share of questions that get passages", *(f"of the corpus, {half}" for half in HALVES)]
    floor_header += [f"of something else, {half}" for half in HALVES]
    return [
        Section("quality", header, rows, verdicts, setup),
        Section("floor", floor_header, floor_rows, ["a floor at work gives 1.00 and 0.00"], setup),
    ]


def _of_set(scores: Scores, way: str, name: str) -> float:
    return mean(score for half in HALVES for score in scores.ndcg[way, name, half])

"""How long a question takes, how large the index is, and what a rebuild beside it does to both."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, Self

from benchmarks.report import Section, figure, verdict
from benchmarks.retrieval.stage import SETTINGS, indexed, random_embedder
from benchmarks.retrieval.texts import generate
from rag.providers.embedder import Embedder
from rag.search.query import Question
from rag.search.retrieve import retrieve
from stack.postgres import Postgres

QUESTIONS: Final = 400
WARM_UP: Final = 20
TARGETS_MS: Final = {10_000: (5.0, 15.0), 100_000: (20.0, 60.0)}
SIZE_TARGET: Final = 3.0
_ENDINGS: Final = (" 무엇인가요?", " 방법을 알려주세요", "")


class Times(NamedTuple):
    """Median and 95th percentile, in milliseconds."""

    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Those of some measurements."""
        return cls(median(values), sorted(values)[int(len(values) * 0.95)])


@dataclass(frozen=True, slots=True)
class Speed:
    """What one size of corpus gave; times in milliseconds."""

    chunk_count: int
    words: Times
    both: Times
    rebuild: Times
    empty: int
    size_factor: float


async def measure(server: Postgres, sources: Path, folder: Path, chunk_count: int) -> Speed:
    """Ask different questions one after the other, once at rest and once while everything is indexed anew."""
    generate(sources, folder, chunk_count)
    embedder = random_embedder()
    async with indexed(server, f"speed_{chunk_count}", folder, embedder) as database:
        questions = await _questions(database)
        for question in questions[:WARM_UP]:
            await retrieve(question)
        at_rest, _ = await _ask(questions[WARM_UP:])
        for question in questions[:WARM_UP]:
            await retrieve(question, embedder=embedder)
        with_both, _ = await _ask(questions[WARM_UP:], embedder)
        size = await _size_factor(database)
        meanwhile, empty = await _ask_during_rebuild(server.url(f"speed_{chunk_count}"), folder, questions)
    return Speed(chunk_count, Times.of(at_rest), Times.of(with_both), Times.of(meanwhile), empty, size)


async def _ask_during_rebuild(url: str, folder: Path, questions: Sequence[str]) -> tuple[list[float], int]:
    """Ask as long as `protostar reindex --full` runs in a process of its own."""
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "PROTOSTAR_CORPUS_DIR": str(folder),
        "PROTOSTAR_CHAT_MODEL": SETTINGS.model,
    }
    command = [sys.executable, "-m", "protostar", "reindex", "--full", "--json"]
    rebuild = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    took_ms: list[float] = []
    empty = 0
    while rebuild.returncode is None:
        took, none = await _ask(random.Random(len(took_ms)).sample(questions, 50))
        took_ms += took
        empty += none
    if rebuild.returncode:
        raise RuntimeError(f"protostar reindex --full ended with {rebuild.returncode}")
    return took_ms, empty


async def _ask(questions: Sequence[str], embedder: Embedder | None = None) -> tuple[list[float], int]:
    took_ms, empty = [], 0
    for question in questions:
        started = time.perf_counter()
        found = await retrieve(question, floor=False, embedder=embedder)
        took_ms.append((time.perf_counter() - started) * 1000)
        empty += not found
    return took_ms, empty


async def _questions(database: Any) -> list[str]:
    """Three to nine words in a row of some chunk, as a question or bare."""
    rng = random.Random(3)
    rows = await database.execute_query_dict("SELECT text FROM chunks ORDER BY md5(id::text) LIMIT $1", [QUESTIONS])
    questions = []
    for row in rows:
        words = row["text"].split()
        start = rng.randrange(max(1, len(words) - 9))
        questions.append(" ".join(words[start : start + rng.randint(3, 9)]) + rng.choice(_ENDINGS))
    return [question for question in questions if Question(question).query().weights]


async def _size_factor(database: Any) -> float:
    rows = await database.execute_query_dict(
        "SELECT (pg_total_relation_size('postings') + pg_total_relation_size('segments'))::float8"
        " / (SELECT sum(octet_length(text)) FROM chunks) AS factor"
    )
    return float(rows[0]["factor"])


def section(found: Sequence[Speed]) -> Section:
    """The table of the README."""
    ways = ["", "with vectors: ", "words, during a full rebuild: "]
    header = [
        "chunks",
        *(f"{way}{name} ms" for way in ways for name in ("p50", "p95")),
        "empty answers",
        "index : text",
    ]
    rows = [
        [
            f"{each.chunk_count:,}",
            *map(figure, (*each.words, *each.both, *each.rebuild)),
            str(each.empty),
            figure(each.size_factor),
        ]
        for each in found
    ]
    verdicts = []
    for each in found:
        p50_ms, p95_ms = TARGETS_MS[each.chunk_count]
        size = f"{each.chunk_count:,} chunks"
        verdicts += [
            verdict(f"{size}, p50", each.words.p50_ms, p50_ms, " ms"),
            verdict(f"{size}, p95", each.words.p95_ms, p95_ms, " ms"),
            verdict(f"{size}, with vectors, p50", each.both.p50_ms, p50_ms, " ms"),
            verdict(f"{size}, with vectors, p95", each.both.p95_ms, p95_ms, " ms"),
            verdict(f"{size}, p95 during a rebuild", each.rebuild.p95_ms, 2 * each.words.p95_ms, " ms"),
            verdict(f"{size}, index : text", each.size_factor, SIZE_TARGET, ""),
        ]
    setup = f"{QUESTIONS - WARM_UP} different questions or a few less, one process"
    return Section("speed", header, rows, verdicts, setup)

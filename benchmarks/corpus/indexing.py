"""Indexing a folder: its rate, what an unchanged one costs, and queries while all of it is built anew."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

from tortoise import Tortoise

from benchmarks.corpus.text import Writer
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.retrieve import retrieve

SETTINGS: Final = ChunkSettings(400, 60, "gpt-4o")
QUESTIONS: Final = (
    "작업은 언제 다시 시도하나",
    "Redis stream",
    "청크의 크기",
    "lease of a worker",
    "트랜잭션과 아웃박스",
)
WARMING_QUERIES: Final = 100
BASELINE_QUERIES: Final = 1000


@dataclass(frozen=True, slots=True)
class Indexed:
    """One indexing: its size, its wall time, and the processor time of this process and of its child."""

    megabytes: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Costs:
    """A folder of many files: the first time, then unchanged, then with one sentence more in one file."""

    first_s: float
    unchanged_s: float
    chunks_of_file: int
    chunks_written: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Queries before and during a full rebuild."""

    p95_before_ms: float
    p95_during_ms: float
    queries: int
    empty: int
    mixed: int


def fill(folder: Path, total_bytes: int, file_bytes: int, *, seed: int = 1) -> float:
    """Write documents of a past hour; returns their megabytes."""
    size = 0
    for number, text in enumerate(Writer(seed).documents(total_bytes, file_bytes)):
        size += len(text.encode())
        put(folder / f"{number % 50}" / f"{number}.md", text)
    return size / 1e6


def put(file: Path, text: str) -> None:
    """Write a file as old as files usually are: the times of one that is just written prove nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - 3600, time.time() - 3600))


async def rate(folder: Path, total_bytes: int) -> Indexed:
    """Index a fresh folder."""
    megabytes = fill(folder, total_bytes, 20_000)
    cpu, started = _cpu_seconds(), time.monotonic()
    await reindex(folder, settings=SETTINGS)
    return Indexed(megabytes, time.monotonic() - started, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


async def costs(folder: Path, files: int, file_bytes: int) -> Costs:
    """Index a folder of many files three times."""
    fill(folder, files * file_bytes, file_bytes)
    await asyncio.sleep(3)  # a file's status changes when it is written: a stamp that fresh is not trusted
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        await reindex(folder, settings=SETTINGS)
        seconds.append(time.monotonic() - started)
    file = folder / "0" / "0.md"
    put(file, file.read_text() + "\n한 문장을 더 쓴다.\n")
    written = (await reindex(folder, settings=SETTINGS)).result.chunks
    chunks = await _fetch("SELECT 1 FROM chunks JOIN documents ON documents.id = document_id WHERE path = '0/0.md'")
    return Costs(seconds[0], seconds[1], len(chunks), written)


async def serving(folder: Path, total_bytes: int) -> Serving:
    """Ask all the time while everything is built anew."""
    fill(folder, total_bytes, 20_000)
    await reindex(folder, settings=SETTINGS)
    dice = random.Random(1)
    for _ in range(WARMING_QUERIES):
        await _ask(dice)
    before = [(await _ask(dice))[0] for _ in range(BASELINE_QUERIES)]
    building = asyncio.create_task(reindex(folder, settings=SETTINGS, full=True))
    during = []
    while not building.done():
        during.append(await _ask(dice))
    await building
    return Serving(
        _p95(before),
        _p95([milliseconds for milliseconds, _, _ in during]),
        len(during),
        sum(not found for _, found, _ in during),
        sum(len(generations) > 1 for _, _, generations in during),
    )


async def _ask(dice: random.Random) -> tuple[float, int, set[int]]:
    started = time.perf_counter()
    passages = await retrieve(dice.choice(QUESTIONS), floor=False)
    milliseconds = (time.perf_counter() - started) * 1000
    ids = [passage.chunk_id for passage in passages]
    rows = await _fetch("SELECT generation_id FROM chunks WHERE id = ANY($1)", ids)
    return milliseconds, len(passages), {row["generation_id"] for row in rows}


async def _fetch(query: str, *values: object) -> list[dict[str, Any]]:
    return await Tortoise.get_connection("default").execute_query_dict(query, list(values))


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[18]

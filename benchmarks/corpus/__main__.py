"""The corpus: how fast it is cut and indexed, and what that costs: `python -m benchmarks.corpus` (see README.md)."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from benchmarks.corpus import chunking, indexing, memory
from benchmarks.report import Section, figure, verdict, write
from models.database import connect
from models.migrate import migrate
from stack.places import server_account, temporary_base_folder
from stack.postgres import Postgres

T = TypeVar("T")

README: Final = Path(__file__).with_name("README.md")
RATE_BYTES: Final = 10_000_000
MANY_FILES: Final = 10_000
MANY_FILE_BYTES: Final = 2_500
SERVING_BYTES: Final = 5_000_000
MEMORY_LIMIT_MB: Final = 300


class Stage:
    """A PostgreSQL with databases and folders that are used once."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._databases = 0

    @contextmanager
    def place(self) -> Iterator[tuple[str, Path]]:
        """A migrated database and an empty folder."""
        self._databases += 1
        name = f"corpus_{self._databases}"
        self._server.create_database(name)
        asyncio.run(migrate(self._server.url(name)))
        with TemporaryDirectory() as folder:
            yield self._server.url(name), Path(folder)
        self._server.drop_database(name)

    def run(self, database_url: str, measuring: Coroutine[Any, Any, T]) -> T:
        """Measure with a connection."""

        async def connected() -> T:
            async with connect(database_url):
                return await measuring

        return asyncio.run(connected())


def cutting(_stage: Stage, options: argparse.Namespace) -> Section:
    found = chunking.measure(options.rounds)
    cases = list(dict.fromkeys((each.text, each.splitter) for each in found))
    speeds = {case: median(each.mb_a_second for each in found if (each.text, each.splitter) == case) for case in cases}
    texts = list(dict.fromkeys(text for text, _ in cases))
    ours, theirs = list(dict.fromkeys(splitter for _, splitter in cases))
    verdicts = [
        verdict(f"of LangChain's speed, {text}", speeds[text, ours] / speeds[text, theirs], 1, "", at_least=True)
        for text in texts
    ]
    rows = [(text, name, figure(speed)) for (text, name), speed in speeds.items()]
    return Section("chunking", ("text", "splitter", "MB a second of CPU"), rows, verdicts, _setup(options))


def rate(stage: Stage, options: argparse.Namespace) -> Section:
    found = []
    for _ in range(options.rounds):
        with stage.place() as (url, folder):
            found.append(stage.run(url, indexing.rate(folder, RATE_BYTES)))
    megabytes = found[0].megabytes
    wall = median(megabytes / each.seconds for each in found)
    cpu = median(megabytes / each.cpu_seconds for each in found)
    row = (figure(megabytes), figure(wall), figure(cpu))
    verdicts = [verdict("lexical, one run, with PostgreSQL", wall, 1.5, " MB/s", at_least=True)]
    return Section("rate", ("MB", "MB/s", "MB a second of CPU, without PostgreSQL's"), [row], verdicts, _setup(options))


def costs(stage: Stage, options: argparse.Namespace) -> Section:
    with stage.place() as (url, folder):
        found = stage.run(url, indexing.costs(folder, MANY_FILES, MANY_FILE_BYTES))
    share = 100 * found.unchanged_s / found.first_s
    row = (figure(found.first_s), figure(found.unchanged_s), f"{found.chunks_written} of {found.chunks_of_file}")
    verdicts = [verdict("unchanged, of the first time", share, 2, " %")]
    header = (f"{MANY_FILES:,} files: first s", "unchanged s", "chunks written after a change to one file")
    return Section("costs", header, [row], verdicts, _setup(options))


def serving(stage: Stage, options: argparse.Namespace) -> Section:
    with stage.place() as (url, folder):
        found = stage.run(url, indexing.serving(folder, SERVING_BYTES))
    row = tuple(map(figure, (found.p95_before_ms, found.p95_during_ms, found.queries, found.empty, found.mixed)))
    verdicts = [
        verdict("answers that were empty or mixed", found.empty + found.mixed, 0, ""),
        verdict("p95 during, times that before", found.p95_during_ms / found.p95_before_ms, 2, ""),
    ]
    header = ("p95 before ms", "p95 during a full rebuild ms", "queries during", "empty", "of two generations")
    return Section("serving", header, [row], verdicts, _setup(options))


def huge(stage: Stage, options: argparse.Namespace) -> Section:
    rows, verdicts = [], []
    kinds = {
        f"{options.file_mb} MB of Markdown": (memory.write_document, options.file_mb),
        f"one line of {options.line_mb} MB": (memory.write_line, options.line_mb),
    }
    for name, (fill, megabytes) in kinds.items():
        with stage.place() as (url, folder):
            fill(folder / "huge.md", megabytes * 1_000_000)
            peaks = {name: memory.peak_mb(url, folder)}
            memory.insert_line(folder / "huge.md")
            peaks[f"{name}, a line inserted"] = memory.peak_mb(url, folder)
        for what, (before, after) in peaks.items():
            rows.append((what, str(before), str(after)))
            verdicts.append(verdict(what, after, MEMORY_LIMIT_MB, " MB"))
    return Section("memory", ("file", "MB before", "MB at most, both processes"), rows, verdicts, _setup(options))


def _setup(options: argparse.Namespace) -> str:
    return f"{options.rounds} round(s); load average before the run {options.load_average:.1f}"


PARTS: Final = {"chunking": cutting, "rate": rate, "costs": costs, "serving": serving, "memory": huge}


def main() -> None:
    """Measure, print, and write into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description="Cutting and indexing.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without one")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of chunking and rate, taken in turns")
    parser.add_argument("--file-mb", type=int, default=64, help="size of the huge file; 1074 is a gibibyte")
    parser.add_argument("--line-mb", type=int, default=100, help="size of the line without a space")
    parser.add_argument("--keep", action="store_true", help="print only; leave the README as it is")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    account = server_account()
    with temporary_base_folder(account) as base, Postgres(base, account) as server:
        stage = Stage(server)
        for name in options.parts or PARTS:
            options.load_average = os.getloadavg()[0]
            print(f"{name} ...", flush=True)
            section = PARTS[name](stage, options)
            print(section.markdown(), flush=True)
            if not options.keep:
                write(section, README)


if __name__ == "__main__":
    main()

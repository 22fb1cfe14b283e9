"""Retrieval side by side: `python -m benchmarks.retrieval` (see README.md)."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.report import write
from benchmarks.retrieval import invariance, quality, sets, speed, texts
from benchmarks.retrieval.stage import SETTINGS, running_postgres

README: Final = Path(__file__).with_name("README.md")
ROOT: Final = Path(__file__).resolve().parents[2]
TEXTS: Final = ROOT / ".protostar" / "benchmark-texts"
PARTS: Final = ("invariance", "quality", "speed")


async def _sets(folders: list[Path], questions: int, *, morphemes: bool) -> None:
    settings = replace(SETTINGS, morphemes=morphemes)
    with running_postgres() as server:
        for section in await sets.measure(server, [sets.load(folder, questions) for folder in folders], settings):
            print(section.markdown())
            if not morphemes:
                write(section, README)


async def _main(parts: list[str], sizes: list[int]) -> None:
    await asyncio.to_thread(texts.fetch, TEXTS)
    with running_postgres() as server, tempfile.TemporaryDirectory() as temporary:
        if "invariance" in parts:
            write(invariance.section(await invariance.measure(server)), README)
        if "quality" in parts:
            for section in quality.sections(await quality.measure(server, TEXTS)):
                write(section, README)
        if "speed" in parts:
            found = [await speed.measure(server, TEXTS, Path(temporary) / str(size), size) for size in sizes]
            write(speed.section(found), README)


def main() -> None:
    """Measure, and write the tables into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(speed.TARGETS_MS), default=list(speed.TARGETS_MS))
    parser.add_argument(
        "--sets", nargs="+", type=Path, default=[], metavar="DIR", help="these sets alone; see README.md"
    )
    parser.add_argument("--questions", type=int, default=400, help="of each of these sets, at most")
    parser.add_argument("--morphemes", action="store_true", help="index these sets with the extra kiwi; prints only")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.sets:
            runner.run(_sets(options.sets, options.questions, morphemes=options.morphemes))
        else:
            runner.run(_main(options.parts or list(PARTS), options.sizes))


if __name__ == "__main__":
    main()

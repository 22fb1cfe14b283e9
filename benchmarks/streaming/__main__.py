"""Streaming side by side: `python -m benchmarks.streaming` (see README.md)."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import uvloop

from benchmarks.report import Section, figure, verdict, write
from benchmarks.streaming import faults, memory, readers, resume, streams
from benchmarks.streaming.stage import Stage, on_stage

T = TypeVar("T")

README: Final = Path(__file__).with_name("README.md")
RATE: Final = 50
OURS: Final = "**protostar**"
OLDER: Final = "typed SDK, PUBLISH a token"


def _run(measuring: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measuring)


def _setup(options: argparse.Namespace) -> str:
    load = options.load_average
    return f"medians of {options.rounds} rounds taken in turns; load average before the run {load:.1f}"


def _medians(found: list[Any]) -> dict[str, float]:
    return {name: median(asdict(each)[name] for each in found) for name in asdict(found[0])}


def worker(stage: Stage, options: argparse.Namespace) -> Section:
    cases = [(OURS, 100), (OLDER, 100), (OURS, 300)]
    found: dict[tuple[str, int], list[streams.Measured]] = {case: [] for case in cases}
    for number in range(options.rounds):
        for name, answers in cases:
            stage.clear()
            is_ours = name == OURS
            process = stage.start_worker(PROTOSTAR_MAX_JOBS=str(answers)) if is_ours else stage.start_older_loop()
            load = streams.Load(answers, RATE, options.seconds)
            measured = _run(streams.measure(stage, process, load, streams.protostar if is_ours else streams.older))
            print(f"  round {number + 1}: {name}, {answers} answers: {measured}", flush=True)
            found[name, answers].append(measured)
    medians = {case: _medians(measured) for case, measured in found.items()}
    hundred, three_hundred = medians[OURS, 100], medians[OURS, 300]
    columns = (
        "cpu_percent",
        "cpu_us_a_token",
        "p50_ms",
        "p99_ms",
        "sent_percent",
        "arrived_percent",
        "machine_percent",
        "redis_still_ms",
        "readers_still_ms",
    )
    return Section(
        "worker",
        (
            f"answers at {RATE} tokens/s in one process",
            "% of a core",
            "us/token",
            "p50 ms",
            "p99 ms",
            "sent %",
            "arrived %",
            "machine %",
            "Redis still ms",
            "readers still ms",
        ),
        [
            (
                f"{name}, {answers}",
                *(figure(medians[name, answers][column]) for column in columns),
            )
            for name, answers in cases
        ],
        [
            verdict("100 answers, CPU", hundred["cpu_percent"], 50, " % of a core"),
            verdict("100 answers, p50", hundred["p50_ms"], 12, " ms"),
            verdict("100 answers, p99", hundred["p99_ms"], 50, " ms"),
            verdict("300 answers, tokens that arrived", three_hundred["arrived_percent"], 98, " %", at_least=True),
            f"300 answers, p50 in the first and in the last third: {figure(three_hundred['early_p50_ms'])} ms and "
            f"{figure(three_hundred['late_p50_ms'])} ms",
        ],
        _setup(options),
    )


def many_readers(stage: Stage, options: argparse.Namespace) -> Section:
    # Long enough for the reader that stands still to be let go: that takes 1,000 events.
    load = readers.Load(answers=100, readers=1000, rate=RATE, seconds=max(options.seconds, 25))
    found: dict[int, list[readers.Measured]] = {0: [], 1: []}
    for number in range(options.rounds):
        for stalled in found:
            stage.clear()
            measured = _run(readers.measure(stage.redis_url, load, stalled=stalled))
            print(f"  round {number + 1}: {stalled} stalled: {measured}", flush=True)
            found[stalled].append(measured)
    alone, beside = _medians(found[0]), _medians(found[1])
    # The rounds are pairs: what else the machine does meets both halves of one.
    growth = median(b.p99_ms / a.p99_ms for a, b in zip(found[0], found[1], strict=True))
    return Section(
        "readers",
        ("1,000 readers of 100 answers in one process", "p50 ms", "p99 ms", "% of a core"),
        [
            (name, *(figure(of[column]) for column in ("p50_ms", "p99_ms", "cpu_percent")))
            for name, of in (("alone", alone), ("beside one that stands still", beside))
        ],
        [
            verdict("p99", alone["p99_ms"], 60, " ms"),
            verdict("p99 beside a reader that stands still, next to that without", growth, 1.1, " x"),
        ],
        _setup(options),
    )


def resuming(stage: Stage, options: argparse.Namespace) -> Section:
    stage.clear()
    plan = resume.Plan(seed=options.seed)
    print(f"  {plan}", flush=True)
    outcome = _run(resume.run(stage, plan))
    print(f"  {outcome}", flush=True)
    wrong = ("wrong_text", "out_of_order", "gaps", "not_done", "unfinished")
    return Section(
        "resume",
        (
            f"{plan.readers} readers that come and go, {plan.kills} kills",
            "exact",
            *(name.replace("_", " ") for name in wrong),
            "legs",
            "restarts heard",
        ),
        [
            (
                f"{plan.answers} answers, {resume.WORKERS} workers, {resume.PROCESSES} processes of readers",
                *(str(asdict(outcome)[name]) for name in ("exact", *wrong, "legs", "restarts")),
            )
        ],
        [
            verdict("readers that end with exactly the stored answer", outcome.exact, plan.readers, "", at_least=True),
            verdict("answers whose result is not what is stored", outcome.result_differs, 0, ""),
        ],
        f"seed {plan.seed}, once; load average before the run {options.load_average:.1f}",
    )


def kept(stage: Stage, options: argparse.Namespace) -> Section:
    stage.clear()
    stage.start_worker()
    found = {
        "20 answers at 50 tokens/s": _run(memory.measure(stage, rate=RATE, answers=20)),
        "20 answers at full speed": _run(memory.measure(stage, rate=0, answers=20)),
    }
    return Section(
        "memory",
        ("Redis memory per 1,000 tokens of an answer", "KiB", "entries", "KiB of text"),
        [
            (name, figure(of.redis_bytes / 1024), figure(of.entries), figure(of.text_bytes / 1024))
            for name, of in found.items()
        ],
        [],
        f"means of 20 answers, once; load average before the run {options.load_average:.1f}",
    )


def surviving(stage: Stage, options: argparse.Namespace) -> Section:
    rows = []
    for fault in faults.FAULTS:
        stage.clear()
        stage.start_worker()
        found = _run(faults.measure(stage, fault))
        print(f"  {fault.name}: {found}", flush=True)
        endings = "; ".join(f"{count} x {ending}" for ending, count in found.endings.items())
        whole, stored = (f"{count} of {faults.ANSWERS}" for count in (found.whole, found.stored))
        rows.append((fault.name, figure(found.held_percent), whole, stored, figure(found.longest_silence_s), endings))
    return Section(
        "faults",
        (
            "Redis, in the middle of an answer",
            "% of it held in the end",
            "held whole",
            "stored whole",
            "longest silence s",
            "what readers heard",
        ),
        rows,
        [],
        f"{faults.ANSWERS} answers of {faults.TOKENS} tokens each, once; "
        f"load average before the run {options.load_average:.1f}",
    )


PARTS: Final = {
    "worker": worker,
    "readers": many_readers,
    "resume": resuming,
    "memory": kept,
    "faults": surviving,
}


def main() -> None:
    """Measure, print, and write into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Streaming, side by side.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without one")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each case, taken in turns")
    parser.add_argument("--seconds", type=float, default=10, help="how long each is watched")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of who resumes and dies when")
    parser.add_argument("--keep", action="store_true", help="print only; leave the README as it is")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    with on_stage() as stage:
        for name in options.parts or PARTS:
            options.load_average = os.getloadavg()[0]
            print(f"{name} ...", flush=True)
            section = PARTS[name](stage, options)
            print(section.markdown(), flush=True)
            if not options.keep:
                write(section, README)


if __name__ == "__main__":
    main()

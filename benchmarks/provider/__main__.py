"""What reading a token costs, beside the SDKs' typed streams: `python -m benchmarks.provider` (see README.md)."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from benchmarks.provider import readers, recorded
from benchmarks.provider.readers import Read, Tally
from benchmarks.report import Section, figure, verdict, write
from benchmarks.streaming.model import spoken
from stack.processes import Process, wait_until

HERE: Final = Path(__file__).resolve().parent
PACED_STREAMS: Final = 20
PACED_RATE: Final = 50
PACED_TOKENS: Final = 150
TARGET: Final = 0.25
"""Of the typed SDK's cost."""

Costs = dict[tuple[str, str], list[float]]
"""Microseconds a token, by reader and by how the tokens came."""

ONE: Final = "an event a read"
FULL: Final = "full reads"


def main() -> None:
    """Measure, print, and write into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.provider", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    parser.add_argument("--tokens", type=int, default=3000, help="of an answer at full speed")
    parser.add_argument("--keep", action="store_true", help="print only; leave the README as it is")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        _model_server(Path(folder)) as base_url,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        parsing, through_http = runner.run(_measure(base_url, options.rounds, options.tokens))
    setup = (
        f"medians of {options.rounds} rounds taken in turns, {options.tokens} tokens an answer; "
        f"load average {load:.1f} before the run and {os.getloadavg()[0]:.1f} after it"
    )
    for section in (_parsing_section(parsing, setup), _http_section(through_http, setup)):
        print(section.markdown(), flush=True)
        if not options.keep:
            write(section, HERE / "README.md")


async def _measure(base_url: str, rounds: int, tokens: int) -> tuple[Costs, Costs]:
    parsing: Costs = {}
    through_http: Costs = {}
    at_full_speed = f"rate=0 tokens={tokens} text=words"
    paced = f"rate={PACED_RATE} tokens={PACED_TOKENS} text=words"
    body = await recorded.record(base_url, at_full_speed)
    async with AsyncExitStack() as stack:
        alone = {
            ONE: (await recorded.open_readers(recorded.one_event_a_read(body), stack)).all,
            FULL: (await recorded.open_readers(recorded.full_reads(body), stack)).all,
        }
        by_http = (await readers.open_readers(base_url, stack)).all
        for number in range(rounds + 1):
            is_warm = number > 0  # the first round imports what the SDKs import late
            for shape, reads in alone.items():
                for name, read in reads.items():
                    _note(parsing, (name, shape), await _cost(read, at_full_speed, 1, tokens), is_warm)
            for name, read in by_http.items():
                cost = await _cost(read, paced, PACED_STREAMS, PACED_TOKENS)
                _note(through_http, (name, ONE), cost, is_warm)
                _note(through_http, (name, FULL), await _cost(read, at_full_speed, 1, tokens), is_warm)
    return parsing, through_http


async def _cost(read: Read, content: str, streams: int, tokens: int) -> float:
    """Microseconds a token of so many answers at once, which must be right."""
    tally = Tally()
    gc.collect()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(read(content, tally))
    cost = tally.us_a_token()
    assert (tally.tokens, tally.characters) == (streams * tokens, streams * len(spoken(tokens))), "another answer"
    return cost


def _note(costs: Costs, case: tuple[str, str], cost: float, is_warm: bool) -> None:
    if is_warm:
        costs.setdefault(case, []).append(cost)
        print(f"  {case[0]}, {case[1]}: {figure(cost)} us", flush=True)


def _parsing_section(costs: Costs, setup: str) -> Section:
    medians = {case: median(found) for case, found in costs.items()}
    verdicts = [
        verdict(f"{shape}, next to the {typed}", medians[recorded.OURS, shape] / medians[typed, shape], TARGET, " x")
        for shape in (ONE, FULL)
        for typed in (readers.TYPED_OPENAI, readers.TYPED_OPENROUTER)
    ]
    return Section("parsing", ("parsing alone, us of CPU a token", ONE, FULL), _rows(medians), verdicts, setup)


def _http_section(costs: Costs, setup: str) -> Section:
    medians = {case: median(found) for case, found in costs.items()}
    pairs = (
        (readers.OURS_OPENAI, readers.TYPED_OPENAI),
        (readers.OURS_OPENAI, readers.TYPED_OPENAI_AIOHTTP),
        (readers.OURS_OPENROUTER, readers.TYPED_OPENROUTER),
    )
    ratios = [
        f"{ours} next to the {typed}: {figure(medians[ours, ONE] / medians[typed, ONE])} x with an event a read, "
        f"{figure(medians[ours, FULL] / medians[typed, FULL])} x with full reads"
        for ours, typed in pairs
    ]
    return Section("http", ("through HTTP, us of CPU a token", ONE, FULL), _rows(medians), ratios, setup)


def _rows(medians: Mapping[tuple[str, str], float]) -> list[list[str]]:
    names = dict.fromkeys(name for name, _ in medians)
    return [[name, figure(medians[name, ONE]), figure(medians[name, FULL])] for name in names]


@contextmanager
def _model_server(folder: Path) -> Iterator[str]:
    port_file = folder / "model.port"
    command = [sys.executable, "-m", "benchmarks.streaming.model", str(port_file)]
    process = Process(command, log=folder / "model.log", cwd=HERE.parent.parent)
    try:
        wait_until(port_file.exists, timeout_s=30, what="the model server listens")
        yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    finally:
        process.stop()


if __name__ == "__main__":
    main()

"""How long it takes to put a prompt together, beside a builder that counts everything: see README.md."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from benchmarks.prompt.material import PASSAGES, TURNS, Material, Passage
from benchmarks.report import Section, figure, verdict, write
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import Count, Prompt, Turn, build_prompt
from rag.prompt.token_memo import TokenMemo

HERE: Final = Path(__file__).resolve().parent
PERSONA: Final = (HERE.parent.parent / "rag" / "prompt" / "shipped" / "general.md").read_text()
DEFAULT_WINDOW: Final = 8_192
WINDOWS: Final = (DEFAULT_WINDOW, 32_768)
MAX_OUTPUT_TOKENS: Final = 1_024
TARGET_MS: Final = 5
NAIVE_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True)
class Took:
    """What one prompt took: by the clock, and of a core."""

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Round:
    """One prompt's material: the session, its next question, and the passages found for it."""

    turns: Sequence[Turn]
    question: str
    passages: Sequence[Passage]

    def build(self, window: int, count: Count) -> Prompt[Passage]:
        """The prompt."""
        return build_prompt(
            PERSONA,
            self.question,
            history=self.turns,
            passages=self.passages,
            context_window=window,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            count=count,
        )

    def count_everything(self, window: int, count: Count) -> Prompt[Passage]:
        """The same, after counting every part there is, as a simple builder does."""
        for turn in self.turns:
            count(turn.question)
            count(turn.summary or turn.answer)
        for passage in self.passages:
            count(passage.text)
        return self.build(window, count)


def main() -> None:
    """Measure and print; write the table into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tokens = TokenCounter("gpt-4o")
    material = Material(arguments.seed, tokens.count)
    rows, verdicts = [], []
    for window in WINDOWS:
        found = measure(window, tokens, material, arguments.rounds)
        rows += [[f"{window:,}", name, *cells(took)] for name, took in found.items()]
        if window == DEFAULT_WINDOW:
            verdicts.append(verdict("p50, first prompt", median(one.wall_ms for one in found[FIRST]), TARGET_MS, " ms"))
    setup = f"{TURNS:,} turns, {PASSAGES} passages, {arguments.rounds} prompts of each kind, seed {arguments.seed}"
    section = Section("prompt", ["window", "builder", "p50 ms", "p99 ms", "CPU p50 ms"], rows, verdicts, setup)
    print(section.markdown())
    write(section, HERE / "README.md")


FIRST: Final = "**protostar**, first prompt"
NEXT: Final = "**protostar**, next prompt of a session"
THREAD: Final = "**protostar**, first prompt, in a thread"
PLAIN: Final = "the same without the memory"
NAIVE: Final = "every part counted"


def measure(window: int, tokens: TokenCounter, material: Material, rounds: int) -> dict[str, list[Took]]:
    """What each prompt took, by the builder. They take turns, so that a busy machine is busy for all of them."""
    took: dict[str, list[Took]] = {name: [] for name in (FIRST, NEXT, THREAD, PLAIN, NAIVE)}
    turns = material.session()
    for number in range(rounds):
        turns = [*turns[1:-5], material.turn(summed_up=True), *turns[-4:], material.turn(summed_up=False)]
        first = Round(turns, material.sentences(2), material.passages())
        memo = memo_of_worker(tokens)
        took[FIRST].append(timed(partial(first.build, window, memo.count)))
        after = Round([*turns[1:], material.turn(summed_up=False)], material.sentences(2), material.passages())
        took[NEXT].append(timed(partial(after.build, window, memo.count)))
        took[THREAD].append(asyncio.run(timed_in_thread(partial(first.build, window, memo_of_worker(tokens).count))))
        took[PLAIN].append(timed(partial(first.build, window, tokens.count)))
        if number < NAIVE_ROUNDS:
            took[NAIVE].append(timed(partial(first.count_everything, window, tokens.count)))
    return took


def memo_of_worker(tokens: TokenCounter) -> TokenMemo:
    """The counter of a worker that has answered other sessions."""
    memo = TokenMemo(tokens)
    memo.count(PERSONA)
    return memo


def timed(build: Callable[[], object]) -> Took:
    """One call."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    build()
    return Took((time.perf_counter() - start_s) * 1e3, (time.process_time() - start_cpu_s) * 1e3)


async def timed_in_thread(build: Callable[[], object]) -> Took:
    """One call in another thread, which is there already, until the event loop has what it made."""
    await asyncio.to_thread(int)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.to_thread(build)
    return Took((time.perf_counter() - start_s) * 1e3, (time.process_time() - start_cpu_s) * 1e3)


def cells(took: Sequence[Took]) -> list[str]:
    """The median and the 99th percentile, and the median of the CPU's time."""
    wall = [one.wall_ms for one in took]
    return [figure(median(wall)), figure(quantiles(wall, n=100)[98]), figure(median(one.cpu_ms for one in took))]


if __name__ == "__main__":
    main()

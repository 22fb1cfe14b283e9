"""Prompts and summaries are made in a thread, where the longest text of any kind does not stop the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import PromptTooLongError, Turn, build_prompt
from rag.prompt.summary import to_supported_summary, what_is_wrong
from rag.prompt.token_memo import TokenMemo
from rag.prompt.token_ratio import CorrectedCount

LONGEST_PAUSE_S = 0.05
"""20 ms is what holds on a quiet machine: there it is 18 ms at most. A busy one adds pauses of its own."""
TRIES = 5
UNITS = ["가", "임대는 15초다. ", "7", "1,", "3만", "\n", "a ", "\u0301\u0316", "`", ". ", "["]
COUNT = CorrectedCount(TokenMemo(TokenCounter("gpt-4o")).count, 1.26)


async def longest_pause_s(work: Callable[[], object]) -> float:
    """The longest time for which the loop could not run while a thread worked; the least of some runs."""
    least_s = float("inf")
    for _ in range(TRIES):
        task = asyncio.create_task(asyncio.to_thread(work))
        longest_s = 0.0
        while not task.done():
            start_s = time.perf_counter()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - start_s)
        await task
        least_s = min(least_s, longest_s)
        if least_s < LONGEST_PAUSE_S:
            break
    return least_s


def repeated(unit: str, characters: int) -> str:
    return unit * (characters // len(unit))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("window", [8_192, 128_000])
async def test_the_longest_prompt_leaves_the_loop_to_others(unit: str, window: int) -> None:
    def build() -> None:
        with suppress(PromptTooLongError):
            build_prompt(
                "persona",
                repeated(unit, 32_000),
                history=[Turn(repeated(unit, 2_000), repeated(unit, 8_000))] * 30,
                page_context=repeated(unit, 400_000),
                context_window=window,
                max_output_tokens=1_024,
                count=COUNT,
            )

    COUNT("loads the encoding")
    assert await longest_pause_s(build) < LONGEST_PAUSE_S


@pytest.mark.parametrize("unit", UNITS)
async def test_the_longest_summary_leaves_the_loop_to_others(unit: str) -> None:
    text = repeated(unit, 32_000)
    assert (
        await longest_pause_s(lambda: (what_is_wrong(text, text), to_supported_summary(text, text))) < LONGEST_PAUSE_S
    )


def test_a_long_number_and_its_summary_take_milliseconds() -> None:
    digits = "1234567890" * 760
    start_s = time.thread_time()
    assert what_is_wrong(digits, digits)
    assert to_supported_summary(digits, digits)
    assert time.thread_time() - start_s < 0.1

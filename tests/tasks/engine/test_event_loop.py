"""The delay of the event loop, seen from the loop and from another thread."""

from __future__ import annotations

import asyncio
import time

import pytest

from tasks.engine.event_loop import PERIOD_S, LoopWatch
from tests.support.stack_under_test import until


async def test_a_delay_is_measured_while_it_lasts_and_afterwards() -> None:
    watch = LoopWatch()
    assert (watch.held_up_s, watch.lag_s) == (0.0, 0.0)
    watch.start()
    await asyncio.sleep(PERIOD_S)
    seen = asyncio.create_task(asyncio.to_thread(held_up_in_a_thread, watch))
    await asyncio.sleep(0)
    time.sleep(PERIOD_S + 0.5)  # noqa: ASYNC251
    assert watch.held_up_s > 0.4
    assert await seen > 0.3

    async def runs_again() -> bool:
        return watch.held_up_s < 0.1

    await until(runs_again, "the loop runs again")
    assert watch.lag_s > 0.4
    watch.stop()
    assert watch.held_up_s == pytest.approx(0.0)


def held_up_in_a_thread(watch: LoopWatch) -> float:
    longest = 0.0
    deadline = time.monotonic() + PERIOD_S + 0.5
    while time.monotonic() < deadline:
        longest = max(longest, watch.held_up_s)
        time.sleep(0.01)
    return longest

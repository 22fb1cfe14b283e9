"""What every contender's module uses; standard library only."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Final

from benchmarks.delivery.board import Board

Enqueue = Callable[[int, int], Awaitable[object]]
"""Enqueues the job with this number, which then holds its slot for so many milliseconds."""

SLOTS: Final = int(os.environ.get("DELIVERY_SLOTS", "100"))
LONGEST_S: Final = 600
KEEP_RESULT_S: Final = 3600

# A line a job costs some of them a third of their rate: nobody writes one.
logging.disable(logging.INFO)


def redis_url() -> str:
    """The Redis of this measurement."""
    return os.environ["REDIS_URL"]


def option(name: str, default: str) -> str:
    """An option of the contender, by the name of its variable."""
    return os.environ.get(name, default)


async def do_job(number: int, hold_ms: int) -> None:
    """The job of every contender."""
    _board().note_start(number)
    if hold_ms:
        await asyncio.sleep(hold_ms / 1000)


@cache
def _board() -> Board:
    return Board.of_environment()

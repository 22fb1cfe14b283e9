"""Enqueues jobs of one contender: `python -m benchmarks.delivery.produce MODULE:PRODUCER FIRST COUNT RATE HOLD_MS`.

`RATE` is jobs a second at random moments (a Poisson process, the same for every contender), 0 as fast as it goes.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Final

import uvloop

from benchmarks.delivery.board import Board

AT_ONCE: Final = 50
SEED: Final = 3

_Put = Callable[[int], Coroutine[None, None, None]]


async def produce(contender: str, first: int, count: int, rate: float, hold_ms: int) -> None:
    """Enqueue `count` jobs, numbered from `first`."""
    module, _, name = contender.partition(":")
    board = Board.of_environment()
    async with getattr(import_module(module), name)() as enqueue:

        async def put(number: int) -> None:
            board.note_enqueue(number)
            await enqueue(number, hold_ms)

        await (_at_rate(put, first, count, rate) if rate else _at_once(put, first, count))


async def _at_rate(put: _Put, first: int, count: int, rate: float) -> None:
    moments, loop = random.Random(SEED), asyncio.get_running_loop()
    at = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            await asyncio.sleep(at - loop.time())
            group.create_task(put(number))
            at += moments.expovariate(rate)


async def _at_once(put: _Put, first: int, count: int) -> None:
    numbers = iter(range(first, first + count))

    async def some() -> None:
        for number in numbers:
            await put(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())


if __name__ == "__main__":
    _contender, _first, _count, _rate, _hold_ms = sys.argv[1:]
    uvloop.run(produce(_contender, int(_first), int(_count), float(_rate), int(_hold_ms)))

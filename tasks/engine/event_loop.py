"""Measures how late the event loop runs: code that computes for long holds up every job of the worker."""

from __future__ import annotations

import asyncio
import time
from typing import Final

PERIOD_S: Final = 0.25
WINDOW_S: Final = 30.0


class LoopWatch:
    """Wakes up every `PERIOD_S` and notes how late that was. Its values can be read from any thread."""

    def __init__(self) -> None:
        self._due_s: float | None = None
        self._window_began_s = 0.0
        self._worst_s = self._worst_before_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to measure the running loop."""
        self._task = asyncio.create_task(self._run(), name="loop-watch")

    def stop(self) -> None:
        """Measure no longer."""
        if self._task is not None:
            self._task.cancel()
        self._due_s = None

    @property
    def held_up_s(self) -> float:
        """The seconds for which the loop has not run although it should have."""
        due_s = self._due_s
        return 0.0 if due_s is None else max(0.0, time.monotonic() - due_s)

    @property
    def lag_s(self) -> float:
        """The longest delay of the last half minute to a minute, the present one included."""
        return max(self._worst_before_s, self._worst_s, self.held_up_s)

    async def _run(self) -> None:
        while True:
            self._due_s = time.monotonic() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            self._note(time.monotonic(), self.held_up_s)

    def _note(self, now_s: float, late_s: float) -> None:
        if now_s - self._window_began_s > WINDOW_S:
            self._window_began_s, self._worst_before_s, self._worst_s = now_s, self._worst_s, 0.0
        self._worst_s = max(self._worst_s, late_s)

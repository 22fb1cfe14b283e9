"""How fast the answers of this worker come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW_S: Final = 5.0


class Pace:
    """Tokens a second of all answers that stream, over the last `WINDOW_S`.

    Noting a text costs the stream nothing; it is counted when somebody asks, from any one thread.
    """

    def __init__(self, count: Callable[[str], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._uncounted: deque[str] = deque()
        self._counted: deque[tuple[float, int]] = deque()
        self._started = clock()

    def add(self, text: str) -> None:
        """Note a text that has come, as it came: as a rule it is one token."""
        self._uncounted.append(text)

    def tokens_a_second(self) -> float:
        """The pace; call it more often than once in `WINDOW_S`."""
        now, tokens = self._clock(), 0
        for _ in range(len(self._uncounted)):
            tokens += self._count(self._uncounted.popleft())
        self._counted.append((now, tokens))
        while self._counted[0][0] < now - WINDOW_S:
            self._counted.popleft()
        return sum(count for _, count in self._counted) / max(1.0, min(WINDOW_S, now - self._started))

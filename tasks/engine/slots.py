"""How many jobs of each class a worker runs at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from protostar_client.keys import DEFAULT_CLASS

from tasks.engine.claim import LEASE_TTL_EXTRA_S

_NONE: Final = ""


class Slots:
    """Slots by class, so that no class of jobs starves another.

    Args:
        slots: class -> jobs at once.
        classes: function -> class; what is not named shares the slots of `DEFAULT_CLASS`.
    """

    def __init__(self, slots: Mapping[str, int], classes: Mapping[str, str]) -> None:
        self._slots = dict(slots)
        self._classes = dict(classes)
        self._taken: Counter[str] = Counter()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self._slots)

    @property
    def taken(self) -> dict[str, int]:
        """Taken slots by class; may be read from any thread."""
        return dict(self._taken)

    @property
    def all(self) -> dict[str, int]:
        """Slots by class, free or not."""
        return dict(self._slots)

    def class_of(self, function: str) -> str:
        """The class of a function's jobs."""
        return self._classes.get(function, DEFAULT_CLASS)

    def lease_ttls_ms(self, timeouts_s: Mapping[str, float]) -> dict[str, int]:
        """The life of an in-progress key by class, from the timeouts of its functions."""
        longest_s = dict.fromkeys(self._slots, 0.0)
        for function, timeout_s in timeouts_s.items():
            name = self.class_of(function)
            longest_s[name] = max(longest_s[name], timeout_s)
        return {name: int((seconds + LEASE_TTL_EXTRA_S) * 1000) for name, seconds in longest_s.items()}

    def free(self, at_most: float | None = None) -> dict[str, int]:
        """Free slots by class, none of them more than `at_most`."""
        free = {name: slots - self._taken[name] for name, slots in self._slots.items()}
        return free if at_most is None else {name: int(min(count, at_most)) for name, count in free.items()}

    def take(self, function: str) -> str:
        """Take a slot; returns what `release` wants back."""
        name = self.class_of(function)
        self._taken[name] += 1
        return name

    def take_none(self) -> str:
        """For work that may not wait for a slot."""
        return _NONE

    def release(self, name: str) -> None:
        """Give a slot back."""
        if name != _NONE:
            self._taken[name] -= 1

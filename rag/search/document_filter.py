"""Which documents a question may find, by glob patterns of their paths."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Final, Self

from protostar_client.normalization import normalize

_ANY_FOLDERS: Final = "**"
_WILDCARD: Final = re.compile(r"[*?\[]")
_AFTER_ALL: Final = "\U0010ffff"

Matcher = re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Groups of glob patterns: a document passes where each group has a pattern that matches its path.

    `*`, `?` and `[...]` match inside a folder's or a file's name, `**` any number of folders; `teams/a/` is everything
    below that folder. Letters have a case.
    """

    groups: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, *groups: Iterable[str]) -> Self:
        """Make a filter of the groups that have patterns: those of a mode and of a request, say."""
        found = (tuple(sorted({normalize("NFC", pattern) for pattern in group})) for group in groups)
        return cls(tuple(group for group in found if group))

    def __bool__(self) -> bool:
        """Whether it excludes anything."""
        return bool(self.groups)

    def allows(self, path: str) -> bool:
        """Whether a document may be found."""
        return all(any(_matches(pattern, path) for pattern in group) for group in self.groups)

    def choose(self, paths: Sequence[str]) -> list[int]:
        """The places of the documents that may be found, among sorted paths."""
        chosen = set(range(len(paths))) if not self.groups else _chosen(self.groups[0], paths)
        return sorted(place for place in chosen if self.allows(paths[place]))


def _chosen(patterns: Iterable[str], paths: Sequence[str]) -> set[int]:
    """The places whose paths begin as one of the patterns does before its first wildcard."""
    found: set[int] = set()
    for pattern in patterns:
        wildcard = _WILDCARD.search(pattern)
        prefix = pattern[: wildcard.start()] if wildcard else pattern
        found.update(range(bisect_left(paths, prefix), bisect_left(paths, prefix + _AFTER_ALL)))
    return found


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path, in time in proportion to both: each `**` takes as few folders as it can."""
    steps, names = _steps(pattern), path.split("/")
    step = name = 0
    last_any = retry = -1
    while name < len(names):
        matcher = steps[step] if step < len(steps) else None
        if step < len(steps) and matcher is None:
            last_any, retry = step, name
            step += 1
        elif matcher is not None and matcher.match(names[name]):
            step, name = step + 1, name + 1
        elif last_any >= 0:
            retry += 1
            step, name = last_any + 1, retry
        else:
            return False
    return all(matcher is None for matcher in steps[step:])


@lru_cache(maxsize=4096)
def _steps(pattern: str) -> tuple[Matcher, ...]:
    """The matcher of each name of a pattern; None stands for any folders."""
    names = (pattern + _ANY_FOLDERS if pattern.endswith("/") else pattern).split("/")
    return tuple(None if name == _ANY_FOLDERS else re.compile(translate(name)) for name in names)

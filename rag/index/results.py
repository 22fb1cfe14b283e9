"""The result of a reindex, and of a part of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from protostar_client.contract import ReindexFailure, ReindexResult

from rag.corpus.walk import Failure
from rag.index.documents import DocumentState
from rag.index.drafts import Draft

MAX_FAILURES: Final = 100


@dataclass(frozen=True, slots=True)
class Reindexed:
    """The outcome of a reindex: its counts, the files that failed, and folders whose documents were kept.

    A folder in `unproved` could not be read, or is an empty folder in the place of one that held documents: nothing
    proves that these documents are gone.
    """

    result: ReindexResult
    failures: list[Failure]
    unproved: list[str]


def _no_counts() -> dict[str, int]:
    return dict.fromkeys(("added", "changed", "removed", "unchanged", "failed", "chunks"), 0)


@dataclass(slots=True)
class Tally:
    """Counts of documents and of written chunks, and the files that failed."""

    counts: dict[str, int] = field(default_factory=_no_counts)
    failures: list[Failure] = field(default_factory=list)

    def add(self, drafts: Iterable[Draft], documents: Mapping[str, DocumentState]) -> None:
        """Count drafts; `documents` is the state before the run."""
        for draft in drafts:
            self.counts["chunks"] += draft.added_count
            self.counts["unchanged"] += len(draft.unchanged)
            self.counts["failed"] += len(draft.failures)
            self.failures += draft.failures
            for finished in draft.finished:
                before = documents.get(finished.file.path)
                if before is None or before.content_hash is None:
                    self.counts["added"] += 1
                else:
                    self.counts["unchanged" if before.content_hash == finished.content_hash else "changed"] += 1

    def add_tally(self, other: Tally) -> None:
        """Add the counts of another tally."""
        for name, count in other.counts.items():
            self.counts[name] += count
        self.failures += other.failures

    def dump(self) -> str:
        """Serialise to JSON."""
        return json.dumps([self.counts, [[failure.path, failure.reason] for failure in self.failures]])

    @classmethod
    def load(cls, text: str) -> Self:
        """Read the JSON of `dump`."""
        counts, failures = json.loads(text)
        return cls(counts, [Failure(*failure) for failure in failures])

    def reindexed(self, started: float, unproved: list[str]) -> Reindexed:
        """Make the result of a run that began at `started` on the monotonic clock."""
        failures = [ReindexFailure(path=each.path, reason=each.reason) for each in self.failures[:MAX_FAILURES]]
        seconds = round(time.monotonic() - started, 3)
        return Reindexed(ReindexResult(**self.counts, seconds=seconds, failures=failures), self.failures, unproved)

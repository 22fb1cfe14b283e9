"""Which jobs run when, and which share of a worker they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from arq import cron
from arq.cron import CronJob
from arq.typing import WorkerCoroutine
from protostar_client.contract import (
    GENERATE_CHAT,
    INDEX_DOCUMENTS,
    REINDEX_CORPUS,
    ROLL_UP_SESSION,
    SUMMARIZE_MESSAGE,
)

from protostar.settings import JobClass
from tasks.reindex_corpus import reindex_corpus
from tasks.retry_policy import MAX_TRIES

REINDEX_TIMEOUT_S: Final = 3600

CLASSES: Final[Mapping[str, JobClass]] = {
    GENERATE_CHAT: "chat",
    SUMMARIZE_MESSAGE: "summary",
    ROLL_UP_SESSION: "summary",
    REINDEX_CORPUS: "reindex",
    INDEX_DOCUMENTS: "reindex",
    f"cron:{reindex_corpus.__qualname__}": "reindex",
}
"""A share of slots each, so that none of them starves another."""


class Every(CronJob):
    """A cron job that runs every so many minutes, counted from the start of 1970, and when a worker starts."""

    def __init__(self, minutes: int, coroutine: WorkerCoroutine, **options: Any) -> None:
        super().__init__(**vars(cron(coroutine, run_at_startup=True, **options)))
        self._every_s = minutes * 60

    def calculate_next(self, prev_run: datetime) -> None:
        """Set the next time after `prev_run`."""
        periods = prev_run.timestamp() // self._every_s + 1
        self.next_run = datetime.fromtimestamp(periods * self._every_s, prev_run.tzinfo)


def reindex_schedule(every_minutes: int) -> list[CronJob]:
    """Cron jobs that reindex when a worker starts and then every so many minutes; 0 is never."""
    if every_minutes == 0:
        return []
    job = cast(WorkerCoroutine, reindex_corpus)  # ARQ types a job's context as a plain dict
    return [Every(every_minutes, job, timeout=REINDEX_TIMEOUT_S, max_tries=MAX_TRIES)]


def slots_served(max_jobs: int, serve: Sequence[JobClass]) -> dict[str, int]:
    """Slots of each class; none for a class that other workers serve."""
    slots: dict[JobClass, int] = {"chat": max_jobs, "summary": max(1, max_jobs // 4), "reindex": 1}
    return {name: count if name in serve else 0 for name, count in slots.items()}

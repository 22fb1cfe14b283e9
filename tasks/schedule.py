"""Which jobs run when, and which share of a worker they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

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


def reindex_schedule(every_minutes: int) -> list[CronJob]:
    """Cron jobs that reindex when a worker starts and then every so many minutes of the clock; 0 is never.

    Args:
        every_minutes: one of `protostar.settings.REINDEX_MINUTES`, which divide the hour or the day.
    """
    if every_minutes == 0:
        return []
    return [
        cron(
            cast(WorkerCoroutine, reindex_corpus),  # ARQ types a job's context as a plain dict
            hour=set(range(0, 24, every_minutes // 60)) if every_minutes >= 60 else None,
            minute=set(range(0, 60, every_minutes)) if every_minutes < 60 else {0},
            run_at_startup=True,
            timeout=REINDEX_TIMEOUT_S,
            max_tries=MAX_TRIES,
        )
    ]


def slots_served(max_jobs: int, serve: Sequence[JobClass]) -> dict[str, int]:
    """Slots of each class; none for a class that other workers serve."""
    slots: dict[JobClass, int] = {"chat": max_jobs, "summary": max(1, max_jobs // 4), "reindex": 1}
    return {name: count if name in serve else 0 for name, count in slots.items()}

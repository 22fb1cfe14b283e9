"""Connects the worker to metrics, traces and log labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.engine.claim import Claim, Ending
from tasks.engine.hooks import Observer
from tasks.monitoring import metrics, traces
from tasks.monitoring.logs import JobLabels


class WorkerObserver(Observer):
    """Labels the log lines of each attempt, opens its span, and counts how attempts end."""

    @contextmanager
    def attempt(self, claim: Claim, function: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Label the lines logged inside, in the span of the attempt."""
        session = arguments.get("session_id")
        JobLabels(claim, session if isinstance(session, str) else "").bind()
        with traces.attempt_span(claim, function):
            yield

    def attempt_ended(self, function: str, outcome: str, seconds: float, *, is_held: bool, is_failure: bool) -> None:
        """Count the attempt and note its outcome in the span."""
        metrics.attempt_ended(function, outcome if is_held else Ending.LOST.value, seconds)
        traces.note(failed=is_failure, **{"protostar.outcome": outcome})

    def dead_letter_kept(self, code: str) -> None:
        """Count the dead letter."""
        metrics.DEAD_LETTERS.labels(code).inc()

    def jobs_taken_over(self, count: int) -> None:
        """Count the jobs."""
        metrics.TAKEOVERS.inc(count)

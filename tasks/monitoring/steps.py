"""Measures the steps of an attempt, for metrics and traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.monitoring.metrics import STEP_SECONDS, Step
from tasks.monitoring.traces import span


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Measure the time of the block and open a span for it."""
    with STEP_SECONDS[name].time(), span(name):
        yield

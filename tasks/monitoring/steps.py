"""The steps of an attempt, as metrics and traces see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.monitoring.metrics import STEP_SECONDS, Step
from tasks.monitoring.traces import span


@contextmanager
def step(name: Step) -> Iterator[None]:
    """What is done inside is a step of its own: its time is measured, and it is a span of the trace."""
    with STEP_SECONDS[name].time(), span(name):
        yield

"""When the worker reindexes, and what it runs beside each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from protostar.settings import REINDEX_MINUTES
from tasks.schedule import reindex_schedule, slots_served

START = datetime(2026, 12, 1, 10, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize("minutes", REINDEX_MINUTES[1:])
def test_the_corpus_is_reindexed_every_so_many_minutes(minutes: int) -> None:
    [job] = reindex_schedule(minutes)
    runs, moment = [], START
    for _ in range(30):
        job.calculate_next(moment)
        assert job.next_run is not None
        moment = job.next_run
        runs.append(moment)
    assert START < runs[0] <= START + timedelta(minutes=minutes)
    assert {after - before for before, after in pairwise(runs)} == {timedelta(minutes=minutes)}


def test_zero_is_never() -> None:
    assert reindex_schedule(0) == []


def test_a_class_that_other_workers_serve_has_no_slots() -> None:
    assert slots_served(100, ["chat", "summary", "reindex"]) == {"chat": 100, "summary": 25, "reindex": 1}
    assert slots_served(100, ["reindex"]) == {"chat": 0, "summary": 0, "reindex": 1}

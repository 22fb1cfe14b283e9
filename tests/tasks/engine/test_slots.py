"""Slots: what one class takes is not another's."""

from __future__ import annotations

from protostar_client.keys import DEFAULT_CLASS

from tasks.engine.claim import LEASE_TTL_EXTRA_S
from tasks.engine.slots import Slots


def slots() -> Slots:
    return Slots({DEFAULT_CLASS: 3, "chat": 2, "summary": 0}, {"answer": "chat", "sum_up": "summary"})


def test_a_taken_slot_is_missing_from_its_class_alone() -> None:
    some = slots()
    taken = some.take("answer")
    assert some.free() == {DEFAULT_CLASS: 3, "chat": 1, "summary": 0}
    some.release(taken)
    assert some.free() == some.all


def test_an_unknown_function_takes_a_slot_of_the_default_class() -> None:
    some = slots()
    assert some.take("anything") == DEFAULT_CLASS
    assert some.taken == {DEFAULT_CLASS: 1}


def test_more_jobs_than_slots_leave_less_than_none_free() -> None:
    some = slots()
    some.take("sum_up")
    assert some.free()["summary"] == -1


def test_an_aborted_job_takes_no_slot() -> None:
    some = slots()
    some.release(some.take_none())
    assert some.free() == some.all


def test_a_burst_bounds_every_class() -> None:
    assert slots().free(1) == {DEFAULT_CLASS: 1, "chat": 1, "summary": 0}
    assert slots().free(float("inf")) == slots().all


def test_an_in_progress_key_outlives_the_longest_timeout_of_its_class() -> None:
    ttls = slots().lease_ttls_ms({"answer": 10, "other": 20, "another": 5})
    assert ttls == {
        name: int((seconds + LEASE_TTL_EXTRA_S) * 1000)
        for name, seconds in {DEFAULT_CLASS: 20, "chat": 10, "summary": 0}.items()
    }

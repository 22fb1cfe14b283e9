"""The fault matrix: whatever a provider does, its job ends once, as the page says, and nobody waits for long."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

from rag.providers import ProviderName
from stack.places import Account
from tests.support.fault_run import ADAPTERS, HEADER, PAGE, Matrix, prepared_servers, promise, run
from tests.support.faults import CASES, JOB_S, Case
from tests.support.stack_under_test import check_order, text_of

GENEROUS_S = 10.0


REGRESSIONS = {
    "keep-alive comments for ever",
    "ends after tokens without a finish reason",
    "200 with a JSON error",
    "a server error between tokens",
    "no choices in a chunk",
    "refuses the connection",
    "a line that never ends",
    "a fast text that never ends",
    "NUL, half a character, and one cut into two events",
    "429, Retry-After: 30 years",
    "400, context length",
}


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, account: Account | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    """Runs every case of the session once, all side by side."""
    folder = tmp_path_factory.mktemp("faults")
    found: list[dict[str, Any]] = [
        getattr(item, "callspec").params  # noqa: B009
        for item in request.session.items
        if hasattr(item, "callspec")
    ]
    wanted = {(p["adapter"], p["case"].title) for p in found if p.keys() == {"adapter", "case"}}
    with prepared_servers(account, folder) as servers:
        yield asyncio.run(run(servers, folder, wanted))


@pytest.mark.sample(40)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.regression if case.title in REGRESSIONS else ()) for case in CASES],
    ids=lambda case: case.title,
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_fault_has_its_ending(matrix: Matrix, adapter: ProviderName, case: Case) -> None:
    seen = matrix[adapter, case.title]
    check_order(seen.events)
    ending, text = seen.events[-1], text_of(seen.events)
    assert ending.get("code", ending["type"]) == case.ending, ending
    assert seen.requests == case.requests
    assert case.text in (None, text)

    question, answer = seen.messages
    assert question["status"] == "completed"
    assert answer["status"] == ("completed" if case.ending == "done" else "failed")
    assert (answer["content"], answer["attempt"]) == (text, ending["attempt"])
    assert seen.result["s"] is (case.ending == "done")
    told = seen.result["r"].get("content", seen.result["r"].get("error", {}).get("message"))
    assert told == (text if case.ending == "done" else ending["message"])

    assert seen.slowest_s < case.limit_s + GENEROUS_S
    assert "sk-test-secret" not in json.dumps(seen.events)


def test_an_attempt_that_fails_is_followed_by_a_visible_restart(matrix: Matrix) -> None:
    for (_, title), seen in matrix.items():
        attempts = [attempt for attempt, _ in groupby(event["attempt"] for event in seen.events)]
        restarts = [event["attempt"] for event in seen.events if event["type"] == "restart"]
        # The first attempt may have been refused before it said a word.
        assert restarts == [attempt for attempt in attempts if attempt > 1], title


def test_the_page_says_what_holds() -> None:
    """Every case has its row, the promise is the case's, and what was seen kept it."""
    page = PAGE.read_text()
    for case in CASES:
        row = re.search(re.escape(promise(case)) + r" ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
        assert row, f"{case.title}: run `python -m tests.support.fault_run`"
        assert max(map(float, row.groups())) <= min(case.limit_s + 1, JOB_S + 1), case.title
    assert page.count("\n| ") == len(CASES) + page.count(HEADER)

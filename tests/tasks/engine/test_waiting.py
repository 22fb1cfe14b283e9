"""Background tasks run on, whatever ends them; calls are repeated until Redis answers."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.stdlib import get_logger
from structlog.testing import capture_logs

from tasks.engine.waiting import keep_running, until_answered, wait_for_event

logger = get_logger("test")


class Ended(BaseException):
    """Ends a test's endless loop: no loop under test catches it."""


class Steps:
    """A function that does something else each time it is called."""

    def __init__(self, *steps: BaseException | str) -> None:
        self._steps = list(steps)

    async def __call__(self) -> str:
        step = self._steps.pop(0) if self._steps else Ended()
        if isinstance(step, BaseException):
            raise step
        return step


async def test_a_task_is_run_again_when_it_ends_or_fails() -> None:
    failures: list[str] = []
    steps = Steps("ended", ValueError("bug"), RedisConnectionError("away"), KeyError("expected"), "ended")
    with capture_logs() as lines, pytest.raises(Ended):
        await keep_running(
            steps,
            logger=logger,
            event="chore_failed",
            again_s=0.001,
            on_failure=lambda: failures.append("failed"),
            is_expected=lambda error: isinstance(error, KeyError),
        )
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("chore_failed", "error"),
        ("chore_failed", "warning"),
        ("chore_failed", "warning"),
    ]
    assert len(failures) == 3


async def test_a_cancelled_task_stays_cancelled() -> None:
    with pytest.raises(asyncio.CancelledError):
        await keep_running(Steps(asyncio.CancelledError()), logger=logger, event="chore_failed")


async def test_a_call_is_repeated_until_redis_answers() -> None:
    steps = Steps(RedisConnectionError("away"), TimeoutError(), OSError(), "answer")
    with capture_logs() as lines:
        assert await until_answered(steps, logger=logger, event="finish_failed", again_s=0.001) == "answer"
    assert [line["event"] for line in lines] == ["finish_failed"] * 3


async def test_an_error_that_repeating_does_not_help_is_raised() -> None:
    with pytest.raises(ValueError, match="bug"):
        await until_answered(Steps(ValueError("bug")), logger=logger, event="finish_failed", again_s=0.001)


async def test_an_event_is_waited_for_until_it_is_set_or_the_time_is_over() -> None:
    event = asyncio.Event()
    await wait_for_event(event, 0.001)
    assert not event.is_set()
    asyncio.get_running_loop().call_later(0.001, event.set)
    await wait_for_event(event, 60)
    assert event.is_set()

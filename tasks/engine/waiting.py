"""Waiting for an event, and for Redis to come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

from redis.exceptions import RedisError
from structlog.stdlib import BoundLogger

T = TypeVar("T")

AWAY: Final = (RedisError, OSError, TimeoutError)
"""What a call raises while Redis is away."""


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Return when `event` is set or `timeout_s` is over.

    Unlike `asyncio.wait_for` before Python 3.12, it never swallows a cancellation.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def until_answered(call: Callable[[], Awaitable[T]], *, logger: BoundLogger, event: str, again_s: float) -> T:
    """Repeat a call that Redis does not answer; log `event` for every failure."""
    while True:
        try:
            return await call()
        except AWAY as error:
            log_failure(logger, event, error)
        await asyncio.sleep(again_s)


async def keep_running(
    run: Callable[[], Awaitable[object]],
    *,
    logger: BoundLogger,
    event: str,
    again_s: float = 1.0,
    on_failure: Callable[[], object] = lambda: None,
    is_expected: Callable[[BaseException], bool] = lambda _: False,
) -> NoReturn:
    """Call `run` again whenever it ends; log `event` and call `on_failure` where it ends with an error.

    Errors of a Redis that is away are expected, and those that `is_expected` names.
    """
    while True:
        try:
            await run()
        except Exception as error:
            log_failure(logger, event, error, is_expected=is_expected(error))
            on_failure()
            await asyncio.sleep(again_s)


def log_failure(logger: BoundLogger, event: str, error: Exception, *, is_expected: bool = False) -> None:
    """Log an error: a warning where Redis is away or it is expected, or else with its traceback."""
    if is_expected or isinstance(error, AWAY):
        logger.warning(event, error=error)
    else:
        logger.error(event, error=error, exc_info=error)

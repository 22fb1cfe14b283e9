"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Return when `event` is set or `timeout_s` is over.

    Unlike `asyncio.wait_for` before Python 3.12, it never swallows a cancellation.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()

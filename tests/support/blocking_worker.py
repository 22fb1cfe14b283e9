"""Settings of a worker with two more functions, which block its event loop: for ever, or for a time."""

from __future__ import annotations

import time
from typing import Any

from arq import func

import arq_settings


async def block(ctx: dict[str, Any]) -> None:
    """Hold the loop up; the heartbeat, which has a thread of its own, goes on."""
    while True:
        time.sleep(1)  # noqa: ASYNC251


async def block_for(ctx: dict[str, Any], seconds: float) -> None:
    """Hold the loop up for a time."""
    time.sleep(seconds)  # noqa: ASYNC251


# ARQ reads what the class itself holds, not what it inherits.
WorkerSettings = type(
    "WorkerSettings",
    (),
    {
        **vars(arq_settings.WorkerSettings),
        "functions": [
            *arq_settings.WorkerSettings.functions,
            func(block, name="block"),
            func(block_for, name="block_for"),
        ],
    },
)

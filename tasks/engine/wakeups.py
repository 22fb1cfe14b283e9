"""Hearing at once that there is something to do."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from protostar_client import keys
from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger("protostar.listen")

RECONNECT_S: Final = 1.0


async def listen(redis: Redis, *, wake: asyncio.Event, abort: asyncio.Event) -> None:
    """Set `wake` for every job that becomes ready and `abort` for every wish to abort one, until cancelled.

    What is published while the connection is away goes unheard: the worker's polls find it.
    """
    abort_prefix = keys.WAKE_ABORT_PREFIX.encode()
    while True:
        try:
            async with redis.pubsub() as pubsub:
                await pubsub.subscribe(keys.WAKE)
                wake.set()
                while True:
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                    if message is not None:
                        (abort if message["data"].startswith(abort_prefix) else wake).set()
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("listening_failed error=%s", error)
            await asyncio.sleep(RECONNECT_S)

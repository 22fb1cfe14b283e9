"""Asks other workers to help with a large reindex."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

import structlog
from arq.connections import ArqRedis
from protostar_client import keys
from protostar_client.contract import INDEX_DOCUMENTS
from redis.exceptions import RedisError

from tasks.engine.queue import enqueue_own
from tasks.engine.scripts import REDIS_TIMEOUT_S

logger = structlog.stdlib.get_logger("protostar.index")


async def call_helpers(redis: ArqRedis, owner: str, run_id: int, units: int) -> None:
    """Enqueue a helper's job for each live worker but `owner`, and for no more of them than there are units to spare.

    Without Redis the run goes on alone.
    """
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            owners = await cast(Awaitable[set[bytes]], redis.smembers(keys.OWNERS))
            others = len(owners - {owner.encode()})
            for number in range(min(others, units - 1)):
                await enqueue_own(redis, f"index:{run_id}:{number}", INDEX_DOCUMENTS, {"run": run_id})
            await redis.publish(keys.WAKE, "index")
    except (RedisError, OSError) as error:  # a TimeoutError is an OSError
        logger.warning("helpers_call_failed", run=run_id, error=error)
        return
    logger.info("index_shared", run=run_id, units=units, workers=1 + others)

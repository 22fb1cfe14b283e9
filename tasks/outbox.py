"""Follow-up jobs: committed with what they follow, enqueued by a relay, so that none is lost or doubled."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from arq.connections import ArqRedis
from protostar_client import keys
from protostar_client.contract import ROLL_UP_SESSION, SUMMARIZE_MESSAGE
from redis.exceptions import RedisError
from tortoise.backends.base.client import BaseDBAsyncClient

from models import OutboxJob
from models.transaction import is_transient, transact
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.waiting import wait_for_event

logger = structlog.stdlib.get_logger("protostar.outbox")

LOOK_EVERY_S: Final = 2.0
LONGEST_PAUSE_S: Final = 10.0  # above the patience with Redis; a frozen relay keeps its rows from the others
BATCH: Final = 100


async def add_summary_job(message_id: int, connection: BaseDBAsyncClient) -> None:
    """Put the summary of a message into the outbox, in the transaction that stores the message."""
    await OutboxJob.get_or_create(
        job_id=f"summary:{message_id}",
        defaults={"function": SUMMARIZE_MESSAGE, "arguments": {"message_id": message_id}},
        using_db=connection,
    )


async def add_roll_up_job(session_id: int, until: int | None, connection: BaseDBAsyncClient) -> None:
    """Put the roll-up of a session into the outbox that goes on after its message `until`: one at a time."""
    await OutboxJob.get_or_create(
        job_id=f"rollup:{session_id}:{until or 0}",
        defaults={"function": ROLL_UP_SESSION, "arguments": {"session": session_id, "until": until or 0}},
        using_db=connection,
    )


class OutboxRelay:
    """Moves jobs from the outbox to the queue; every worker runs one.

    A row is deleted only after its job is queued: when a worker dies in between, the job is enqueued once
    more under the same id, which ARQ refuses while it knows the first, and which the job recognises later.
    """

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="outbox-relay")

    def wake(self) -> None:
        """Say that a row was committed."""
        self._wake.set()

    async def close(self) -> None:
        """Stop; what is left in the outbox is another worker's."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                while await transact(self._relay, retry_for_s=0, longest_pause_s=LONGEST_PAUSE_S) == BATCH:
                    pass
            except Exception as error:
                expected = isinstance(error, RedisError) or is_transient(error)
                logger.warning("outbox_failed", error=error, exc_info=None if expected else error)
                await asyncio.sleep(LOOK_EVERY_S)
            await wait_for_event(self._wake, LOOK_EVERY_S)

    async def _relay(self, connection: BaseDBAsyncClient) -> int:
        """Enqueue the oldest rows that no other relay has in hand; returns how many."""
        rows: list[OutboxJob] = (
            await OutboxJob.all().using_db(connection).select_for_update(skip_locked=True).order_by("id").limit(BATCH)
        )
        for row in rows:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await self._enqueue(row)
        if rows:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await self._redis.publish(keys.WAKE, "outbox")
            await OutboxJob.filter(id__in=[row.id for row in rows]).using_db(connection).delete()
        return len(rows)

    async def _enqueue(self, row: OutboxJob) -> None:
        arguments: dict[str, Any] = dict(row.arguments)
        job = await self._redis.enqueue_job(row.function, _job_id=row.job_id, **arguments)
        # ARQ returns None for a job that it knows, and also where the connection broke off: then it is nowhere.
        if job is None and not await self._redis.exists(keys.job(row.job_id), keys.result(row.job_id)):
            raise ConnectionError(f"{row.job_id} was not enqueued")

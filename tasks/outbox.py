"""Follow-up jobs: committed with what they follow, enqueued by a relay, so that none is lost or doubled."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from arq.connections import ArqRedis
from protostar_client import keys
from protostar_client.contract import ROLL_UP_SESSION, SUMMARIZE_MESSAGE
from tortoise.backends.base.client import BaseDBAsyncClient

from models import OutboxJob
from models.transaction import is_transient, transact
from tasks.engine.queue import enqueue_own
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.waiting import keep_running, wait_for_event

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

    A row is deleted only after its job is queued: when a worker dies in between, the relay finds the job in the queue
    or its result, or enqueues it once more, which the job itself recognises.
    """

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._wake = asyncio.Event()
        kept = keep_running(
            self._run, logger=logger, event="outbox_failed", again_s=LOOK_EVERY_S, is_expected=is_transient
        )
        self._task = asyncio.create_task(kept, name="outbox-relay")

    def wake(self) -> None:
        """Look at once: a row was committed."""
        self._wake.set()

    async def close(self) -> None:
        """Stop; what is left in the outbox is another worker's."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Empty the outbox, then wait for the next row."""
        self._wake.clear()
        while await transact(self._relay, retry_for_s=0, longest_pause_s=LONGEST_PAUSE_S) == BATCH:
            pass
        await wait_for_event(self._wake, LOOK_EVERY_S)

    async def _relay(self, connection: BaseDBAsyncClient) -> int:
        """Enqueue the oldest rows that no other relay has in hand; returns how many."""
        rows: list[OutboxJob] = (
            await OutboxJob.all().using_db(connection).select_for_update(skip_locked=True).order_by("id").limit(BATCH)
        )
        for row in rows:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await enqueue_own(self._redis, row.job_id, row.function, row.arguments)
        if rows:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await self._redis.publish(keys.WAKE, "outbox")
            await OutboxJob.filter(id__in=[row.id for row in rows]).using_db(connection).delete()
        return len(rows)

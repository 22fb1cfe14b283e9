"""Taking over the jobs of workers that are gone."""

from __future__ import annotations

import asyncio
import math
import random
import re
from typing import Final, Literal

import structlog
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.heartbeat import CONNECTION_NAME_PREFIX
from tasks.engine.hooks import Observer
from tasks.engine.queue import Queue
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.waiting import AWAY

logger = structlog.stdlib.get_logger("protostar.reaper")

TICK_S: Final = 0.4
GONE_AFTER_S: Final = 1.2  # two beats and the time to reconnect: reap.lua checks it again
ELECTED_MS: Final = 1000
TRUST_AFTER_S: Final = 3.0
LIST_EVERY_S: Final = 0.8  # the list is long where there are many clients
LIST_AGAIN_S: Final = 30.0
SWEEP_EVERY: Final = 20
_CONNECTION_NAME: Final = re.compile(rf"\bname={re.escape(CONNECTION_NAME_PREFIX)}(\S+)".encode())


class Reaper:
    """Reaps workers whose lease has expired, and workers without a beat for `GONE_AFTER_S` and without a connection.

    It begins after `trust_after_s` of unbroken connection: when Redis itself was away, all workers look gone until they
    have had time to come back.
    """

    def __init__(self, redis: Redis, queue: Queue, observer: Observer, *, trust_after_s: float = TRUST_AFTER_S) -> None:
        self._redis = redis
        self._queue = queue
        self._observer = observer
        self._now = asyncio.get_running_loop().time
        self._trust_after_s = trust_after_s
        self._list_from_s = 0.0
        self._cursors = (b"0", b"0")

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            RedisError, OSError: Redis can't be reached.
        """
        trusted_from_s = self._now() + self._trust_after_s
        ticks, wait_s = 0, TICK_S
        while True:
            await asyncio.sleep(min(TICK_S, wait_s) * random.uniform(0.8, 1.2))
            ticks += 1
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                if self._now() < trusted_from_s:
                    await self._redis.ping()
                elif await self._is_elected():
                    wait_s = await self._reap()
                    if ticks % SWEEP_EVERY == 0:
                        await self._sweep()

    async def _is_elected(self) -> bool:
        """Whether this worker watches; another one takes its place a second after it stops."""
        owner = self._queue.owner
        if await self._redis.set(keys.REAPER, owner, nx=True, px=ELECTED_MS):
            return True
        if await self._redis.get(keys.REAPER) != owner.encode():
            return False
        await self._redis.pexpire(keys.REAPER, ELECTED_MS)
        return True

    async def _reap(self) -> float:
        """Reap who is gone; returns the seconds after which the next one may be."""
        silent_s = await self._queue.silent_workers()
        silent_s.pop(self._queue.owner, None)
        expired = {owner for owner, seconds in silent_s.items() if math.isinf(seconds)}
        late = {owner for owner, seconds in silent_s.items() if GONE_AFTER_S <= seconds < math.inf}
        for owner in expired:
            await self._take_over(owner, "expired")
        if late and (connected := await self._connected()):
            for owner in late - connected:
                await self._take_over(owner, "gone")
        return min((GONE_AFTER_S - seconds for seconds in silent_s.values() if seconds < GONE_AFTER_S), default=TICK_S)

    async def _take_over(self, owner: str, when: Literal["expired", "gone"]) -> None:
        taken = await self._queue.reap(owner, when)
        if taken:
            self._observer.jobs_taken_over(taken)
            logger.warning("jobs_taken_over", owner=owner, jobs=taken, gone=when == "gone")

    async def _sweep(self) -> None:
        queue_cursor, holders_cursor, repaired = await self._queue.sweep(*self._cursors)
        self._cursors = (queue_cursor, holders_cursor)
        if repaired:
            logger.warning("queue_repaired", entries=repaired)

    async def _connected(self) -> set[str]:
        """The workers whose heartbeat connection stands; none where Redis does not show even this worker's."""
        if self._now() < self._list_from_s:
            return set()
        try:
            listing: object = await self._redis.execute_command(  # type: ignore[no-untyped-call]
                "CLIENT", "LIST", "TYPE", "normal"
            )
        except AWAY as error:
            logger.info("client_list_refused", error=error, hint="leases decide alone")
            self._list_from_s = self._now() + LIST_AGAIN_S
            return set()
        raw = listing if isinstance(listing, bytes) else str(listing).encode()
        names = {name.decode() for name in _CONNECTION_NAME.findall(raw)}
        self._list_from_s = self._now() + LIST_EVERY_S
        return names if self._queue.owner in names else set()

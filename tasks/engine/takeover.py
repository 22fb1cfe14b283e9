"""Taking over the jobs of workers that are gone."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable
from typing import Final, cast

import structlog
from protostar_client import keys
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from tasks.engine.heartbeat import CONNECTION_NAME_PREFIX
from tasks.engine.hooks import Observer
from tasks.engine.queue import Queue
from tasks.engine.scripts import REDIS_TIMEOUT_S

logger = structlog.stdlib.get_logger("protostar.reaper")

TICK_S: Final = 0.4
GONE_AFTER_S: Final = 1.0
ELECTED_MS: Final = 1000
TRUST_AFTER_S: Final = 3.0
SWEEP_EVERY: Final = 20
_CONNECTION_NAME: Final = re.compile(rf"\bname={re.escape(CONNECTION_NAME_PREFIX)}(\S+)".encode())


class Reaper:
    """Reaps workers whose lease has run out, at once, and those whose connection has been gone for a second.

    What it sees it trusts only after `TRUST_AFTER_S` of unbroken connection: when Redis itself was away, all
    workers look gone until they have had time to come back.
    """

    def __init__(self, redis: Redis, queue: Queue, observer: Observer) -> None:
        self._redis = redis
        self._queue = queue
        self._observer = observer
        self._now = asyncio.get_running_loop().time
        self._absent_since: dict[str, float] = {}
        self._trusted_from = self._now() + TRUST_AFTER_S
        self._sees_connections = True
        self._elected = False
        self._reaper_before = ""
        self._cursors = (b"0", b"0")

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            RedisError, OSError: Redis can't be reached.
        """
        ticks = 0
        while True:
            await asyncio.sleep(self._until_next_tick_s())
            ticks += 1
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                if not self._is_trusted or await self._is_elected():
                    await self._tick(sweep=ticks % SWEEP_EVERY == 0)

    def _until_next_tick_s(self) -> float:
        tick_s = TICK_S * random.uniform(0.8, 1.2)
        gone_in_s = (since + GONE_AFTER_S - self._now() for since in self._absent_since.values())
        return min([tick_s, *(wait_s for wait_s in gone_in_s if wait_s > 0)])

    @property
    def _is_trusted(self) -> bool:
        return self._now() >= self._trusted_from

    async def _is_elected(self) -> bool:
        """One worker at a time watches; another takes its place a second after it stops.

        Who is not trusted yet watches too, but leaves the election to those who may reap at once.
        """
        owner = self._queue.owner
        if self._elected and await self._redis.get(keys.REAPER) == owner.encode():
            await self._redis.pexpire(keys.REAPER, ELECTED_MS)
            return True
        self._elected = bool(await self._redis.set(keys.REAPER, owner, nx=True, px=ELECTED_MS))
        if self._elected:
            # The reaper before us has said nothing for a second: if its connection is gone too, then for as long.
            self._absent_since[self._reaper_before] = self._now() - GONE_AFTER_S
            self._reaper_before = ""
        else:
            self._absent_since.clear()
            self._reaper_before = (await self._redis.get(keys.REAPER) or b"").decode()
        return self._elected

    async def _tick(self, *, sweep: bool) -> None:
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(keys.OWNERS))
        owners = {owner.decode() for owner in members}
        owners.discard(self._queue.owner)
        connected = await self._connected()
        now = self._now()
        for owner in owners:
            if connected is not None and owner not in connected:
                self._absent_since.setdefault(owner, now)
            else:
                self._absent_since.pop(owner, None)
        self._absent_since = {owner: at for owner, at in self._absent_since.items() if owner in owners}
        if not self._is_trusted or not self._elected:
            return
        for owner in owners:
            gone = now - self._absent_since.get(owner, now) >= GONE_AFTER_S
            taken = await self._queue.reap(owner, "gone" if gone else "expired")
            if taken:
                self._observer.jobs_taken_over(taken)
                logger.warning("jobs_taken_over", owner=owner, jobs=taken, gone=gone)
        if sweep:
            queue_cursor, holders_cursor, mended = await self._queue.sweep(*self._cursors)
            self._cursors = (queue_cursor, holders_cursor)
            if mended:
                logger.warning("queue_mended", entries=mended)

    async def _connected(self) -> set[str] | None:
        """Names of the workers whose heartbeat connection stands; None where Redis does not tell."""
        if not self._sees_connections:
            return None
        try:
            listing: object = await self._redis.execute_command(  # type: ignore[no-untyped-call]
                "CLIENT", "LIST", "TYPE", "normal"
            )
        except NoPermissionError:
            logger.info("client_list_refused", hint="leases decide alone")
            self._sees_connections = False
            return None
        raw = listing if isinstance(listing, bytes) else str(listing).encode()
        return {name.decode() for name in _CONNECTION_NAME.findall(raw)}

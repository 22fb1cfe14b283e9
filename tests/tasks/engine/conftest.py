"""The engine's parts against a real Redis, without a worker process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine import scripts as engine_scripts
from tasks.engine.claim import Claim
from tasks.engine.queue import Claimed, Queue, ReapWhen
from tasks.engine.scripts import Script

LEASE_MS = 15_000
CHAT = "generate_chat"
CLASSES = {CHAT: "chat", "summarize_message": "summary"}
_HEARTBEAT = Script.beside(engine_scripts.__file__, "heartbeat")


class Places:
    """A queue, its workers' ends, and the jobs that a producer enqueues."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def queue(self, owner: str = "w1") -> Queue:
        """A worker's end of the queue."""
        ttls = {"chat": 600_000, "summary": 600_000, keys.DEFAULT_CLASS: 600_000}
        return Queue(self.redis, owner=owner, classes=CLASSES, turn_function=CHAT, lease_ttl_ms=ttls)

    async def now_ms(self) -> int:
        seconds, microseconds = await self.redis.time()
        return int(seconds * 1000 + microseconds // 1000)

    async def enqueue(
        self,
        job_id: str,
        *,
        session: str | None = None,
        function: str = CHAT,
        delay_ms: int = 0,
        **arguments: Any,
    ) -> None:
        """Enqueue a job as a stock producer does, as a turn of a session of its own where none is named."""
        turn = {"user_uuid": str(UUID(int=1)), "session_id": session or job_id} if function == CHAT else {}
        await self.put(job_id, {"t": None, "f": function, "a": [], "k": {**turn, **arguments}, "et": 1}, delay_ms)

    async def put(self, job_id: str, payload: Any, delay_ms: int = 0) -> None:
        """Enqueue a payload."""
        await self.redis.set(keys.job(job_id), json.dumps(payload), px=86_400_000)
        await self.redis.zadd(keys.QUEUE, {job_id: await self.now_ms() + delay_ms})

    async def claim(self, owner: str = "w1", *, chat: int = 10, summary: int = 0) -> list[Claim]:
        """Claim as a worker does."""
        return (await self.look(owner, chat=chat, summary=summary)).claims

    async def look(self, owner: str = "w1", *, chat: int = 10, summary: int = 0) -> Claimed:
        return await self.queue(owner).claim({"chat": chat, "summary": summary})

    async def ids(self, owner: str = "w1", **free: int) -> list[str]:
        """The ids of what a worker claims."""
        return sorted(claim.job_id for claim in await self.claim(owner, **free))

    async def record(self, job_id: str) -> dict[str, str]:
        """What Redis holds about an admitted job."""
        fields: dict[bytes, bytes] = await self.redis.hgetall(keys.RECORD_PREFIX + job_id)  # type: ignore[misc]
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def beat(self, owner: str = "w1") -> set[bytes]:
        """A heartbeat; returns the leases that the worker has."""
        return set(await _HEARTBEAT.run(self.redis, owner, LEASE_MS, "health", "", "{}"))

    async def die(self, owner: str = "w1", when: ReapWhen = "gone") -> int:
        """Reap a worker, from another one."""
        return await self.queue("reaper").reap(owner, when)

    async def ran_for(self, job_id: str, ms: int) -> None:
        """Have a running job begin so many ms ago."""
        started = str(await self.now_ms() - ms)
        await self.redis.hset(keys.RECORD_PREFIX + job_id, "started", started)  # type: ignore[misc]


@pytest.fixture
async def places(redis_url: str) -> AsyncIterator[Places]:
    """An empty queue."""
    redis = Redis.from_url(redis_url)
    yield Places(redis)
    await redis.aclose()

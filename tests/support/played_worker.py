"""Plays the worker's side of the protocol against a real Redis, for tests of the client."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from arq.jobs import serialize_result
from protostar_client import (
    ChatClient,
    JobHandle,
    keys,
)
from protostar_client.codec import dump_json, load_json
from redis.asyncio import Redis

USER = UUID("6f1c2f6e-5a0f-4b7e-9d1c-0d4f9a1b2c3d")
ANSWER = {
    "message_id": 7,
    "session_id": "s",
    "content": "안녕하세요",
    "finish_reason": "stop",
    "model": "m",
    "usage": {"input_tokens": 3, "output_tokens": 2, "cost": None, "estimated": False},
    "sources": [],
    "attempt": 1,
}


class PlayedWorker:
    """Writes what a worker writes."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def say(self, job_id: str, event_id: str, kind: str, **fields: Any) -> None:
        attempt, seq = map(int, event_id.split("-"))
        data = {"v": 1, "type": kind, "job_id": job_id, "attempt": attempt, "seq": seq, **fields}
        await self.redis.xadd(keys.events(job_id), {"data": json.dumps(data)}, id=event_id)

    async def finish(self, job_id: str, result: Any, *, success: bool = True) -> None:
        job = load_json(await self.redis.get(keys.job(job_id)))
        stored = serialize_result(
            job["f"],
            (),
            job["k"],
            1,
            job["et"],
            success,
            result,
            1,
            2,
            "ref",
            keys.QUEUE,
            job_id,
            serializer=dump_json,
        )
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.result(job_id), stored or b"")
            pipe.delete(keys.job(job_id))
            pipe.zrem(keys.QUEUE, job_id)
            await pipe.execute()


async def ask(client: ChatClient, content: str = "질문", **arguments: Any) -> JobHandle:
    defaults: dict[str, Any] = {"user_uuid": USER, "session_id": "s", "content": content}
    return await client.enqueue(**(defaults | arguments))


async def ids(handle: JobHandle, last_id: str | None = None) -> list[str]:
    return [event.id async for event in handle.events(last_id)]


async def blocked(redis: Redis) -> list[str]:
    """The names of the connections that wait in a blocking read."""
    return [info["name"] for info in await redis.client_list() if "b" in info["flags"]]

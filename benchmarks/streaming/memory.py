"""How much of Redis an answer's events take."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any, cast
from uuid import uuid4

from protostar_client import ChatClient, keys

from benchmarks.streaming.stage import Stage, question

TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one answer of 1,000 tokens, in the mean: bytes of Redis, entries, and bytes of the text itself."""

    redis_bytes: float
    entries: float
    text_bytes: float


async def measure(stage: Stage, *, rate: int, answers: int) -> Kept:
    """Read so many answers at once to their ends, then ask Redis."""
    async with ChatClient.connect(stage.redis_url) as client:
        asked = question(rate=rate, tokens=TOKENS, text="words")
        handles = [await client.enqueue(session_id=uuid4().hex, **asked) for _ in range(answers)]
        texts = [await handle.text() for handle in handles]
    streams = [keys.events(handle.job_id) for handle in handles]
    server: Any = stage.redis
    return Kept(
        redis_bytes=mean(cast(int, server.memory_usage(stream, samples=0)) for stream in streams),
        entries=mean(cast(int, server.xlen(stream)) for stream in streams),
        text_bytes=mean(len(text.encode()) for text in texts),
    )

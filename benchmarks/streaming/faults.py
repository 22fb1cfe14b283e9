"""What readers hold in the end of answers in whose middle Redis fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import Final
from uuid import uuid4

from protostar_client import ChatClient, ConnectionLost, JobHandle, ProtostarError, ReaderTooSlow

from benchmarks.streaming.model import spoken
from benchmarks.streaming.stage import Stage, question
from stack.processes import wait_until

ANSWERS: Final = 10
TOKENS: Final = 200
RATE: Final = 50
AWAY_S: Final = 3.0
PATIENCE_S: Final = 60.0
_BEFORE: Final = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """One way for Redis to fail, and how often its file is synced."""

    name: str
    happen: Callable[[Stage], Awaitable[None]]
    appendfsync: str = "everysec"


@dataclass(frozen=True, slots=True)
class Survived:
    """Of `ANSWERS` answers: how many readers hold the whole one, the mean share of its characters that they hold,
    how many PostgreSQL holds whole; readings by how they ended; the longest that a reader heard nothing.
    """

    whole: int
    held_percent: float
    stored: int
    endings: Counter[str]
    longest_silence_s: float


@dataclass(slots=True)
class _Reader:
    """Reads an answer to its end, and goes on from its last id whenever its connection is lost."""

    handle: JobHandle
    texts: list[str] = field(default_factory=list)
    last_id: str | None = None
    steps: list[str] = field(default_factory=list)
    moments_s: list[float] = field(default_factory=list)

    async def read(self) -> None:
        while True:
            try:
                await self._read_on()
                return
            except (ConnectionLost, ReaderTooSlow):
                await asyncio.sleep(0.2)
            except ProtostarError as error:
                self.steps.append(type(error).__name__)
                return

    async def _read_on(self) -> None:
        async with aclosing(self.handle.events(self.last_id)) as events:
            async for event in events:
                self.moments_s.append(time.monotonic())
                self.last_id = event.id
                if event.type in ("restart", "gap"):
                    self.steps.append(event.type)
                    self.texts.clear()
                if event.text:
                    self.texts.append(event.text)
                if event.is_ending:
                    self.steps.append(event.type if event.type != "error" else f"error {event.code}")

    @property
    def silence_s(self) -> float:
        return max((later - earlier for earlier, later in pairwise(self.moments_s)), default=0.0)


async def measure(stage: Stage, fault: Fault) -> Survived:
    """Ask, let `fault` happen once every answer is well under way, and read to the ends."""
    stage.redis.config_set("appendfsync", fault.appendfsync)
    async with ChatClient.connect(stage.redis_url) as client:
        asked = question(rate=RATE, tokens=TOKENS, text="words")
        handles = [await client.enqueue(session_id=uuid4().hex, **asked) for _ in range(ANSWERS)]
        readers = [_Reader(handle) for handle in handles]
        readings = [asyncio.create_task(reader.read()) for reader in readers]
        await asyncio.to_thread(wait_until, lambda: _all_speak(readers), timeout_s=PATIENCE_S, what="all speak")
        await fault.happen(stage)
        _, unfinished = await asyncio.wait(readings, timeout=PATIENCE_S)
        for reading in unfinished:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)
    expected, stored = spoken(TOKENS), await stage.stored()
    held = ["".join(reader.texts) for reader in readers]
    return Survived(
        whole=sum(text == expected for text in held),
        held_percent=100 * mean(_common(text, expected) for text in held) / len(expected),
        stored=sum(stored.get(handle.job_id) == expected for handle in handles),
        endings=Counter(", ".join(reader.steps) or "none" for reader in readers),
        longest_silence_s=max(reader.silence_s for reader in readers),
    )


def _all_speak(readers: list[_Reader]) -> bool:
    return all(len(reader.texts) >= _BEFORE for reader in readers)


def _common(text: str, expected: str) -> int:
    """How many characters of `expected` a reader holds: from the first to the first that is wrong."""
    same = (index for index, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b)
    return next(same, min(len(text), len(expected)))


async def _restart(stage: Stage) -> None:
    stage.server.restart()


async def _kill(stage: Stage) -> None:
    stage.server.kill()
    stage.server.start()


async def _freeze(stage: Stage) -> None:
    stage.server.freeze()
    await asyncio.sleep(AWAY_S)
    stage.server.thaw()


async def _cut(stage: Stage) -> None:
    stage.redis.client_kill_filter(_type="normal", skipme=True)


async def _fill(stage: Stage) -> None:
    stage.redis.config_set("maxmemory", 1)
    await asyncio.sleep(AWAY_S)
    stage.redis.config_set("maxmemory", 0)


async def _empty(stage: Stage) -> None:
    stage.redis.flushall()


FAULTS: Final = (
    Fault("restarted, AOF everysec", _restart),
    Fault("kill -9, AOF everysec", _kill),
    Fault("kill -9, AOF always", _kill, appendfsync="always"),
    Fault(f"frozen for {AWAY_S:g} s", _freeze),
    Fault("every connection cut (CLIENT KILL)", _cut),
    Fault(f"full for {AWAY_S:g} s (maxmemory, noeviction)", _fill),
    Fault("FLUSHALL", _empty),
)

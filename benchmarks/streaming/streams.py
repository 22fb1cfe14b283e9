"""Many answers at once through one process: its CPU, and the delay that it adds to a token."""

from __future__ import annotations

import asyncio
import json
import math
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Final
from uuid import uuid4

import redis.asyncio
from protostar_client import ChatClient, JobHandle

from benchmarks.streaming.older_loop import CHANNEL_PREFIX, QUEUE
from benchmarks.streaming.stage import Stage, cpu_s, machine_cpu_s, question
from stack.processes import Process, wait_until

WARM_UP_TOKENS: Final = 25
PATIENCE_S: Final = 60.0
_PROBE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """Answers at once, tokens a second of each, and for how many seconds it is watched."""

    answers: int
    rate: int
    seconds: float

    @property
    def question(self) -> dict[str, Any]:
        """A question whose answer outlasts the start of all of them, and the watch."""
        return question(rate=self.rate, tokens=int(self.rate * (self.seconds + 6 + self.answers / 40)))


@dataclass(frozen=True, slots=True)
class Measured:
    """CPU as shares of a core; milliseconds from the model server's write to the reader; tokens a second as a share
    of what was to be spoken. `early_p50_ms` and `late_p50_ms` are of the first and the last third of the watch,
    `delayed_fsyncs` is how often a slow disk has held Redis up, as Redis says; `redis_still_ms` and
    `readers_still_ms` are the longest that Redis and the readers' process stood still: a stall without one is ours.
    """

    cpu_percent: float
    cpu_us_a_token: float
    machine_percent: float
    p50_ms: float
    p99_ms: float
    early_p50_ms: float
    late_p50_ms: float
    sent_percent: float
    arrived_percent: float
    delayed_fsyncs: float
    redis_still_ms: float
    readers_still_ms: float


@dataclass(slots=True)
class Heard:
    """When tokens were sent and when they arrived, in nanoseconds of the monotonic clock.

    In arrays, because half a million tuples would have Python's garbage collector stop the readers.
    """

    sent: array[int] = field(default_factory=lambda: array("q"))
    arrived: array[int] = field(default_factory=lambda: array("q"))
    counts: dict[str, int] = field(default_factory=dict)

    def hear(self, answer: str, text: str) -> None:
        """Note the tokens of an event."""
        now = time.monotonic_ns()
        sent = array("q", map(int, text.split()))
        self.sent += sent
        self.arrived.extend([now] * len(sent))
        self.counts[answer] = self.counts.get(answer, 0) + len(sent)

    def all_speak(self, answers: int) -> Callable[[], bool]:
        """A condition: so many answers are well under way."""
        return lambda: sum(count >= WARM_UP_TOKENS for count in list(self.counts.values())) == answers


@asynccontextmanager
async def protostar(stage: Stage, load: Load, heard: Heard) -> AsyncIterator[None]:
    """Ask our worker, and read by the client."""
    async with ChatClient.connect(stage.redis_url) as client:

        async def read(handle: JobHandle) -> None:
            async for event in handle.events():
                assert event.type != "error", event
                if event.text:
                    heard.hear(handle.job_id, event.text)

        handles = [await client.enqueue(session_id=uuid4().hex, **load.question) for _ in range(load.answers)]
        async with _cancelled_at_end([read(handle) for handle in handles]):
            yield


@asynccontextmanager
async def older(stage: Stage, load: Load, heard: Heard) -> AsyncIterator[None]:
    """Ask the loop that came before, and read as its readers did: from the channels."""
    async with redis.asyncio.Redis.from_url(stage.redis_url) as server, server.pubsub() as channels:
        await channels.psubscribe(f"{CHANNEL_PREFIX}*")

        async def read() -> None:
            async for message in channels.listen():
                if message["type"] == "pmessage":
                    said = json.loads(message["data"])
                    if said["type"] == "message":
                        heard.hear(said["id"], said["content"])

        async with _cancelled_at_end([read()]):
            for _ in range(load.answers):
                element = {"id": uuid4().hex, "content": load.question["content"]}
                await server.execute_command("LPUSH", QUEUE, json.dumps(element))
            yield


@asynccontextmanager
async def _cancelled_at_end(readings: list[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(reading) for reading in readings]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def measure(stage: Stage, worker: Process, load: Load, asking: Any) -> Measured:
    """Watch `worker` once every answer is under way."""
    heard = Heard()
    async with asking(stage, load, heard):
        await asyncio.to_thread(wait_until, heard.all_speak(load.answers), timeout_s=PATIENCE_S, what="all speak")
        still = asyncio.create_task(_longest_stills_ms(stage, load.seconds))
        fsyncs_before = _delayed_fsyncs(stage)
        begin_s, cpu_before_s, machine_before_s = time.monotonic(), cpu_s(worker), machine_cpu_s()
        await asyncio.sleep(load.seconds)
        end_s, cpu_after_s, machine_after_s = time.monotonic(), cpu_s(worker), machine_cpu_s()
        watched_s = end_s - begin_s
        redis_still_ms, readers_still_ms = await still
        # What was sent at the very end is still on its way.
        await asyncio.sleep(1)
    begin, end = int(begin_s * 1e9), int(end_s * 1e9)
    moments = zip(heard.sent, heard.arrived, strict=True)
    sent = sorted((sent, arrived - sent) for sent, arrived in moments if begin <= sent < end)
    arrived = sum(begin <= arrived < end for arrived in heard.arrived)
    delays_ms = [delay / 1e6 for _, delay in sent]
    third, offered = len(delays_ms) // 3, load.answers * load.rate * watched_s
    return Measured(
        cpu_percent=100 * (cpu_after_s - cpu_before_s) / watched_s,
        cpu_us_a_token=1e6 * (cpu_after_s - cpu_before_s) / max(1, arrived),
        machine_percent=100 * (machine_after_s - machine_before_s) / watched_s,
        p50_ms=_percentile(delays_ms, 50),
        p99_ms=_percentile(delays_ms, 99),
        early_p50_ms=_percentile(delays_ms[:third], 50),
        late_p50_ms=_percentile(delays_ms[-third:], 50),
        sent_percent=100 * len(sent) / offered,
        arrived_percent=100 * arrived / offered,
        delayed_fsyncs=_delayed_fsyncs(stage) - fsyncs_before,
        redis_still_ms=redis_still_ms,
        readers_still_ms=readers_still_ms,
    )


async def _longest_stills_ms(stage: Stage, seconds: float) -> tuple[float, float]:
    """The longest that Redis left a PING without an answer, and that this process did not run, in milliseconds."""
    end_s, redis_s, own_s = time.monotonic() + seconds, 0.0, 0.0
    async with redis.asyncio.Redis.from_url(stage.redis_url) as server:
        while (before_s := time.monotonic()) < end_s:
            await asyncio.sleep(_PROBE_S)
            asked_s = time.monotonic()
            await server.execute_command("PING")
            redis_s = max(redis_s, time.monotonic() - asked_s)
            own_s = max(own_s, asked_s - before_s - _PROBE_S)
    return 1000 * redis_s, 1000 * own_s


def _percentile(values: list[float], percent: int) -> float:
    # What was sent and did not arrive has no delay yet: on a full machine that may be nearly everything.
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else math.inf


def _delayed_fsyncs(stage: Stage) -> int:
    persistence: Any = stage.redis.info("persistence")
    return int(persistence["aof_delayed_fsync"])

"""A thousand readers in one process: added delay and CPU; alone, and beside one that stands still.

`python -m benchmarks.streaming.readers` needs no server: it starts a Redis of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final
from uuid import UUID

import uvloop
from protostar_client import ChatClient, JobHandle, ReaderTooSlow

from stack.places import server_account, temporary_base_folder
from stack.redis import Redis

ROOT: Final = Path(__file__).resolve().parents[2]
USER: Final = UUID(int=1)
WARM_UP_TOKENS: Final = 25


@dataclass(frozen=True, slots=True)
class Load:
    """How much is read: answers at once, readers of them all together, tokens a second of each, for how long."""

    answers: int
    readers: int
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds from append to reader; CPU of the readers' process as a share of a core."""

    p50_ms: float
    p99_ms: float
    cpu_percent: float
    events: int
    let_go: int


async def measure(redis_url: str, load: Load, *, stalled: int) -> Measured:
    """Read `load`, while `stalled` further readers take one event and then none."""
    async with ChatClient.connect(redis_url, max_queue=1_000_000) as client:
        handles = [await client.enqueue(user_uuid=USER, session_id="s", content="?") for _ in range(load.answers)]
        delays_ms: list[float] = []
        chosen = itertools.islice(itertools.cycle(handles), load.readers)
        readings = [asyncio.create_task(_read(handle, delays_ms)) for handle in chosen]
        done = asyncio.Event()
        stalls = [asyncio.create_task(_stall(handles[0], done)) for _ in range(stalled)]
        await asyncio.sleep(1)
        speaker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.streaming.speak", redis_url, str(load.rate), str(load.seconds)),
            stdin=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        wall_s, cpu_s = time.monotonic(), time.process_time()
        await speaker.communicate("\n".join(handle.job_id for handle in handles).encode())
        await asyncio.gather(*readings)
        cpu_percent = 100 * (time.process_time() - cpu_s) / (time.monotonic() - wall_s)
        done.set()
        let_go = sum(await asyncio.gather(*stalls))
    cuts = quantiles(delays_ms, n=100)
    return Measured(round(cuts[49], 1), round(cuts[98], 1), round(cpu_percent, 1), len(delays_ms), let_go)


async def _read(handle: JobHandle, delays_ms: list[float]) -> None:
    expected = 1
    async for event in handle.events():
        assert event.seq == expected, f"event {event.id} where {expected} comes next"
        expected += 1
        if event.text and event.seq > WARM_UP_TOKENS:
            delays_ms.append((time.monotonic_ns() - int(event.text)) / 1e6)


async def _stall(handle: JobHandle, done: asyncio.Event) -> bool:
    """Read one event, then stand still; whether the reader was let go."""
    events = handle.events()
    await anext(events)
    await done.wait()
    try:
        async for _ in events:
            pass
    except ReaderTooSlow:
        return True
    return False


@contextmanager
def own_redis() -> Iterator[str]:
    """An empty Redis."""
    account = server_account()
    with temporary_base_folder(account) as base, Redis(base, account) as server:
        yield server.url


def main() -> None:
    """Measure, and print one JSON object a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    load = Load(arguments.answers, arguments.readers, arguments.rate, arguments.seconds)
    with own_redis() as redis_url:
        for _ in range(arguments.rounds):
            for stalled in (0, 1):
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    measured = runner.run(measure(redis_url, load, stalled=stalled))
                sys.stdout.write(json.dumps({"stalled": stalled, **asdict(load), **asdict(measured)}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()

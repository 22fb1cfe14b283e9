"""The heartbeat: a thread that keeps leases, also while the event loop stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from protostar_client import keys

from stack.processes import wait_until
from tasks.engine.heartbeat import BEAT_S, CONNECTION_NAME_PREFIX, Heartbeat

OWNER = "w1"


class Held:
    """What a worker says it runs, and what it is told it has lost."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.lost: set[bytes] = set()

    def lose(self, ids: set[bytes]) -> None:
        self.lost |= ids


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def start(redis_url: str, held: Held) -> Iterator[Callable[..., Heartbeat]]:
    started: list[Heartbeat] = []

    def start(**options: Any) -> Heartbeat:
        defaults: dict[str, Any] = {
            "owner": OWNER,
            "lease_ms": 15_000,
            "health_key": "health",
            "health": lambda: "j_ongoing=1",
            "beat": lambda: '{"up_s":1}',
            "held": lambda: held.ids,
            "on_lost": held.lose,
        }
        heartbeat = Heartbeat(redis_url, **(defaults | options))
        heartbeat.start()
        started.append(heartbeat)
        return heartbeat

    yield start
    for heartbeat in started:
        heartbeat.stop()


def alive(client: redis.Redis) -> bool:
    return bool(client.exists(keys.ALIVE_PREFIX + OWNER))


def test_the_first_beat_is_there_when_start_returns(client: redis.Redis, start: Callable[..., Heartbeat]) -> None:
    start()
    assert client.smembers(keys.OWNERS) == {OWNER.encode()}
    assert 14_000 < client.pttl(keys.ALIVE_PREFIX + OWNER) <= 15_000  # type: ignore[operator]
    assert client.get("health") == b"j_ongoing=1 queued=0"
    assert b'"at_ms":' in (client.get(keys.ALIVE_PREFIX + OWNER) or b"")  # type: ignore[operator]


def test_beats_go_on(client: redis.Redis, start: Callable[..., Heartbeat]) -> None:
    start()
    client.delete(keys.ALIVE_PREFIX + OWNER)
    wait_until(lambda: alive(client), timeout_s=10, what="another beat")


def test_the_connection_carries_the_workers_name(client: redis.Redis, start: Callable[..., Heartbeat]) -> None:
    start()
    names: list[Any] = [each["name"] for each in client.client_list()]  # type: ignore[union-attr]
    assert CONNECTION_NAME_PREFIX + OWNER in names


def test_a_lease_that_redis_does_not_list_is_reported_lost(
    client: redis.Redis, start: Callable[..., Heartbeat], held: Held
) -> None:
    client.sadd(keys.RUNNING_PREFIX + OWNER, "kept")
    held.ids = {b"kept", b"lost"}
    start()
    assert held.lost == {b"lost"}


def test_a_beat_follows_a_lost_connection_before_the_worker_counts_as_gone(
    client: redis.Redis, start: Callable[..., Heartbeat]
) -> None:
    start()
    for _ in range(3):
        client.client_kill_filter(_type="normal", skipme=True)
        client.delete(keys.ALIVE_PREFIX + OWNER)
        killed_at = time.monotonic()
        wait_until(lambda: alive(client), timeout_s=10, what="another beat")
        assert time.monotonic() - killed_at < 2 * BEAT_S + 1.0


def test_a_beat_that_breaks_does_not_end_the_thread(client: redis.Redis, start: Callable[..., Heartbeat]) -> None:
    broken = threading.Event()

    def health() -> str:
        if not broken.is_set():
            return "fine"
        broken.clear()
        raise ValueError("broken")

    start(health=health)
    client.delete(keys.ALIVE_PREFIX + OWNER)
    broken.set()
    wait_until(lambda: alive(client), timeout_s=10, what="another beat")


def test_a_stopped_heartbeat_leaves_no_thread(start: Callable[..., Heartbeat]) -> None:
    start().stop()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}

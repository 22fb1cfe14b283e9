"""Keeping the leases of a worker, from a thread that a busy event loop can't hold up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, cast

import structlog
from protostar_client.redis_connection.pool import sync_pool
from redis import Redis
from redis.exceptions import RedisError

from tasks.engine.scripts import Script

logger = structlog.stdlib.get_logger("protostar.lease")

# A dropped connection must be back before a reaper considers the worker gone (`tasks.engine.takeover.GONE_AFTER_S`).
BEAT_S: Final = 0.5
BEAT_AGAIN_S: Final = 0.1
CONNECTION_NAME_PREFIX: Final = "protostar-worker:"

_HEARTBEAT: Final = Script.beside(__file__, "heartbeat")

OnLost = Callable[[set[bytes]], object]


class Heartbeat:
    """Sends a beat to Redis every `BEAT_S`, and reports to the worker which leases it has lost.

    Args:
        redis_url: where the queue is.
        owner: the worker's name; its connection carries the name, so that a reaper sees it go.
        lease_ms: how long the lease lasts after a beat.
        health_key: ARQ's health key, kept alive by every beat.
        health: the text for it.
        beat: the worker's report about itself, a JSON object (`tasks.monitoring.worker_report`).
        held: returns the ids the worker runs; called before each beat.
        on_lost: called from the thread with the ids that Redis no longer lists.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        owner: str,
        lease_ms: int,
        health_key: str,
        health: Callable[[], str],
        beat: Callable[[], str],
        held: Callable[[], set[bytes]],
        on_lost: OnLost,
    ) -> None:
        pool = sync_pool(
            redis_url,
            client_name=CONNECTION_NAME_PREFIX + owner,
            socket_timeout=max(1.0, lease_ms / 3000),
            socket_connect_timeout=2.0,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._owner = owner
        self._lease_ms = lease_ms
        self._health_key = health_key
        self._health = health
        self._beat_text = beat
        self._held = held
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once, so that no claim comes before the first beat, and go on in a thread.

        Raises:
            RedisError: Redis can't be reached.
        """
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its connection; returns when the thread has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._redis.close()

    def _run(self) -> None:
        next_beat, failed = time.monotonic() + BEAT_S, False
        while not self._stop.wait(max(0.0, next_beat - time.monotonic())):
            next_beat = time.monotonic() + BEAT_S
            try:
                self._beat()
                failed = False
            except (RedisError, OSError) as error:
                logger.warning("heartbeat_failed", error=error)
                if not failed:
                    next_beat = time.monotonic() + BEAT_AGAIN_S
                failed = True
            except Exception:  # without its heart a worker loses every job
                logger.exception("heartbeat_failed")

    def _beat(self) -> None:
        held = self._held()
        texts = (self._owner, str(self._lease_ms), self._health_key, self._health(), self._beat_text())
        reply = self._redis.eval(_HEARTBEAT.text, 0, *texts)
        if lost := held - set(cast(list[bytes], reply)):
            self._on_lost(lost)

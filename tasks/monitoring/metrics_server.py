"""Metrics over HTTP, for Prometheus: what this worker counts, and at each scrape how the queue stands."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.engine.connection import StartupError
from tasks.monitoring.status import Status

logger = structlog.stdlib.get_logger("protostar.metrics")

READ_TIMEOUT_S: Final = 3.0
LOOP_SLACK_S: Final = 1.0  # for a loop that is held up
TRY_AGAIN_S: Final = 1.0

Read = Callable[[], Awaitable[Status]]


class MetricsServer:
    """Serves the metrics of this process on a port, from a thread.

    Where another process has the port, as another worker on this machine or the one that this worker replaces, the
    worker works all the same, says so, and takes the port once it is free.

    Args:
        host: the address to listen at.
        port: the port.
        read: how everything stands.

    Raises:
        StartupError: this process can't listen at that address at all.
    """

    def __init__(self, host: str, port: int, read: Read) -> None:
        self._host, self._port = host, port
        self._collector = StandingCollector(read)
        self._server: WSGIServer | None = None
        REGISTRY.register(self._collector)
        if not self._open():
            logger.error(
                "metrics_port_taken",
                host=host,
                port=port,
                hint="give each worker of a machine a PROTOSTAR_METRICS_PORT of its own; trying again",
            )
        self._task = asyncio.create_task(self._keep_trying(), name="metrics-port")

    async def close(self) -> None:
        """Let go of the port."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        REGISTRY.unregister(self._collector)
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()

    async def _keep_trying(self) -> None:
        while self._server is None:
            await asyncio.sleep(TRY_AGAIN_S)
            self._open()

    def _open(self) -> bool:
        try:
            self._server, _ = start_http_server(self._port, self._host)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                REGISTRY.unregister(self._collector)
                raise StartupError(_what_is_wrong(self._host, self._port, error)) from None
            return False
        logger.info("metrics_served", host=self._host, port=self._port)
        return True


def _what_is_wrong(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return (
        f"PROTOSTAR_METRICS_HOST is {host} and PROTOSTAR_METRICS_PORT {port}; nothing can listen there ({reason}): "
        "name an address of this machine and a port that this user may open"
    )


class StandingCollector(Collector):
    """How everything stands, read when it is asked for. Every worker says the same: take the max over workers.

    A scrape comes in a thread of its own and the stores are read in the worker's loop. Where they can't be read in
    time, `protostar_stores_up` is 0 and the rest is left out.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()

    def describe(self) -> list[Metric]:
        """Nothing: to describe must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        status = self._status()
        is_read = status is not None
        yield _gauge("stores_up", "Whether Redis and PostgreSQL could be read for this scrape.", is_read)
        if status is not None:
            yield from _standing(status)

    def _status(self) -> Status | None:
        reading = asyncio.run_coroutine_threadsafe(self._read_in_time(), self._loop)
        try:
            return reading.result(READ_TIMEOUT_S + LOOP_SLACK_S)
        except Exception as error:  # whatever the stores' clients raise
            reading.cancel()
            logger.warning("standing_unread", error=type(error).__name__)
            return None

    async def _read_in_time(self) -> Status:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await self._read()


def _standing(status: Status) -> Iterator[Metric]:
    queue = status.queue
    ages = {name: part.oldest_s or 0.0 for name, part in queue.classes.items()}
    yield _gauge(
        "queue_age_seconds", "Age of the oldest job that waits for nothing but a worker.", queue.oldest_ready_s
    )
    yield _gauges("class_queue_age_seconds", "The same, by class of jobs, once a worker has seen it.", "class", ages)
    states = {"ready": queue.ready, "waiting": queue.waiting, "running": queue.running, "deferred": queue.deferred}
    yield _gauges("jobs", "Jobs in the queue, by where they are.", "state", states)
    yield _gauge("running_turns", "Answers under way in all workers.", status.running_turns)
    yield _gauge("tokens_per_second", "Pace of all answers that stream, over some seconds.", status.tokens_a_second)
    yield _gauge("workers", "Workers that live.", sum(worker.is_alive for worker in status.workers))
    yield _gauge("dead_letters_kept", "Jobs that were given up and are kept.", queue.dead)
    yield _gauge("older_queue_jobs", "Elements of the older list that no worker has taken over.", queue.older)
    pauses = {model.model: model.paused_s for model in status.models}
    yield _gauges("model_paused_seconds", "For how long yet nobody asks a model; 0 is open.", "model", pauses)
    if status.store is not None:
        outbox, index = status.store.outbox, status.store.index
        yield _gauge("outbox_jobs", "Follow-up jobs that are committed and not yet enqueued.", outbox.depth)
        yield _gauge("outbox_age_seconds", "Age of the oldest of them.", outbox.oldest_s)
        yield _gauge("index_chunks", "Chunks that can be found.", index.chunks)
        if index.indexed_s is not None:
            yield _gauge("index_age_seconds", "Since the last reindex that ended well.", index.indexed_s)


def _gauge(name: str, what: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"protostar_{name}", what, value=value or 0)


def _gauges(name: str, what: str, label: str, values: dict[str, Any]) -> Metric:
    family = GaugeMetricFamily(f"protostar_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

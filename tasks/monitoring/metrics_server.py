"""Serves metrics over HTTP for Prometheus: the counts of this worker, and at each scrape the state of the queue."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.engine.connection import StartupError
from tasks.engine.event_loop import LoopWatch
from tasks.monitoring.status import Status

logger = structlog.stdlib.get_logger("protostar.metrics")

READ_TIMEOUT_S: Final = 3.0
LOOP_SLACK_S: Final = 1.0  # for a loop that is held up

Read = Callable[[], Awaitable[Status]]


class MetricsServer:
    """Serves the metrics of this process on a port, and whether it lives under `/healthz`, from threads.

    Where another process has the port, the worker serves jobs without metrics and logs an error: an answer must not
    depend on who watches.

    Args:
        host: the address to listen at.
        port: the port.
        read: reads the state of queue and database.
        watch: how late the event loop runs.
        unhealthy_after_s: the delay of the event loop from which on `/healthz` answers 503.

    Raises:
        StartupError: this process can't listen at that address at all.
    """

    def __init__(self, host: str, port: int, read: Read, *, watch: LoopWatch, unhealthy_after_s: float) -> None:
        self._collector = StatusCollector(read, watch)
        self._server: WSGIServer | None = None
        try:
            self._server, _ = start_http_server(port, host)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartupError(_what_is_wrong(host, port, error)) from None
            hint = "this worker serves no metrics; give each worker of a machine a PROTOSTAR_METRICS_PORT of its own"
            logger.error("metrics_port_taken", host=host, port=port, hint=hint)
            return
        REGISTRY.register(self._collector)
        self._server.set_app(_with_health(self._server.get_app(), watch, unhealthy_after_s))
        logger.info("metrics_served", host=host, port=port)

    async def close(self) -> None:
        """Release the port."""
        if self._server is not None:
            REGISTRY.unregister(self._collector)
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()


def _with_health(metrics: Any, watch: LoopWatch, unhealthy_after_s: float) -> WSGIApplication:
    """Answer `/healthz` here and everything else with the metrics."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        held_up_s = watch.held_up_s
        is_healthy = held_up_s <= unhealthy_after_s
        text = "ok" if is_healthy else f"the event loop has not run for {held_up_s:.1f} s"
        status = "200 OK" if is_healthy else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
        return [f"{text}\n".encode()]

    return app


def _what_is_wrong(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return (
        f"PROTOSTAR_METRICS_HOST is {host} and PROTOSTAR_METRICS_PORT {port}; nothing can listen there ({reason}): "
        "name an address of this machine and a port that this user may open"
    )


class StatusCollector(Collector):
    """Reads the status at each scrape. Every worker reports the same values: take the maximum over workers.

    A scrape runs in a thread of its own, and Redis and PostgreSQL are read in the worker's event loop. Where they do
    not answer in time, `protostar_stores_up` is 0 and the other values are missing.
    """

    def __init__(self, read: Read, watch: LoopWatch) -> None:
        self._read = read
        self._watch = watch
        self._loop = asyncio.get_running_loop()

    def describe(self) -> list[Metric]:
        """Return nothing, because reading the status here would delay the registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        lag_s = self._watch.lag_s
        yield _gauge("event_loop_lag_seconds", "The longest delay of the event loop within a minute.", lag_s)
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

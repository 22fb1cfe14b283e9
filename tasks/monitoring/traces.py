"""Traces by OpenTelemetry. Without its SDK (the extra `otel`) spans do nothing.

Spans carry ids, names and numbers, never a text: no question, no answer, no error's message.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from protostar_client.tracing import trace_fields

from tasks.engine.claim import Claim

logger = structlog.stdlib.get_logger("protostar.traces")

FLUSH_S: Final = 3.0
"""The time that the last spans have where the collector is slow or gone."""

Attribute = str | int | float | bool

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("protostar")


def start_tracing(owner: str) -> Callable[[], Awaitable[None]]:
    """Send spans where OpenTelemetry's own variables say, as the worker `owner`; returns the function that ends it.

    An instrumented process keeps its own tracer provider. Without the extra there are no spans and a line reports it:
    in a cluster the variables may be set for every process.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        logger.warning("traces_off", missing=error.name, hint="install the extra: pip install 'protostar[otel]'")
        return _nothing
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _nothing
    resource = Resource.create({"service.instance.id": owner})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "protostar"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    async def stop() -> None:
        # The worker does not wait for this thread at its end: a collector that is gone must not hold it up.
        flushing = threading.Thread(target=provider.shutdown, name="traces-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_S)

    return stop


async def _nothing() -> None:
    return


@contextmanager
def span(name: str, **options: Any) -> Iterator[None]:
    """Open a span of the running attempt. An error that passes through it is noted by its type alone.

    Args:
        name: the span's name.
        options: arguments of OpenTelemetry's `start_as_current_span`.
    """
    # The SDK would record the error's message and traceback, which may quote a conversation.
    with _tracer.start_as_current_span(
        name, record_exception=False, set_status_on_exception=False, **options
    ) as started:
        try:
            yield
        except BaseException as error:
            started.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


@contextmanager
def attempt_span(claim: Claim, function: str) -> Iterator[None]:
    """Open the span of an attempt, in the trace of the producer that enqueued the job."""
    attributes: dict[str, Attribute] = {
        "messaging.system": "arq",
        "messaging.message.id": claim.job_id,
        "protostar.function": function,
        "protostar.attempt": claim.attempt,
    }
    context = _PROPAGATOR.extract(_carried_by(claim.payload))
    with span("attempt", attributes=attributes, context=context, kind=SpanKind.CONSUMER):
        yield


@contextmanager
def request_span(model: str) -> Iterator[None]:
    """Open the span of a request to a model."""
    with span("provider request", attributes={"gen_ai.request.model": model}, kind=SpanKind.CLIENT):
        yield


def note(*, failed: bool, **attributes: Attribute) -> None:
    """Add to the current span."""
    current = trace.get_current_span()
    current.set_attributes(attributes)
    if failed:
        current.set_status(StatusCode.ERROR)


def trace_headers() -> dict[str, str]:
    """The headers with which an HTTP request joins the server's spans to the current one."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def _carried_by(payload: bytes | None) -> dict[str, str]:
    try:
        record = json.loads(payload or b"")
    except ValueError:
        return {}
    return trace_fields(record) if isinstance(record, dict) else {}

"""Traces by OpenTelemetry, the optional dependency `otel`. Until `start_tracing` none of it is imported.

Spans carry ids, names and numbers, never a text: no question, no answer, no error's message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from protostar_client.tracing import trace_fields

from tasks.engine.claim import Claim

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger("protostar.traces")

FLUSH_S: Final = 3.0  # for the last spans, where the collector is slow or gone

Attribute = str | int | float | bool

_NO_SPAN: Final = nullcontext()
_tracer: Tracer | None = None


def start_tracing(owner: str) -> Callable[[], Awaitable[None]]:
    """Send spans where OpenTelemetry's own variables say, as the worker `owner`; returns what ends it.

    Where an instrumented process has a tracer provider already, spans go there. Where the extra is not installed
    there are none, and a line says so: in a cluster the variables may be set for every process.
    """
    global _tracer
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        logger.warning("traces_off missing=%s install the extra: pip install 'protostar[otel]'", error.name)
        return _nothing
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        _tracer = trace.get_tracer("protostar")
        return _nothing
    resource = Resource.create({"service.instance.id": owner})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "protostar"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("protostar")

    async def stop() -> None:
        global _tracer
        _tracer = None
        # A thread that nobody waits for at the end: a collector that is gone must not hold up the worker.
        flushing = threading.Thread(target=provider.shutdown, name="traces-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_S)

    return stop


async def _nothing() -> None:
    return


def span(name: str, **attributes: Attribute) -> AbstractContextManager[None]:
    """A span of the running attempt; an error that passes through it is noted by its type alone."""
    if _tracer is None:
        return _NO_SPAN
    return _span(_tracer, name, attributes=attributes)


def attempt_span(claim: Claim, function: str) -> AbstractContextManager[None]:
    """The span of an attempt, in the trace of whoever enqueued the job."""
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(_carried_by(claim.payload))
    attributes: dict[str, Attribute] = {
        "messaging.system": "arq",
        "messaging.message.id": claim.job_id,
        "protostar.function": function,
        "protostar.attempt": claim.attempt,
    }
    return _span(_tracer, "attempt", attributes=attributes, context=context, kind=SpanKind.CONSUMER)


def request_span(model: str) -> AbstractContextManager[None]:
    """The span of a request to a model."""
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry.trace import SpanKind

    return _span(_tracer, "provider request", attributes={"gen_ai.request.model": model}, kind=SpanKind.CLIENT)


def note(*, failed: bool, **attributes: Attribute) -> None:
    """Add to the current span."""
    if _tracer is None:
        return
    from opentelemetry.trace import StatusCode, get_current_span

    current = get_current_span()
    current.set_attributes(attributes)
    if failed:
        current.set_status(StatusCode.ERROR)


def trace_headers() -> dict[str, str]:
    """What an HTTP request of the current span carries, so that the server's spans join the trace."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


@contextmanager
def _span(tracer: Tracer, name: str, **options: Any) -> Iterator[None]:
    from opentelemetry.trace import Status, StatusCode

    # The SDK would record the error's message and traceback, which may quote what somebody said.
    with tracer.start_as_current_span(
        name, record_exception=False, set_status_on_exception=False, **options
    ) as started:
        try:
            yield
        except BaseException as error:
            started.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def _carried_by(payload: bytes | None) -> dict[str, str]:
    try:
        record = json.loads(payload or b"")
    except ValueError:
        return {}
    return trace_fields(record) if isinstance(record, dict) else {}

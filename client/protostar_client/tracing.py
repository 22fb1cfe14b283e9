"""The trace a job belongs to: how its W3C trace context travels with it.

The context is carried by the job's record, beside ARQ's own fields and not among the arguments: `traceparent`, and
`tracestate` where there is one. Readers that know only ARQ's fields pass over it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

TRACE_FIELDS: Final = ("traceparent", "tracestate")


@contextmanager
def enqueue_span(function: str, job_id: str) -> Iterator[Mapping[str, str]]:
    """A span for enqueuing a job, and what its record is to carry.

    Both are nothing where the service does not use OpenTelemetry: it is not imported here for the first time.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield {}
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {"messaging.system": "arq", "messaging.message.id": job_id, "protostar.function": function}
    tracer = trace.get_tracer("protostar_client")
    with tracer.start_as_current_span("enqueue", kind=trace.SpanKind.PRODUCER, attributes=attributes):
        fields: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(fields)
        yield fields


def trace_fields(record: Mapping[str, object]) -> dict[str, str]:
    """The trace context that a job's record carries; anybody may have written it."""
    return {name: value for name in TRACE_FIELDS if isinstance(value := record.get(name), str)}

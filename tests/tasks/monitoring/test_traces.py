"""One trace from the service that asks through the worker to the provider, received by OTLP as a collector would."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.stack_under_test import ROOT, Stack, clean_environment, dump, until

QUESTION = "비밀스러운 질문"
SERVICE = f"""
import asyncio, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
import protostar_client.sync
from protostar_client import ChatClient

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
asked = {{"user_uuid": sys.argv[3], "session_id": "s", "content": {QUESTION!r}, "job_id": sys.argv[2]}}

async def ask():
    async with ChatClient.connect(sys.argv[1]) as client:
        await client.enqueue(**asked)

with trace.get_tracer("service").start_as_current_span("POST /ask"):
    if sys.argv[4] == "async":
        asyncio.run(ask())
    else:
        with protostar_client.sync.ChatClient.connect(sys.argv[1]) as client:
            client.enqueue(**asked)
"""


@dataclass
class Collector:
    """What was received, by the name of the service."""

    url: str
    spans: list[tuple[str, Span]] = field(default_factory=list)

    def receive(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.spans += [(names["service.name"], span) for scope in resource.scope_spans for span in scope.spans]

    def of(self, job_id: str) -> list[Span]:
        """The spans of the traces that know of a job."""
        traces = {span.trace_id for _, span in self.spans if attributes(span).get("messaging.message.id") == job_id}
        return [span for _, span in self.spans if span.trace_id in traces]


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.receive(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {
        item.key: item.value.int_value if item.value.HasField("int_value") else item.value.string_value
        for item in span.attributes
    }


def named(spans: list[Span], name: str) -> list[Span]:
    found = (span for span in spans if span.name == name)
    return sorted(found, key=lambda span: span.start_time_unix_nano)


def asked_by_a_service(stack: Stack, collector: Collector, how: str) -> str:
    job_id = uuid4().hex
    subprocess.run(
        [sys.executable, "-c", SERVICE, stack.redis_url, job_id, str(uuid4()), how],
        env=clean_environment() | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "gateway"},
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return job_id


async def asked_by_hand(stack: Stack, **more: Any) -> str:
    """Enqueue as any language can, with more fields in the record."""
    job_id, now_ms = uuid4().hex, int(time.time() * 1000)
    arguments = {"user_uuid": str(uuid4()), "session_id": "s", "content": QUESTION}
    record = {"t": None, "f": "generate_chat", "a": [], "k": arguments, "et": now_ms, **more}
    await stack.redis.set(f"arq:job:{job_id}", dump(record), px=60_000)
    await stack.redis.zadd("arq:queue", {job_id: now_ms})
    return job_id


async def test_one_trace_spans_service_worker_and_provider(stack: Stack, collector: Collector) -> None:
    worker = await stack.start_worker(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    async def indexed() -> object:
        return await stack.rows("SELECT 1 FROM reindex_runs WHERE ended_at IS NOT NULL")

    await until(indexed, "the corpus is indexed", stack.logs)
    stack.model.script({"status": 500}, {"pieces": ["비밀스러운 ", "답."], "times": None})
    first = asked_by_a_service(stack, collector, "async")
    await stack.result(first)
    requests = stack.model.requests(2)
    second = asked_by_a_service(stack, collector, "sync")
    await stack.result(second)
    trace_id, parent_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    others = await asked_by_hand(stack, traceparent=f"00-{trace_id}-{parent_id}-01", tracestate="vendor=x")
    await stack.result(others)
    broken = [await asked_by_hand(stack, traceparent=wrong) for wrong in ("nonsense", 7, None)]
    for job_id in broken:
        assert (await stack.result(job_id))["s"] is True
    worker.stop()  # the last spans are sent before it ends

    spans = collector.of(first)
    assert {span.trace_id for span in spans} == {spans[0].trace_id}
    [asked], [enqueue] = named(spans, "POST /ask"), named(spans, "enqueue")
    failed, answered = named(spans, "attempt")
    refused, request = named(spans, "provider request")
    [store] = named(spans, "store")
    assert (enqueue.kind, failed.kind, request.kind) == (
        Span.SPAN_KIND_PRODUCER,
        Span.SPAN_KIND_CONSUMER,
        Span.SPAN_KIND_CLIENT,
    )
    assert enqueue.parent_span_id == asked.span_id
    assert {failed.parent_span_id, answered.parent_span_id} == {enqueue.span_id}
    assert (refused.parent_span_id, request.parent_span_id) == (failed.span_id, answered.span_id)
    assert store.parent_span_id == answered.span_id
    for name in ("retrieve", "prompt"):
        assert [span.parent_span_id for span in named(spans, name)] == [failed.span_id, answered.span_id]
    assert [attributes(span)["protostar.attempt"] for span in (failed, answered)] == [1, 2]
    assert attributes(answered)["protostar.outcome"] == "done"
    assert (failed.status.code, answered.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    carried = [f"00-{span.trace_id.hex()}-{span.span_id.hex()}" for span in (refused, request)]
    assert [asked["headers"]["traceparent"].rpartition("-")[0] for asked in requests] == carried

    assert {"POST /ask", "enqueue", "attempt", "store"} <= {span.name for span in collector.of(second)}
    [attempt] = named(collector.of(others), "attempt")
    assert (attempt.trace_id.hex(), attempt.parent_span_id.hex()) == (trace_id, parent_id)
    assert attempt.trace_state == "vendor=x"
    own = [named(collector.of(job_id), "attempt")[0] for job_id in broken]
    assert len({span.trace_id for span in own}) == 3
    assert {span.parent_span_id for span in own} == {b""}
    assert {service for service, _ in collector.spans} == {"gateway", "protostar"}
    assert "비밀" not in str(collector.spans) + json.dumps(str(collector.spans), ensure_ascii=False)


def alone(code: str) -> str:
    """What a program of its own prints."""
    environment = clean_environment() | {"OPENAI_API_KEY": "k", "PROTOSTAR_CHAT_MODEL": "m"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout + done.stderr


def test_without_an_endpoint_spans_do_nothing_and_no_sdk_is_imported() -> None:
    code = """
import sys
import arq_settings, protostar_client
from protostar_client.tracing import enqueue_span
from tasks.engine.claim import Claim
from tasks.monitoring.traces import attempt_span, note, request_span, span, trace_headers
claim = Claim(b"j", 1, 0, 0, None, False)
with enqueue_span("generate_chat", "j") as fields, attempt_span(claim, "f"), span("store"), request_span("m"):
    note(failed=True)
    assert (fields, trace_headers()) == ({}, {})
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    assert alone(code).strip() == "[]"


def test_without_the_extra_a_worker_reports_it_and_works() -> None:
    code = """
import asyncio, logging, sys
logging.basicConfig()
sys.modules["opentelemetry.sdk"] = None
import protostar.log
from tasks.monitoring.traces import span, start_tracing
stop = start_tracing("w")
with span("store"):
    asyncio.run(stop())
print("works")
"""
    printed = alone(code)
    assert "traces_off missing=opentelemetry.sdk" in printed
    assert "install the extra: pip install 'protostar[otel]'" in printed
    assert "works" in printed

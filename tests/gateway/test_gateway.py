"""The example gateway as a browser's script meets it: HTTP and server-sent events, a real worker behind."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from stack.web import Gateway
from tests.project.test_architecture import MAY_IMPORT
from tests.support.redis_gate import RedisGate
from tests.support.stack_under_test import ROOT, Stack, check_order, clean_environment, text_of, until
from tests.support.visitor import Visitor, gateway_before, sse_events, visitor_of

pytest_plugins = ["tests.support.gateway_fixtures"]

PIECES = ["첫 문장이다. ", "둘째 문장이다.", "\n\n", "끝 🙂"]
QUESTION = "워커가 죽으면 작업은 누가 이어받는가"


def question_of_its_own() -> str:
    return f"{QUESTION}? ({uuid4().hex})"


def script(stack: Stack, question: str, **behaviour: object) -> None:
    stack.model.script({"contains": question, "pieces": PIECES, **behaviour})


def hold(stack: Stack, question: str, *, after: int) -> str:
    """Have the answer wait after so many pieces; the gate that lets it go on."""
    gate = uuid4().hex
    script(stack, question, hold=gate, after=after)
    return gate


# Asking and following


async def test_an_answer_is_followed_as_it_is_stored(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    script(shared_stack, question)
    job_id = await visitor.ask(question)
    *events, over = await visitor.events(job_id)
    assert over == {"type": "over", "sent_as": ""}
    check_order(events)
    assert [event["type"] for event in events[:2]] == ["start", "sources"]
    assert all(event["id"] == event["sent_as"] for event in events)
    stored = await shared_stack.messages(job_id)
    assert [message["content"] for message in stored] == [question, text_of(events)] == [question, "".join(PIECES)]


async def test_a_stream_tells_proxies_and_browsers_what_they_need(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    script(shared_stack, question)
    job_id = await visitor.ask(question)
    reply = await visitor.http.get(f"/api/answers/{job_id}/events")
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert (reply.headers["x-accel-buffering"], reply.headers["cache-control"]) == ("no", "no-store")
    assert "retry: 1000\n" in reply.text.partition("data:")[0]
    assert "event:" not in reply.text


async def test_a_reader_goes_on_after_the_last_event_it_saw(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    script(shared_stack, question)
    job_id = await visitor.ask(question)
    events = await visitor.events(job_id)
    seen, ending = events[2]["id"], events[-2]["id"]
    assert await visitor.events(job_id, headers={"Last-Event-ID": seen}) == events[3:]
    assert await visitor.events(job_id, params={"after": seen}) == events[3:]
    assert await visitor.events(job_id, params={"after": "1-1"}, headers={"Last-Event-ID": seen}) == events[3:]
    assert await visitor.events(job_id, headers={"Last-Event-ID": ending}) == events[-1:]


async def test_the_same_job_id_again_is_the_same_turn(visitor: Visitor, shared_stack: Stack) -> None:
    question, job_id = question_of_its_own(), uuid4().hex
    script(shared_stack, question)
    body = {"session_id": visitor.session_id, "content": question, "job_id": job_id}
    replies = [(await visitor.http.post("/api/answers", json=body)).json() for _ in range(2)]
    assert replies == [{"job_id": job_id, "created": True}, {"job_id": job_id, "created": False}]
    await visitor.events(job_id)
    assert len(await shared_stack.messages(job_id)) == 2


async def test_a_browser_that_goes_away_frees_its_reader(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    gate = hold(shared_stack, question, after=1)
    job_id = await visitor.ask(question)

    async def is_read() -> bool:
        return await blocked(shared_stack.redis) > 0

    async def is_free() -> bool:
        return not await is_read()

    await until(is_free, "earlier readers are gone")
    async with visitor.http.stream("GET", f"/api/answers/{job_id}/events") as stream:
        async for event in sse_events(stream):
            if event["type"] == "delta":
                break
        await until(is_read, "the gateway waits for more")
    await until(is_free, "nobody waits for more")
    shared_stack.model.release(gate)
    await visitor.events(job_id)


async def blocked(redis: Redis) -> int:
    """How many connections of clients wait for events."""
    clients = await redis.client_list()
    return sum(client["name"] == "protostar-client" and "b" in client["flags"] for client in clients)


# Stopping, looking back


async def test_a_stopped_answer_keeps_what_it_had(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    hold(shared_stack, question, after=2)
    job_id = await visitor.ask(question)
    await shared_stack.until_said(job_id, "".join(PIECES[:2]))
    reply = await visitor.http.post(f"/api/answers/{job_id}/cancel")
    assert reply.json() == {"cancelled": True}
    *events, _ = await visitor.events(job_id)
    assert events[-1]["type"] == "cancelled"
    answer = (await shared_stack.messages(job_id))[1]
    assert (answer["status"], answer["content"]) == ("cancelled", "".join(PIECES[:2]))
    again = await visitor.http.post(f"/api/answers/{job_id}/cancel")
    assert again.status_code == 200


async def test_a_session_is_looked_back_at_with_its_sources(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    script(shared_stack, question)
    job_id = await visitor.ask(question)
    events = await visitor.events(job_id)
    reply = await visitor.http.get("/api/messages", params={"session_id": visitor.session_id})
    asked, answered = reply.json()
    assert (asked["role"], asked["content"], asked["sources"]) == ("user", question, [])
    assert (answered["role"], answered["content"], answered["job_id"]) == ("assistant", "".join(PIECES), job_id)
    assert answered["sources"] == events[1]["sources"]


# Sources


async def test_a_source_is_opened_at_its_place_in_the_document(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    gate = hold(shared_stack, question, after=1)
    job_id = await visitor.ask(question)
    await shared_stack.until_said(job_id, PIECES[0])
    while_it_runs = await open_first_source(visitor, shared_stack, job_id)
    shared_stack.model.release(gate)
    await visitor.events(job_id)
    assert await open_first_source(visitor, shared_stack, job_id) == while_it_runs


async def open_first_source(visitor: Visitor, stack: Stack, job_id: str) -> dict[str, object]:
    source = await first_source(stack, job_id)
    reply = await visitor.http.get(f"/api/answers/{job_id}/passages/{source['chunk_id']}")
    passage: dict[str, object] = reply.json()
    assert (passage["document"], passage["heading"]) == (source["document"], source["heading"])
    text = (stack.corpus / str(source["document"])).read_text()
    shown = f"{passage['before']}{passage['text']}{passage['after']}"
    assert shown in text
    chunk = (await stack.rows("SELECT * FROM chunks WHERE id = $1", source["chunk_id"]))[0]
    assert text.index(shown) + len(str(passage["before"])) == chunk["start_offset"]
    assert passage["text"] == chunk["text"]
    return passage


async def first_source(stack: Stack, job_id: str) -> dict[str, object]:
    async for event in stack.follow(job_id):
        if event["type"] == "sources":
            source: dict[str, object] = event["sources"][0]
            return source
    raise AssertionError("nothing was retrieved")


async def test_only_passages_of_ones_own_answers_are_shown(
    visitor: Visitor, gateway: Gateway, shared_stack: Stack
) -> None:
    question = question_of_its_own()
    script(shared_stack, question)
    job_id = await visitor.ask(question)
    await visitor.events(job_id)
    cited = (await first_source(shared_stack, job_id))["chunk_id"]
    assert (await visitor.http.get(f"/api/answers/{job_id}/passages/{cited}")).status_code == 200
    assert (await visitor.http.get(f"/api/answers/{job_id}/passages/999999")).status_code == 404
    async with visitor_of(gateway.url) as stranger:
        assert (await stranger.http.get(f"/api/answers/{job_id}/passages/{cited}")).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/static/../index.html",
        "/static/%2e%2e/%2e%2e/config.py",
        "/static/..%2f..%2fconfig.py",
        "/static//etc/passwd",
        "/api/answers/x/passages/..%2f..%2f..%2fetc%2fpasswd",
        "/api/answers/x/passages/%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_to_a_file(gateway: Gateway, path: str) -> None:
    # Not by a client, which would tidy the path up.
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.match(rb"HTTP/1.1 (401|404|422) ", reply), reply
    assert b"root:" not in reply
    assert b"BaseSettings" not in reply


# What is refused


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"content": "  "}, "content"),
        ({"content": "x" * 32_001}, "content"),
        ({"content": 7}, "content"),
        ({"content": None}, "content"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "s" * 129}, "session_id"),
        ({"job_id": "a\nb"}, "job_id"),
        ({"mode": ""}, "mode"),
        ({"context": "x" * 400_001}, "context"),
        ({"on_busy": "shout"}, "on_busy"),
        ({"user_uuid": str(uuid4())}, "user_uuid"),
    ],
)
async def test_bad_input_is_named(visitor: Visitor, change: dict[str, object], field: str) -> None:
    reply = await visitor.http.post("/api/answers", json={"session_id": "s", "content": "hi"} | change)
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_request", field)
    assert error["message"].startswith(f"{field}: ")


async def test_what_is_no_json_or_no_event_id_is_named(visitor: Visitor) -> None:
    reply = await visitor.http.post("/api/answers", content=b"{", headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_request")
    assert (await visitor.http.get("/api/messages")).json()["error"]["field"] == "session_id"
    job_id = await visitor.ask(question_of_its_own())
    reply = await visitor.http.get(f"/api/answers/{job_id}/events", headers={"Last-Event-ID": "1-x"})
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "last-event-id")


async def test_a_job_of_another_user_is_unknown(visitor: Visitor, gateway: Gateway, shared_stack: Stack) -> None:
    question = question_of_its_own()
    gate = hold(shared_stack, question, after=1)
    job_id = await visitor.ask(question)
    async with visitor_of(gateway.url) as stranger:
        for job in (job_id, "no-such-job"):
            for method, path in [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("GET", "/passages/1")]:
                reply = await stranger.http.request(method, f"/api/answers/{job}{path}")
                assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), path
        taken = await stranger.http.post("/api/answers", json={"session_id": "s", "content": "hi", "job_id": job_id})
        assert (taken.status_code, taken.json()["error"]["field"]) == (422, "job_id")
        past = await stranger.http.get("/api/messages", params={"session_id": visitor.session_id})
        assert past.json() == []
    assert (await visitor.http.get(f"/api/answers/{job_id}")).json() == {"job_id": job_id}
    shared_stack.model.release(gate)
    assert (await visitor.events(job_id))[-2]["type"] == "done"


async def test_who_has_no_cookie_of_ours_is_nobody(visitor: Visitor, gateway: Gateway) -> None:
    cookie = visitor.http.cookies["protostar"]
    forged = ("A" if cookie[0] != "A" else "B") + cookie[1:]
    for cookies in ({}, {"protostar": forged}, {"protostar": "nonsense"}):
        async with httpx.AsyncClient(base_url=gateway.url, cookies=cookies, trust_env=False) as http:
            reply = await http.post("/api/answers", json={"session_id": "s", "content": "hi"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "not_signed_in")


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        reply = await http.get("/")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "script-src 'self'" in reply.headers["content-security-policy"]


async def test_a_full_queue_and_a_busy_session_are_told(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """No worker runs, so that what was asked waits."""
    with gateway_before(redis_url, database_url, tmp_path, PROTOSTAR_MAX_QUEUE="2") as running:
        async with visitor_of(running.url) as visitor:
            first = await visitor.ask("첫 질문")
            body = {"session_id": visitor.session_id, "content": "더", "on_busy": "reject"}
            busy = await visitor.http.post("/api/answers", json=body)
            assert (busy.status_code, busy.json()["error"]["job_id"]) == (409, first)
            await visitor.ask("둘째 질문")
            full = await visitor.http.post("/api/answers", json={"session_id": "other", "content": "더"})
            assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
            assert int(full.headers["retry-after"]) > 0


# Starting it


def test_what_it_needs_to_start_is_told_in_one_line(gateway: Gateway) -> None:
    taken = gateway.url.rpartition(":")[2]
    for arguments, environment, words in [
        ([], {}, "GATEWAY_SECRET"),
        ([], {"GATEWAY_SECRET": "short"}, "GATEWAY_SECRET"),
        (["--port", taken], {"GATEWAY_SECRET": "s" * 32}, "choose another --port"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "examples.gateway", "--port", "0", *arguments],
            cwd=ROOT,
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        (line,) = done.stderr.splitlines()
        assert (done.returncode, line.startswith("gateway: ")) == (1, True)
        assert words in line


def test_it_knows_of_protostar_what_the_client_tells() -> None:
    for path in (ROOT / "examples" / "gateway").glob("*.py"):
        rooms = {name.split(".")[0] for name in imports_of_example(path)} & (MAY_IMPORT.keys() | {"tests"})
        assert rooms <= {"protostar_client"}, path


def imports_of_example(path: Path) -> set[str]:
    return set(re.findall(r"^(?:from|import) ([a-z_.]+)", path.read_text(), re.M))


# Protection


@pytest.mark.parametrize("host", ["rebound.example", "localhost.example:80", ""])
async def test_a_host_that_is_not_configured_is_refused(gateway: Gateway, host: str) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        reply = await http.get("/api/messages", params={"session_id": "s"}, headers={"Host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "unknown_host")
        assert (await http.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_that_is_too_large_is_refused_before_it_is_read(visitor: Visitor, is_announced: bool) -> None:
    size, sent = 64 * 1024 * 1024, 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < size:
            sent += 65_536
            yield bytes(65_536)

    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(size)} if is_announced else {})
    try:
        reply = await visitor.http.post("/api/answers", content=body(), headers=headers)
    except httpx.WriteError:  # refused and closed while the body is being sent
        return
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


async def test_replies_of_the_api_are_kept_by_no_cache(visitor: Visitor) -> None:
    for reply in [
        await visitor.http.get("/api/messages", params={"session_id": visitor.session_id}),
        await visitor.http.get("/api/answers/no-such-job"),
        await visitor.http.post("/api/answers", json={}),
    ]:
        assert (reply.headers["cache-control"], reply.headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_an_error_names_no_address(shared_places: tuple[str, str, Path], tmp_path: Path) -> None:
    redis_url, database_url, _ = shared_places
    with RedisGate(redis_url) as gate, gateway_before(gate.url, database_url, tmp_path) as gateway:
        async with visitor_of(gateway.url) as visitor:
            gate.__exit__()
            reply = await visitor.http.post("/api/answers", json={"session_id": "s", "content": "hi"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert reply.json()["error"]["message"] == "the queue can't be reached; try again"


async def test_a_stream_without_events_shows_signs_of_life(visitor: Visitor, shared_stack: Stack) -> None:
    question = question_of_its_own()
    gate = hold(shared_stack, question, after=1)
    job_id = await visitor.ask(question)
    types: list[str] = []
    async with visitor.http.stream("GET", f"/api/answers/{job_id}/events", timeout=30) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                types.append(json.loads(line.removeprefix("data: "))["type"])
                if types[-1] == "alive" and types.count("alive") == 1:
                    shared_stack.model.release(gate)
    assert "alive" in types
    assert types[-2:] == ["done", "over"]
    assert (await shared_stack.messages(job_id))[1]["content"] == "".join(PIECES)

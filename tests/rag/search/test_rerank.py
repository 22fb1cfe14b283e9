"""The rerank stage, against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.rerank import TIMEOUT_S, Reranker
from rag.search.retrieve import Passage, retrieve

Reply = Callable[[dict[str, Any]], bytes]


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def results(scores: dict[int, Any]) -> bytes:
    found = [{"index": index, "relevance_score": score} for index, score in scores.items()]
    return http(json.dumps({"results": found}).encode())


@dataclass
class Endpoint:
    """A server that answers each request as `reply` says, then `then` without end, or nothing more."""

    reply: Reply = lambda request: http(b"{}")
    then: bytes = b""
    delay_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                size = int(next(line for line in head.splitlines() if line.lower().startswith("content-length"))[15:])
                request = json.loads(await reader.readexactly(size))
                self.requests.append(request)
                self.headers.append(head)
                await asyncio.sleep(self.delay_s)
                writer.write(self.reply(request))
                await writer.drain()
                while self.then:
                    writer.write(self.then)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    found = Endpoint()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield found


@pytest.fixture
async def corpus(database_url: str, tmp_path: Path) -> AsyncIterator[None]:
    for name, text in {
        "a": "임대 임대 임대",
        "b": "임대 시간은 길다.",
        "c": "임대 기간과 다른 여러 가지 이야기를 적는다.",
    }.items():
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=ChunkSettings(400, 60, "gpt-4o"))
        yield


def documents(passages: list[Passage]) -> list[str]:
    return [passage.document for passage in passages]


async def ask(endpoint: Endpoint, *, threshold: float | None = None, question: str = "임대") -> list[str]:
    reranker = Reranker(endpoint.url, "model", api_key="key", threshold=threshold)
    try:
        return documents(await retrieve(question, reranker=reranker, top_k=3))
    finally:
        await reranker.close()


async def test_its_scores_decide_the_order(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.reply = lambda request: results({0: 0.1, 1: 0.2, 2: 0.3})
    assert await ask(endpoint) == before[::-1]
    [request] = endpoint.requests
    assert (request["model"], request["query"], request["top_n"]) == ("model", "임대", 3)
    assert "authorization: bearer key" in endpoint.headers[0].lower()


async def test_a_candidate_without_a_score_comes_last(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.reply = lambda request: results({2: 0.3})
    assert await ask(endpoint) == [before[2], before[0], before[1]]


async def test_the_form_of_tei_is_found_out(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))

    def tei(request: dict[str, Any]) -> bytes:
        if "texts" not in request:
            return http(b"{}", status="422 Unprocessable Entity")
        return http(json.dumps([{"index": 1, "score": 9.0}, {"index": 0, "score": 1}]).encode())

    endpoint.reply = tei
    assert await ask(endpoint) == [before[1], before[0], before[2]]


async def test_a_threshold_decides_what_is_enough(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.reply = lambda request: results({0: 0.1, 1: 0.9, 2: 0.5})
    assert await ask(endpoint, threshold=0.5) == [before[1], before[2]]
    assert await ask(endpoint, threshold=0.95) == []


async def test_where_it_fails_the_floor_of_the_search_holds(corpus: None, endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: http(b"", status="500 Internal Server Error")
    question = "임대 화성 탐사선 궤도 계산"
    assert await ask(endpoint, question=question) == await ask(endpoint, question=question, threshold=0.1) == []


@pytest.mark.parametrize(
    "reply",
    [
        http(b"", status="500 Internal Server Error"),
        http(b"", status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"),
        http(b"not json"),
        http(b"[" * 20_000),
        http(b"{}"),
        http(b'{"results": []}'),
        http(b'{"results": {"0": 1}}'),
        http(b"\x1f\x8b", headers="Content-Encoding: gzip\r\n"),
        results({7: 1.0}),
        results({-1: 1.0}),
        results({0: "1"}),
        results({0: None}),
        results({0: True}),
        results({0: float("nan")}),
        results({0: float("inf")}),
        results({0: 10**400}),
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    ],
)
async def test_where_it_fails_the_order_stays(corpus: None, endpoint: Endpoint, reply: bytes) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.reply = lambda request: reply
    assert await ask(endpoint) == before
    assert endpoint.requests


async def test_where_it_is_late_the_order_stays(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.delay_s = 30
    started = time.monotonic()
    assert await ask(endpoint) == before
    assert time.monotonic() - started < 3 * TIMEOUT_S


async def test_a_body_without_end_is_not_read(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    endpoint.reply = lambda request: b"HTTP/1.1 200 OK\r\n\r\n"
    endpoint.then = b"x" * 65_536
    assert await ask(endpoint) == before


async def test_an_endpoint_that_keeps_failing_is_not_asked_each_time(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: http(b"", status="503 Service Unavailable")
    reranker = Reranker(endpoint.url, "model")
    assert [await reranker.scores("q", ["a"]) for _ in range(6)] == [None] * 6
    assert len(endpoint.requests) == 3
    await reranker.close()


async def test_an_endpoint_that_is_not_there_costs_nothing_but_its_order(corpus: None, endpoint: Endpoint) -> None:
    before = documents(await retrieve("임대", top_k=3))
    reranker = Reranker("http://127.0.0.1:1", "model")
    assert documents(await retrieve("임대", reranker=reranker, top_k=3)) == before
    await reranker.close()

"""Talks to the example gateway without a browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from stack.web import Gateway, running_gateway
from tests.support.stack_under_test import DEADLINE_S, clean_environment


def gateway_before(
    redis_url: str, database_url: str, folder: Path, *, port: int = 0, **more: str
) -> AbstractContextManager[Gateway]:
    """A gateway of these servers."""
    servers = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
    return running_gateway(folder, clean_environment() | servers | more, port=port)


class Visitor:
    """A user who has opened the page, and talks to the gateway as its script does."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.session_id = uuid4().hex

    async def ask(self, content: str, **more: Any) -> str:
        """The id of the job of a question."""
        reply = await self.http.post("/api/answers", json={"session_id": self.session_id, "content": content, **more})
        assert reply.status_code == 202, reply.text
        job_id: str = reply.json()["job_id"]
        return job_id

    async def events(self, job_id: str, **request: Any) -> list[dict[str, Any]]:
        """Return the events of an answer up to the end of the stream, each with its `id`."""
        async with self.http.stream("GET", f"/api/answers/{job_id}/events", **request) as stream:
            assert stream.status_code == 200
            return [event async for event in sse_events(stream)]


@asynccontextmanager
async def visitor_of(url: str) -> AsyncIterator[Visitor]:
    """A new user of the gateway at `url`."""
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False) as http:
        assert (await http.get("/")).status_code == 200
        yield Visitor(http)


async def sse_events(stream: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of an event stream."""
    sent_as = ""
    data: dict[str, Any] = {}
    async for line in stream.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "data":
            data = json.loads(value)
        elif name == "id":
            sent_as = value
        elif not line and data:
            yield data | {"sent_as": sent_as}
            sent_as, data = "", {}

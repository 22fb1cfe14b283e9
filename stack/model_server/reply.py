"""Responses that a script can hold up, spoil and break off, and that notice when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stack.model_server.connections import Connections
from stack.model_server.log import LoggedRequest
from stack.model_server.wire import DropError


class Reply(Response):
    """A response whose body is written as it comes."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        *,
        logged: LoggedRequest,
        connections: Connections,
        status: int = 200,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        self._writes = body
        self._logged = logged
        self._connections = connections
        super().__init__(status_code=status, headers=headers, media_type=content_type)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end, a fault, or the client's leaving, and log which it was."""
        writing = asyncio.ensure_future(self._write(scope, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self._logged.close(early=not writing.done())
        finally:
            writing.cancel()
            leaving.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            if self._logged.closed_at is None:
                self._logged.close(early=False)

    async def _write(self, scope: Scope, send: Send) -> None:
        try:
            started = False
            async for part in self._writes:
                if not started:
                    await send(self._start())
                    started = True
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except DropError as error:
            self._connections.abort(tuple(scope["client"]), clean=error.clean)

    def _start(self) -> Message:
        return {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

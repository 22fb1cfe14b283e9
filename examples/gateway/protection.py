"""What every request and reply is checked for: the host it names, the size of its body, and what may be kept of it."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_MAX_BYTES: Final = 4 * 1024 * 1024
"""A question of 32,000 characters and a page of 400,000 take less, also where JSON escapes each of them."""
_MOST_DIGITS: Final = 15
_ANY: Final = "*"
_HEALTH: Final = "/healthz"


class Protection:
    """An ASGI middleware.

    Refuses a request whose `Host` is not among `allowed_hosts` (a foreign page could otherwise reach a gateway on
    this machine under a name of its own), or whose body is larger than `BODY_MAX_BYTES`. Keeps replies of the API out
    of every cache. Health checks may name any host: a probe asks for an address.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] != _HEALTH and not self._is_allowed(headers.get("host", "")):
            text = "the gateway does not serve this host; name it in GATEWAY_ALLOWED_HOSTS"
            await _refuse(421, "unknown_host", text)(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > BODY_MAX_BYTES:
            await _TOO_LARGE(scope, receive, send)
            return
        body = _Body(receive)

        async def send_protected(message: Message) -> None:
            if not body.is_too_large:
                await send(_protected(message) if scope["path"].startswith("/api/") else message)

        await self._app(scope, body.receive, send_protected)
        if body.is_too_large:
            await _TOO_LARGE(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        return _ANY in self._hosts or name.lower() in self._hosts


class _Body:
    """A request's body, cut off after the limit: its length need not have been announced."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = BODY_MAX_BYTES
        self.is_too_large = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        self.is_too_large = self.is_too_large or self._left < 0
        return {"type": "http.disconnect"} if self.is_too_large else message


def _protected(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        headers["Cache-Control"] = "no-store"
        headers["X-Content-Type-Options"] = "nosniff"
    return message


def _refuse(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


_TOO_LARGE: Final = _refuse(413, "body_too_large", f"the body has more than {BODY_MAX_BYTES} bytes; shorten it")

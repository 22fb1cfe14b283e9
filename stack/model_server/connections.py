"""The server's open connections, any of which can be reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Client = tuple[str, int]
"""Address and port of a client."""


class Connections:
    """Open transports by the client's address."""

    def __init__(self) -> None:
        self._open: dict[Client, asyncio.Transport] = {}

    def add(self, transport: asyncio.Transport) -> Client:
        """Remember a new connection."""
        client: Client = tuple(transport.get_extra_info("peername"))
        self._open[client] = transport
        return client

    def remove(self, client: Client) -> None:
        """Forget a connection that has ended."""
        self._open.pop(client, None)

    def abort(self, client: Client, *, clean: bool = False) -> None:
        """Break a connection off with a TCP reset: the end that its headers promised never comes.

        `clean`: what was written still arrives, and then the connection is closed as if that were all.
        """
        transport = self._open.get(client)
        if transport is None:
            return
        if clean:
            transport.close()
        else:
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()


def protocol_class(connections: Connections) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, telling `connections` of each connection."""

    class Tracked(H11Protocol):
        _client: Client

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._client = connections.add(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.remove(self._client)
            super().connection_lost(exc)

    return Tracked

"""The log of requests."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

KEPT_REQUESTS: Final = 1000


@dataclass
class LoggedRequest:
    """One request; times are Unix times in seconds, `closed_at` is None while it is under way."""

    path: str
    headers: dict[str, str]
    body: Any
    arrived_at: float = field(default_factory=time.time)
    closed_at: float | None = None
    closed_early: bool = False
    """Whether the client left before the response was complete."""
    pieces_sent: int = 0

    def count_piece(self) -> None:
        """Note that a piece of the answer was written."""
        self.pieces_sent += 1

    def close(self, *, early: bool) -> None:
        """Note that the response has ended."""
        self.closed_at = time.time()
        self.closed_early = early


class RequestLog:
    """The newest requests, oldest first."""

    def __init__(self) -> None:
        self._requests: deque[LoggedRequest] = deque(maxlen=KEPT_REQUESTS)

    def open(self, path: str, headers: dict[str, str], body: object) -> LoggedRequest:
        """Note a request that has arrived."""
        shown = {name: "redacted" if name == "authorization" else value for name, value in headers.items()}
        request = LoggedRequest(path=path, headers=shown, body=body)
        self._requests.append(request)
        return request

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest `count` requests, oldest first."""
        newest = list(self._requests)[-count:] if count > 0 else []
        return [asdict(request) for request in newest]

    def in_flight(self) -> int:
        """How many responses are under way."""
        return sum(request.closed_at is None for request in self._requests)

    def clear(self) -> None:
        """Forget every request that has ended."""
        under_way = [request for request in self._requests if request.closed_at is None]
        self._requests = deque(under_way, maxlen=KEPT_REQUESTS)

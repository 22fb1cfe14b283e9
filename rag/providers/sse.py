"""Parses server-sent events: bytes in, JSON objects out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

MAX_EVENT_BYTES: Final = 1024 * 1024

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class MalformedEventError(ValueError):
    """An event's data is not a JSON object, or too long. The message contains none of it."""


class EventReader:
    """Reads events from bytes cut anywhere. Comments and all fields except `data` are skipped."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._at_start = True
        self.done = False
        """Whether `[DONE]` was read. Nothing after it is read."""

    def feed(self, received: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that `received` completes.

        Raises:
            MalformedEventError: the data of an event is not a JSON object.
        """
        may_end_a_line = self._rest.endswith(b"\r") or b"\n" in received or b"\r" in received
        self._rest += received
        if may_end_a_line:  # a line without an end is looked through once, not at every read
            lines = bytes(self._rest).splitlines(keepends=True)
            # A carriage return at the end may be the first half of a line end.
            self._rest = bytearray(lines.pop() if lines and not lines[-1].endswith(b"\n") else b"")
        else:
            lines = []
        self._check_length(len(self._rest))
        for line in lines:
            yield from self._take(line)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the last event, where the stream ended without the empty line that closes it.

        Raises:
            MalformedEventError: the stream ended in the middle of it.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        yield from self._take(rest)
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[dict[str, Any]]:
        if self._at_start:
            line, self._at_start = line.removeprefix(_BYTE_ORDER_MARK), False
        line = line.rstrip(b"\r\n")
        if self.done:
            return
        if not line:
            yield from self._dispatch()
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value)
            self._check_length(self._data_bytes)

    def _dispatch(self) -> Iterator[dict[str, Any]]:
        if not self._data:
            return
        data = b"\n".join(self._data)
        self._data, self._data_bytes = [], 0
        if data.strip() == b"[DONE]":
            self.done = True
        elif data.strip():
            yield _json_object(data)

    def _check_length(self, length: int) -> None:
        if length > MAX_EVENT_BYTES:
            raise MalformedEventError(f"an event is longer than {MAX_EVENT_BYTES} bytes")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise MalformedEventError("an event is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedEventError("an event is not a JSON object")
    return value

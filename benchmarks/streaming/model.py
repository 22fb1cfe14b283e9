"""A lean model server: streams by the OpenAI protocol, tokens whose text is the moment they were sent.

Run with a file to write the port to. The question says what is wanted: `rate=50 tokens=900 text=clock`. A rate of 0
is as fast as possible; `text=words` speaks words in place of moments, which are nanoseconds of the system's monotonic
clock. It spends so little on a token that the servers it is measured with have the machine to themselves.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from pathlib import Path
from typing import Final, cast

import uvloop

_ASKED: Final = re.compile(rb"rate=(\d+) tokens=(\d+) text=(clock|words)")
_WORDS: Final = ("작업은 ", "잃지 ", "않", "습니다", ". ", "The ", "lease ", "is ", "renewed ", "often, ")
_BURST: Final = 50
_HEAD: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
)
_LAST: Final = (
    _HEAD + b'{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":%d,"total_tokens":100}}\n\ndata: [DONE]\n\n'
)
_START: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE: Final = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"In short."}}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":3,"total_tokens":4}}'
)


def spoken(tokens: int) -> str:
    """The answer to a question with `text=words`."""
    return "".join(_WORDS[number % len(_WORDS)] for number in range(tokens))


class Conversation(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self._received = b""
        self._timer: asyncio.Handle | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Fall silent."""
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if not separator or (length and len(body) < int(length[1])):
            return
        self._received = b""
        asked = _ASKED.findall(body)
        if not re.search(rb'"stream": *true', body) or not asked:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            self._transport.write(b"content-length: %d\r\n\r\n%b" % (len(_WHOLE), _WHOLE))
            return
        rate, self._tokens, self._text = int(asked[-1][0]), int(asked[-1][1]), asked[-1][2]
        self._said = 0
        self._interval_s = 1 / rate if rate else 0.0
        self._transport.write(_START)
        # Answers are out of step with each other, as they are in life.
        self._next_s = asyncio.get_running_loop().time() + random.random() * self._interval_s
        self._go_on()

    def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        if self._said == self._tokens:
            self._transport.write(_chunk(_LAST % self._tokens) + b"0\r\n\r\n")
        elif self._interval_s:
            self._timer = loop.call_at(self._next_s, self._say_in_time)
            self._next_s += self._interval_s
        elif self._may_write.is_set():
            for _ in range(min(_BURST, self._tokens - self._said)):
                self._say()
            self._timer = loop.call_soon(self._go_on)
        else:
            self._timer = loop.call_later(0.001, self._go_on)

    def _say_in_time(self) -> None:
        self._say()
        self._go_on()

    def _say(self) -> None:
        words = _WORDS[self._said % len(_WORDS)].encode()
        text = b"%d " % time.monotonic_ns() if self._text == b"clock" else words
        self._transport.write(_chunk(_HEAD + b'{"content":"%b"},"finish_reason":null}]}\n\n' % text))
        self._said += 1


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port_file: Path) -> None:
    """Listen on a free port of 127.0.0.1, and serve for ever."""
    server = await asyncio.get_running_loop().create_server(Conversation, "127.0.0.1", 0, backlog=512)
    unfinished = port_file.with_suffix(".tmp")
    unfinished.write_text(str(server.sockets[0].getsockname()[1]))
    unfinished.replace(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))

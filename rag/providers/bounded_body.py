"""Bounds the body of a provider's response in bytes and in time, decompression included."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Final

from rag.providers.errors import Translator

ERROR_BYTES: Final = 64 * 1024
ERROR_S: Final = 3.0
"""The body of an error is cut at these limits, and its beginning is read."""
COMPLETION_BYTES: Final = 1024 * 1024
VECTOR_BYTES: Final = 256 * 1024
"""The limit of an embeddings response per text: 8,192 numbers of 32 characters."""

_INFLATED_BYTES: Final = 64 * 1024
"""Other tasks run after so many bytes were decompressed."""
_INFLATES: Final = frozenset({"gzip", "x-gzip", "deflate"})

_limit: ContextVar[int | None] = ContextVar("body_limit", default=None)


@contextmanager
def body_limit(limit: int) -> Iterator[None]:
    """Limit the bodies of successful responses to requests of this task. Without it a stream of events is expected."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


def bound_body(response: Any, translator: Translator) -> None:
    """Replace the stream of a response of httpx or httpx2, whose body has not been read, by a bounded one.

    Raises:
        ProviderError: the body has a compression that cannot be bounded. No compression was requested.
    """
    encodings = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if len(encodings) > 1 or not _INFLATES.issuperset(encodings):
        raise translator.unavailable("compressed its answer, which was not asked for")
    if encodings:
        del response.headers["content-encoding"]  # the stream is decompressed here, not by the library
    limit = _limit.get()
    is_error = not 200 <= response.status_code < 300 or (limit is None and not may_be_events(response))
    limit = ERROR_BYTES if is_error else limit
    if limit is None and not encodings:
        return
    stream = response.stream
    response.stream = _stream_type(stream.__class__)(stream, translator, limit, bool(encodings), is_error)


def may_be_events(response: Any) -> bool:
    """Whether the body of a response may be a stream of events, and not an error in its place."""
    kind = response.headers.get("content-type", "")
    return "json" not in kind and "html" not in kind


class _BoundedStream:
    """A stream that ends, or raises a `ProviderError`, at a limit."""

    def __init__(
        self, stream: Any, translator: Translator, limit: int | None, is_compressed: bool, is_error: bool
    ) -> None:
        self._stream = stream
        self._translator = translator
        self._limit = limit
        self._is_compressed = is_compressed
        self._is_error = is_error

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        left = self._limit
        parts: AsyncGenerator[bytes, None] = self._parts()
        async with aclosing(_within(parts, ERROR_S) if self._is_error else parts) as received:
            async for part in received:
                if left is not None and len(part) > left:
                    if not self._is_error:
                        raise self._translator.unavailable(f"sent an answer of more than {self._limit} bytes")
                    yield part[:left]
                    return
                left = None if left is None else left - len(part)
                yield part

    async def aclose(self) -> None:
        """Close the response's own stream."""
        await self._stream.aclose()

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        if not self._is_compressed:
            async for part in self._stream:
                yield part
            return
        try:
            async for part in _inflated(self._stream):
                yield part
        except zlib.error:
            raise self._translator.unavailable("sent a compressed answer that cannot be decompressed") from None


@cache
def _stream_type(kind: Any) -> Any:
    """Derive the bounded stream from the library's own class of streams, which the library checks for.

    The class is found by its name, which is the same in httpx and httpx2: the SDK decides which of them it uses.
    """
    base = next(base for base in kind.__mro__ if base.__name__ == "AsyncByteStream")
    return type("BoundedStream", (_BoundedStream, base), {})


async def _inflated(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
    async for data in stream:
        while data:
            part = inflater.decompress(data, _INFLATED_BYTES)
            data = inflater.unconsumed_tail
            if part:
                yield part
            if data:
                await asyncio.sleep(0)
        if inflater.eof:
            return


async def _within(parts: AsyncGenerator[bytes, None], limit_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the parts that arrive within some seconds."""
    deadline_s = asyncio.get_running_loop().time() + limit_s
    async with aclosing(parts):
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    part = await anext(parts, None)
            except TimeoutError:
                return
            if part is None:
                return
            yield part

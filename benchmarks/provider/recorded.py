"""The same parsing without a network: the bytes of an answer, recorded once, through each library's own response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpx
import httpx2
import openai
from openrouter import OpenRouter

from benchmarks.provider.readers import (
    KEY,
    PATIENCE_S,
    TYPED_OPENAI,
    TYPED_OPENROUTER,
    Read,
    Readers,
    Tally,
    question,
    typed_openai,
    typed_openrouter,
)
from rag.providers.errors import Translator
from rag.providers.streaming import Limits, Patience, read_parts

OURS: Final = "**protostar**, both adapters"
_HEADERS: Final = {"content-type": "text/event-stream"}
_NOWHERE: Final = "http://127.0.0.1:9/v1"


async def record(base_url: str, content: str) -> bytes:
    """The body of the server's answer."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": content}]}
        return (await client.post(f"{base_url}/chat/completions", json=asked)).content


def one_event_a_read(body: bytes) -> list[bytes]:
    """As tokens arrive from a model that is thinking of the next one."""
    return [event + b"\n\n" for event in body.split(b"\n\n") if event]


def full_reads(body: bytes, size: int = 16_384) -> list[bytes]:
    """As they arrive when the reader is behind."""
    return [body[start : start + size] for start in range(0, len(body), size)]


async def open_readers(pieces: Sequence[bytes], stack: AsyncExitStack) -> Readers:
    """Readers that hear these pieces whatever they ask; what they keep open ends with the stack."""
    legacy_http = httpx.AsyncClient(transport=_Replay(pieces))
    http = httpx2.AsyncClient(transport=_Replay2(pieces))
    sdk = await stack.enter_async_context(openai.AsyncOpenAI(base_url=_NOWHERE, api_key=KEY, http_client=http))
    router = OpenRouter(api_key=KEY, server_url=_NOWHERE, async_client=legacy_http)
    await stack.enter_async_context(router)
    stack.push_async_callback(legacy_http.aclose)
    return Readers(
        ours={OURS: _ours(pieces)},
        typed={TYPED_OPENAI: typed_openai(sdk), TYPED_OPENROUTER: typed_openrouter(router)},
    )


def _ours(pieces: Sequence[bytes]) -> Read:
    async def read(content: str, tally: Tally) -> None:
        response = httpx2.Response(200, headers=_HEADERS, stream=_Body2(pieces))
        patience = Patience("recorded", Limits(first_token_s=PATIENCE_S, stall_s=PATIENCE_S))
        translator = Translator("recorded", api_key=KEY)
        async for part in read_parts(response, question(content), patience=patience, translator=translator):
            if isinstance(part, str):
                tally.add(part)

    return read


class _Pieces:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class _Body(_Pieces, httpx.AsyncByteStream):
    pass


class _Body2(_Pieces, httpx2.AsyncByteStream):
    pass


class _Replay(httpx.AsyncBaseTransport):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=_HEADERS, stream=_Body(self._pieces), request=request)


class _Replay2(httpx2.AsyncBaseTransport):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=_HEADERS, stream=_Body2(self._pieces), request=request)

"""OpenRouter, through its own SDK: the optional dependency `openrouter`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpx
from openrouter import OpenRouter
from openrouter.errors import OpenRouterError, ResponseValidationError
from openrouter.utils import BackoffStrategy, RetryConfig

from rag.providers.adapter import CONNECT_TIMEOUT_S, MOST_REDIRECTS, STREAMED, Adapter, Headers
from rag.providers.bounded_body import may_be_events
from rag.providers.protocol import CompletionRequest, ProviderError
from rag.providers.streaming import Limits

MAX_CONNECTIONS: Final = 1000

# By default the SDK retries a 5xx for up to an hour.
_NO_RETRIES: Final = RetryConfig("none", BackoffStrategy(0, 0, 1, 0), retry_connection_errors=False)


_received: ContextVar[list[httpx.Response]] = ContextVar("received")


class OpenRouterProvider(Adapter):
    """OpenRouter, through its own SDK.

    The SDK sends the requests. The answers are read from its HTTP responses: its typed parsing takes 0.6 ms per token
    and refuses or ignores some answers of real servers.
    """

    name = "openrouter"

    def __init__(self, *, api_key: str, base_url: str | None, limits: Limits, headers: Headers = dict) -> None:
        super().__init__(api_key=api_key, limits=limits, headers=headers)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100),
            follow_redirects=True,
            max_redirects=MOST_REDIRECTS,
            event_hooks=self._event_hooks,
        )
        self._http_sync = httpx.Client()
        self._http.event_hooks["response"].append(_note)
        with self._guard():
            self._sdk = OpenRouter(
                api_key=api_key,
                server_url=base_url,
                client=self._http_sync,  # unused, but the SDK would make one and leave it open
                async_client=self._http,
                retry_config=_NO_RETRIES,
            )
            # The SDK imports them at their first use, which would block the loop under the first question.
            self._chat, self._embeddings = self._sdk.chat, self._sdk.embeddings

    async def close(self) -> None:
        """Close the HTTP connections."""
        self._http_sync.close()
        await self._http.aclose()

    async def _open(self, request: CompletionRequest, stack: AsyncExitStack) -> httpx.Response:
        received = _listen()

        async def close() -> None:
            for response in received:
                await response.aclose()

        # Registered first: the SDK forgets the response if it is cancelled between headers and stream.
        stack.push_async_callback(close)
        await self._chat.send_async(**_arguments(request), **STREAMED)
        return received[-1]

    async def _whole(self, request: CompletionRequest) -> str:
        received = _listen()
        with _raw(received):
            await self._chat.send_async(**_arguments(request), stream=False)
        return await _text(received[-1])

    async def _embed(self, texts: Sequence[str], model: str) -> str:
        received = _listen()
        with _raw(received):
            await self._embeddings.generate_async(input=list(texts), model=model, encoding_format="float")
        return await _text(received[-1])

    def _translate(self, error: Exception, prompt: Sequence[str]) -> ProviderError | None:
        if not isinstance(error, OpenRouterError):
            return None
        return self._translator.of_response(error.status_code, error.body, error.headers, prompt)


def _listen() -> list[httpx.Response]:
    """Return a list to which the responses of this task's next requests are added."""
    received: list[httpx.Response] = []
    _received.set(received)
    return received


async def _note(response: httpx.Response) -> None:
    _received.get().append(response)
    if response.is_success and may_be_events(response):
        # Under another type the SDK would read the events to their end, as the text of an error.
        response.headers["content-type"] = "text/event-stream"


async def _text(response: httpx.Response) -> str:
    await response.aread()
    return response.text


@contextmanager
def _raw(received: list[httpx.Response]) -> Iterator[None]:
    """Ignore the SDK's validation of a success: its bytes are read here."""
    try:
        yield
    except ResponseValidationError:
        if not received or not received[-1].is_success:
            raise


def _arguments(request: CompletionRequest) -> dict[str, Any]:
    # OpenRouter translates `max_tokens` for each model's provider.
    return {
        "model": request.model,
        "messages": list(request.messages),
        "max_tokens": request.max_output_tokens,
    }

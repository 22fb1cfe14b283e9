"""OpenRouter, through its own SDK: the optional dependency `openrouter`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpx
from openrouter import OpenRouter
from openrouter.errors import OpenRouterError, ResponseValidationError
from openrouter.utils import BackoffStrategy, RetryConfig

from rag.providers.answer import completion_of, json_object, prompt_texts, vectors_of
from rag.providers.errors import Translator
from rag.providers.protocol import Completion, CompletionRequest, StreamPart
from rag.providers.streaming import Limits, Patience, read_parts

CONNECT_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 1000

# Left alone, the SDK retries a 5xx for up to an hour.
_NO_RETRIES: Final = RetryConfig("none", BackoffStrategy(0, 0, 1, 0), retry_connection_errors=False)


_received: ContextVar[list[httpx.Response]] = ContextVar("received")


class OpenRouterProvider:
    """OpenRouter. It retries nothing; `Provider` says the rest.

    The SDK asks; the answers are read from its HTTP responses, because its typed parsing takes 0.6 ms a token
    and refuses, or passes over, what a server may send in their place.
    """

    name = "openrouter"

    def __init__(self, *, api_key: str, base_url: str | None, limits: Limits) -> None:
        self._limits = limits
        self._translator = Translator(self.name, api_key=api_key)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100),
            follow_redirects=True,
            event_hooks={"response": [_note]},
        )
        self._http_sync = httpx.Client()
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

    @asynccontextmanager
    async def stream(self, request: CompletionRequest) -> AsyncIterator[AsyncIterator[StreamPart]]:
        """Open a stream; leaving the context closes the upstream request."""
        patience = Patience(self.name, self._limits)
        async with AsyncExitStack() as stack:
            with self._guard(prompt_texts(request)):
                response = await patience.wait(self._open(request, stack))
            parts = read_parts(response, request, patience=patience, translator=self._translator)
            yield await stack.enter_async_context(aclosing(parts))

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask for a whole answer; it has the time of a first token."""
        patience = Patience(self.name, self._limits)
        received = _listen()
        with self._guard(prompt_texts(request)), _raw(received):
            await patience.wait(self._chat.send_async(**_arguments(request), stream=False))
        return completion_of(json_object(received[-1].text, self._translator), request, self._translator)

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """Embed texts in one request: one vector a text, in their order. It has the time of a first token."""
        if not texts:
            return []
        patience = Patience(self.name, self._limits)
        received = _listen()
        generate = self._embeddings.generate_async
        with self._guard(texts), _raw(received):
            await patience.wait(generate(input=list(texts), model=model, encoding_format="float"))
        return vectors_of(json_object(received[-1].text, self._translator), texts, self._translator)

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
        asked = _arguments(request) | {"stream": True, "stream_options": {"include_usage": True}}
        await self._chat.send_async(**asked)
        return received[-1]

    @contextmanager
    def _guard(self, prompt: Sequence[str] = ()) -> Iterator[None]:
        with self._translator.guard():
            try:
                yield
            except OpenRouterError as error:
                translated = self._translator.of_response(error.status_code, error.body, error.headers, prompt)
                raise translated from None


def _listen() -> list[httpx.Response]:
    """A list that fills with the responses of what this task asks from now on."""
    received: list[httpx.Response] = []
    _received.set(received)
    return received


async def _note(response: httpx.Response) -> None:
    _received.get().append(response)


@contextmanager
def _raw(received: list[httpx.Response]) -> Iterator[None]:
    """Pass over the SDK's opinion of a success: its bytes are read anyway."""
    try:
        yield
    except ResponseValidationError:
        if not received or not received[-1].is_success:
            raise


def _arguments(request: CompletionRequest) -> dict[str, Any]:
    # OpenRouter puts `max_tokens` into the words of each model's provider.
    return {
        "model": request.model,
        "messages": list(request.messages),
        "max_tokens": request.max_output_tokens,
    }

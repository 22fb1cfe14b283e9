"""The base class of adapters: limits, reading of answers, and one family of errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

from rag.providers.answer import completion_of, json_object, prompt_texts, vectors_of
from rag.providers.bounded_body import COMPLETION_BYTES, VECTOR_BYTES, body_limit, bound_body
from rag.providers.errors import Translator
from rag.providers.protocol import Completion, CompletionRequest, ProviderError, StreamPart
from rag.providers.streaming import Limits, Patience, Response, read_parts

CONNECT_TIMEOUT_S: Final = 10.0
MOST_REDIRECTS: Final = 5

Headers = Callable[[], Mapping[str, str]]
"""Returns further headers for the request that the running task is about to send."""

STREAMED: Final[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}
"""Further fields of a request for a streamed answer."""


class Adapter(ABC):
    """A `Provider` without the requests themselves. It retries nothing.

    A subclass sends requests through its library, without the library's time limits and retries: the limits on tokens
    are kept here, and a keep-alive would extend a library's read limit. Its exceptions become a `ProviderError`.
    """

    name: str

    def __init__(self, *, api_key: str, limits: Limits, headers: Headers) -> None:
        self._limits = limits
        self._headers = headers
        self._translator = Translator(self.name, api_key=api_key)

    @abstractmethod
    async def _open(self, request: CompletionRequest, stack: AsyncExitStack) -> Response:
        """Request a streamed answer. Put the closing of the response on the stack before the first await."""

    @abstractmethod
    async def _whole(self, request: CompletionRequest) -> str:
        """Request a whole answer and return the body."""

    @abstractmethod
    async def _embed(self, texts: Sequence[str], model: str) -> str:
        """Request vectors and return the body."""

    @abstractmethod
    def _translate(self, error: Exception, prompt: Sequence[str]) -> ProviderError | None:
        """Translate an exception that the library made of an error response; return None for all others."""

    @abstractmethod
    async def close(self) -> None:
        """Close the HTTP connections."""

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
        """Request a whole answer within the limit of a first token."""
        patience = Patience(self.name, self._limits)
        with self._guard(prompt_texts(request)), body_limit(COMPLETION_BYTES):
            text = await patience.wait(self._whole(request))
        return completion_of(json_object(text, self._translator), request, self._translator)

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """Embed texts in one request, within the limit of a first token: one vector per text, in the same order."""
        if not texts:
            return []
        patience = Patience(self.name, self._limits)
        with self._guard(texts), body_limit(VECTOR_BYTES * (len(texts) + 1)):
            text = await patience.wait(self._embed(texts, model))
        return vectors_of(json_object(text, self._translator), texts, self._translator)

    @property
    def _event_hooks(self) -> dict[str, list[Callable[[Any], Awaitable[None]]]]:
        """The event hooks of the client of httpx or httpx2 through which the library asks."""
        return {"request": [self._add_headers], "response": [self._bound_body]}

    async def _add_headers(self, request: Any) -> None:
        request.headers.update(self._headers())
        request.headers["Accept-Encoding"] = "identity"

    async def _bound_body(self, response: Any) -> None:
        bound_body(response, self._translator)

    @contextmanager
    def _guard(self, prompt: Sequence[str] = ()) -> Iterator[None]:
        with self._translator.guard():
            try:
                yield
            except Exception as error:
                translated = self._translate(error, prompt)
                if translated is None:
                    raise
                raise translated from None

"""What every adapter shares: the limits, the reading of answers, the one family of errors."""

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
"""Further headers for the request that the running task is about to send."""

STREAMED: Final[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}
"""What a request says further if its answer is to be streamed."""


class Adapter(ABC):
    """A `Provider` of which only the asking is missing. It retries nothing.

    A subclass asks through its library, without that library's time limits and retries: the limits on tokens hold
    here, and a library's hold for each read, which a keep-alive is. What it raises becomes a `ProviderError`.
    """

    name: str

    def __init__(self, *, api_key: str, limits: Limits, headers: Headers) -> None:
        self._limits = limits
        self._headers = headers
        self._translator = Translator(self.name, api_key=api_key)

    @abstractmethod
    async def _open(self, request: CompletionRequest, stack: AsyncExitStack) -> Response:
        """Ask for a streamed answer; what closes its response goes on the stack before the first await."""

    @abstractmethod
    async def _whole(self, request: CompletionRequest) -> str:
        """Ask for a whole answer; returns the body."""

    @abstractmethod
    async def _embed(self, texts: Sequence[str], model: str) -> str:
        """Ask for vectors; returns the body."""

    @abstractmethod
    def _translate(self, error: Exception, prompt: Sequence[str]) -> ProviderError | None:
        """The error for a response of failure that the library has made an exception of; None for all others."""

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
        """Ask for a whole answer; it has the time of a first token."""
        patience = Patience(self.name, self._limits)
        with self._guard(prompt_texts(request)), body_limit(COMPLETION_BYTES):
            text = await patience.wait(self._whole(request))
        return completion_of(json_object(text, self._translator), request, self._translator)

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """Embed texts in one request: one vector a text, in their order. It has the time of a first token."""
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

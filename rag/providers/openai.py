"""Any OpenAI-compatible server, through the openai SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

import openai

from rag.providers.answer import completion_of, json_object, prompt_texts, vectors_of
from rag.providers.errors import Translator
from rag.providers.protocol import Completion, CompletionRequest, StreamPart
from rag.providers.streaming import Limits, Patience, Response, read_parts

CONNECT_TIMEOUT_S: Final = 10.0


class OpenAIProvider:
    """A server that speaks OpenAI's protocol. It retries nothing; `Provider` says the rest."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str | None, limits: Limits) -> None:
        self._limits = limits
        self._translator = Translator(self.name, api_key=api_key)
        # The limits on tokens are ours: the SDK's hold for each read, and a keep-alive is a read.
        timeout = openai.Timeout(None, connect=CONNECT_TIMEOUT_S)
        with self._guard():
            self._client = openai.AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout)
        self._models_without_max_tokens: set[str] = set()

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
        with self._guard(prompt_texts(request)):
            text = await patience.wait(self._whole(request))
        return completion_of(json_object(text, self._translator), request, self._translator)

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """Embed texts in one request: one vector a text, in their order. It has the time of a first token."""
        if not texts:
            return []
        create = self._client.embeddings.with_raw_response.create
        patience = Patience(self.name, self._limits)
        with self._guard(texts):
            raw = await patience.wait(create(input=list(texts), model=model, encoding_format="float"))
        return vectors_of(json_object(raw.http_response.text, self._translator), texts, self._translator)

    async def close(self) -> None:
        """Close the HTTP connections."""
        await self._client.close()

    async def _open(self, request: CompletionRequest, stack: AsyncExitStack) -> Response:
        create = self._client.chat.completions.with_streaming_response.create
        streamed: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        try:
            opened = await stack.enter_async_context(create(**self._arguments(request), **streamed))
        except openai.BadRequestError as error:
            self._learn(error, request.model)
            opened = await stack.enter_async_context(create(**self._arguments(request), **streamed))
        response: Response = opened.http_response
        return response

    async def _whole(self, request: CompletionRequest) -> str:
        create = self._client.chat.completions.with_raw_response.create
        try:
            raw = await create(**self._arguments(request))
        except openai.BadRequestError as error:
            self._learn(error, request.model)
            raw = await create(**self._arguments(request))
        text: str = raw.http_response.text
        return text

    def _arguments(self, request: CompletionRequest) -> dict[str, Any]:
        # Every compatible server knows `max_tokens`, and many pass over the newer name, which would leave an
        # answer without a limit. OpenAI's newer models refuse the old name, and say so: `_learn`.
        newer = request.model in self._models_without_max_tokens
        limit = "max_completion_tokens" if newer else "max_tokens"
        return {"model": request.model, "messages": list(request.messages), limit: request.max_output_tokens}

    def _learn(self, error: openai.BadRequestError, model: str) -> None:
        """Note that a model refuses `max_tokens`, so that the same request can be put in its words.

        Raises:
            openai.BadRequestError: that is not what `error` says.
        """
        refused = error.param == "max_tokens" and error.code == "unsupported_parameter"
        if not refused or model in self._models_without_max_tokens:
            raise error
        self._models_without_max_tokens.add(model)

    @contextmanager
    def _guard(self, prompt: Sequence[str] = ()) -> Iterator[None]:
        with self._translator.guard():
            try:
                yield
            except openai.APIStatusError as error:
                response = error.response
                text = "" if error.body is None else response.text  # without a body there is none to read
                translated = self._translator.of_response(response.status_code, text, response.headers, prompt)
                raise translated from None

"""Any OpenAI-compatible server, through the openai SDK."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import openai

from rag.providers.adapter import CONNECT_TIMEOUT_S, MOST_REDIRECTS, STREAMED, Adapter, Headers
from rag.providers.protocol import CompletionRequest, ProviderError
from rag.providers.streaming import Limits, Response


class OpenAIProvider(Adapter):
    """A server that speaks OpenAI's protocol."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str | None, limits: Limits, headers: Headers = dict) -> None:
        super().__init__(api_key=api_key, limits=limits, headers=headers)
        timeout = openai.Timeout(None, connect=CONNECT_TIMEOUT_S)
        with self._guard():
            self._client = openai.AsyncOpenAI(
                api_key=api_key,
                base_url=base_url,
                max_retries=0,
                timeout=timeout,
                # The SDK's own faster transport: reading a token through it costs half as much.
                http_client=openai.DefaultAioHttpClient(
                    timeout=timeout, max_redirects=MOST_REDIRECTS, event_hooks=self._event_hooks
                ),
            )
        self._models_without_max_tokens: set[str] = set()

    async def close(self) -> None:
        """Close the HTTP connections."""
        await self._client.close()

    async def _open(self, request: CompletionRequest, stack: AsyncExitStack) -> Response:
        create = self._client.chat.completions.with_streaming_response.create
        try:
            opened = await stack.enter_async_context(create(**self._arguments(request), **STREAMED))
        except openai.BadRequestError as error:
            self._learn(error, request.model)
            opened = await stack.enter_async_context(create(**self._arguments(request), **STREAMED))
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

    async def _embed(self, texts: Sequence[str], model: str) -> str:
        create = self._client.embeddings.with_raw_response.create
        raw = await create(input=list(texts), model=model, encoding_format="float")
        text: str = raw.http_response.text
        return text

    def _translate(self, error: Exception, prompt: Sequence[str]) -> ProviderError | None:
        if not isinstance(error, openai.APIStatusError):
            return None
        response = error.response
        text = "" if error.body is None else response.text  # None: the body was not read
        return self._translator.of_response(response.status_code, text, response.headers, prompt)

    def _arguments(self, request: CompletionRequest) -> dict[str, Any]:
        # Every compatible server knows `max_tokens`, and many ignore the newer name, which would leave an answer
        # without a limit. OpenAI's newer models refuse the old name with an error: `_learn`.
        newer = request.model in self._models_without_max_tokens
        limit = "max_completion_tokens" if newer else "max_tokens"
        return {"model": request.model, "messages": list(request.messages), limit: request.max_output_tokens}

    def _learn(self, error: openai.BadRequestError, model: str) -> None:
        """Note that a model refuses `max_tokens`, so that the same request can be sent with the newer name.

        Raises:
            openai.BadRequestError: `error` has another cause.
        """
        refused = error.param == "max_tokens" and error.code == "unsupported_parameter"
        if not refused or model in self._models_without_max_tokens:
            raise error
        self._models_without_max_tokens.add(model)

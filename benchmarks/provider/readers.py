"""Who reads a streamed answer: our adapters, and the SDKs' own typed streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import openai
from openrouter import OpenRouter
from openrouter.components import ChatUserMessageTypedDict

from rag.providers import ChatMessage, CompletionRequest, Provider, ProviderName, make_provider

KEY: Final = "sk-none"
MODEL: Final = "m"
MAX_OUTPUT_TOKENS: Final = 1_000_000
PATIENCE_S: Final = 300.0


class Tally:
    """The tokens that were read, and the processor's time since the first one."""

    def __init__(self) -> None:
        self.tokens = 0
        self.characters = 0
        self._start_s = 0.0

    def add(self, text: str) -> None:
        """A token was read. What came before the first one is asking, which is not what is measured."""
        if not self.tokens:
            self._start_s = time.process_time()
        self.tokens += 1
        self.characters += len(text)

    def us_a_token(self) -> float:
        """What a token cost, all threads of this process together."""
        return (time.process_time() - self._start_s) * 1e6 / (self.tokens - 1)


Read = Callable[[str, Tally], Coroutine[Any, Any, None]]
"""Asks a question and reads its answer to the end."""


@dataclass(frozen=True, slots=True)
class Readers:
    """All that are compared, by name; made by `open_readers`."""

    ours: dict[str, Read]
    typed: dict[str, Read]

    @property
    def all(self) -> dict[str, Read]:
        """In the order of the table."""
        return self.ours | self.typed


OURS_OPENAI: Final = "**protostar**, `openai`"
OURS_OPENROUTER: Final = "**protostar**, `openrouter`"
TYPED_OPENAI: Final = "typed OpenAI SDK"
TYPED_OPENAI_AIOHTTP: Final = "typed OpenAI SDK, its aiohttp transport"
TYPED_OPENROUTER: Final = "typed OpenRouter SDK"


async def open_readers(base_url: str, stack: AsyncExitStack) -> Readers:
    """Readers of one server; what they keep open ends with the stack."""
    plain = await stack.enter_async_context(openai.AsyncOpenAI(base_url=base_url, api_key=KEY))
    aiohttp = await stack.enter_async_context(
        openai.AsyncOpenAI(base_url=base_url, api_key=KEY, http_client=openai.DefaultAioHttpClient())
    )
    router = await stack.enter_async_context(OpenRouter(api_key=KEY, server_url=base_url))
    return Readers(
        ours={OURS_OPENAI: _ours("openai", base_url, stack), OURS_OPENROUTER: _ours("openrouter", base_url, stack)},
        typed={
            TYPED_OPENAI: typed_openai(plain),
            TYPED_OPENAI_AIOHTTP: typed_openai(aiohttp),
            TYPED_OPENROUTER: typed_openrouter(router),
        },
    )


def question(content: str) -> CompletionRequest:
    """A question as a worker asks it."""
    messages: list[ChatMessage] = [{"role": "user", "content": content}]
    return CompletionRequest(MODEL, messages, MAX_OUTPUT_TOKENS)


def typed_openai(client: openai.AsyncOpenAI) -> Read:
    """`client.chat.completions.create(stream=True)`, as its documentation shows it."""

    async def read(content: str, tally: Tally) -> None:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": content}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                tally.add(text)

    return read


def typed_openrouter(client: OpenRouter) -> Read:
    """`client.chat.send_async(stream=True)`, as its documentation shows it."""

    async def read(content: str, tally: Tally) -> None:
        messages: list[ChatUserMessageTypedDict] = [{"role": "user", "content": content}]
        stream = await client.chat.send_async(model=MODEL, messages=messages, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    tally.add(text)

    return read


def _ours(name: ProviderName, base_url: str, stack: AsyncExitStack) -> Read:
    provider: Provider = make_provider(
        name, api_key=KEY, base_url=base_url, first_token_timeout_s=PATIENCE_S, stall_timeout_s=PATIENCE_S
    )
    stack.push_async_callback(provider.close)

    async def read(content: str, tally: Tally) -> None:
        async with provider.stream(question(content)) as parts:
            async for part in parts:
                if isinstance(part, str):
                    tally.add(part)

    return read

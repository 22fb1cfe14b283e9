"""Makes providers and asks them, for tests of all adapters."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Final, Protocol, cast

import pytest

from rag.providers import ChatMessage, CompletionRequest, Finish, Provider, ProviderError, StreamPart, make_provider
from rag.providers.streaming import Limits
from tests.support.stack_under_test import ROOT

KEY: Final = "sk-test-0123456789abcdef"
QUESTION: Final = "이 질문은 어떤 오류 문장에도 나타나면 안 됩니다"
MESSAGES: Final[list[ChatMessage]] = [{"role": "user", "content": QUESTION}]
REQUEST: Final = CompletionRequest(model="some-model", messages=MESSAGES, max_output_tokens=100)
PIECES: Final = ["안녕", "하세요", " 👋🏽", "\n끝."]
SHORT_S: Final = 0.3


class Make(Protocol):
    """Makes a provider of one kind, by default with long time limits."""

    def __call__(
        self, base_url: str, *, api_key: str = KEY, first_token_s: float = 20, stall_s: float = 20
    ) -> Provider: ...


def shipped(name: str) -> Make:
    def make(base_url: str, *, api_key: str = KEY, first_token_s: float = 20, stall_s: float = 20) -> Provider:
        return make_provider(
            name,  # type: ignore[arg-type]
            api_key=api_key,
            base_url=base_url,
            first_token_timeout_s=first_token_s,
            stall_timeout_s=stall_s,
        )

    return make


def documented() -> Make:
    """The adapter that `docs/providers.md` shows, run as it stands there."""
    [source] = re.findall(r"^```python\n(\"\"\".*?)^```", (ROOT / "docs" / "providers.md").read_text(), re.M | re.S)
    module = ModuleType("documented")
    exec(compile(source, "docs/providers.md", "exec"), module.__dict__)

    def make(base_url: str, *, api_key: str = KEY, first_token_s: float = 20, stall_s: float = 20) -> Provider:
        limits = Limits(first_token_s=first_token_s, stall_s=stall_s)
        return cast(Provider, module.PlainProvider(api_key=api_key, base_url=base_url, limits=limits))

    return make


async def read_into(texts: list[StreamPart], provider: Provider) -> None:
    async with provider.stream(REQUEST) as parts:
        async for part in parts:
            texts.append(part)


async def streamed(provider: Provider, request: CompletionRequest = REQUEST) -> tuple[list[str], Finish]:
    texts: list[str] = []
    finish: Finish | None = None
    async with provider.stream(request) as parts:
        async for part in parts:
            assert finish is None, "a part came after the finish"
            if isinstance(part, Finish):
                finish = part
            else:
                assert part, "an empty text is no part"
                texts.append(part)
    assert finish is not None
    return texts, finish


async def error_of(provider: Provider, *, whole: bool = False) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        await (provider.complete(REQUEST) if whole else streamed(provider))
    shown = f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"
    assert KEY not in shown
    assert QUESTION not in shown
    assert str(raised.value).startswith(provider.name)
    return raised.value

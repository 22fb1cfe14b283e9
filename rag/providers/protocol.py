"""The protocol of a provider: stream, complete, embed, close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from protostar_client.contract import Usage


class ChatMessage(TypedDict):
    """One message of a prompt, as the OpenAI API names it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One question to a model."""

    model: str
    messages: Sequence[ChatMessage]
    max_output_tokens: int
    input_tokens: int = 0
    """The tokens of the messages, as counted; 0 if not counted."""

    @property
    def most_tokens(self) -> int:
        """The tokens of the prompt and of the longest answer, as a provider counts them before it answers."""
        return self.input_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Finish:
    """The last part of a stream. `usage` is None where the provider reports none."""

    finish_reason: str
    model: str
    usage: Usage | None


StreamPart = str | Finish
"""Text of one or more tokens, never empty; then one `Finish`, last, and only if a finish reason arrived."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: str
    model: str
    usage: Usage | None


class Provider(Protocol):
    """A model server. Every method raises only `ProviderError`, and none retries."""

    name: str

    def stream(self, request: CompletionRequest) -> AbstractAsyncContextManager[AsyncIterator[StreamPart]]:
        """Open a stream; leaving the context closes the upstream request. Both limits on tokens hold."""
        ...

    async def complete(self, request: CompletionRequest) -> Completion:
        """Request a whole answer within the limit of a first token."""
        ...

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """Embed texts in one request, within the limit of a first token: one vector per text, in the same order."""
        ...

    async def close(self) -> None:
        """Close the HTTP connections."""
        ...


class ProviderError(Exception):
    """A provider did not answer. The message is safe to show: it never contains a key or a prompt."""


class RateLimitedError(ProviderError):
    """The provider asks to wait (429). `retry_after_s` is None where it names no time."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProviderUnavailableError(ProviderError):
    """The provider is down, broke off or ended without a finish reason. Another attempt may succeed."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StalledError(ProviderError):
    """No token came within the first-token or the stall limit. Another attempt may succeed."""


class ProviderBusyError(ProviderError):
    """The model is limited or down, so that no request is made before `retry_after_s`.

    `longest_wait_s` is the longest useful wait in all. `is_down` is true for a fault and false for a limit.
    """

    def __init__(self, message: str, *, retry_after_s: float, longest_wait_s: float, is_down: bool) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.longest_wait_s = longest_wait_s
        self.is_down = is_down


class ContextLengthError(ProviderError):
    """Prompt and answer do not fit the model's window. `model` is empty where it is not known."""

    def __init__(self, message: str, *, model: str = "") -> None:
        super().__init__(message)
        self.model = model


class ContentFilteredError(ProviderError):
    """The provider refused the content."""


class FatalProviderError(ProviderError):
    """The provider refuses and will go on refusing: a bad key, an unknown model, a wrong request."""

"""Providers of language models: the protocol, the adapters, and one family of errors."""

from rag.providers.factory import ProviderName, make_provider, provider_from
from rag.providers.protocol import (
    ChatMessage,
    Completion,
    CompletionRequest,
    ContentFilteredError,
    ContextLengthError,
    FatalProviderError,
    Finish,
    Provider,
    ProviderBusyError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
    StreamPart,
)

__all__ = [
    "ChatMessage",
    "Completion",
    "CompletionRequest",
    "ContentFilteredError",
    "ContextLengthError",
    "FatalProviderError",
    "Finish",
    "Provider",
    "ProviderBusyError",
    "ProviderError",
    "ProviderUnavailableError",
    "RateLimitedError",
    "StalledError",
    "StreamPart",
    "ProviderName",
    "make_provider",
    "provider_from",
]

"""What every provider of a language model offers, and the one family of its errors."""

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

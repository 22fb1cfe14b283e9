"""Making the provider that the settings name."""

from __future__ import annotations

from protostar.settings import ProviderName
from rag.providers.adapter import Headers
from rag.providers.openai import OpenAIProvider
from rag.providers.protocol import FatalProviderError, Provider
from rag.providers.streaming import Limits

__all__ = ["ProviderName", "make_provider"]


def make_provider(
    name: ProviderName,
    *,
    api_key: str,
    base_url: str | None = None,
    first_token_timeout_s: float,
    stall_timeout_s: float,
    headers: Headers = dict,
) -> Provider:
    """Make a provider; `base_url` None is the SDK's own. Close it when it is no longer needed.

    `headers` says what else each request carries.

    Raises:
        FatalProviderError: the SDK is not installed, or does not take the key or the base URL.
    """
    limits = Limits(first_token_s=first_token_timeout_s, stall_s=stall_timeout_s)
    if name == "openai":
        return OpenAIProvider(api_key=api_key, base_url=base_url, limits=limits, headers=headers)
    try:
        from rag.providers.openrouter import OpenRouterProvider
    except ModuleNotFoundError as error:
        raise FatalProviderError(
            f"OpenRouter's SDK can't be used ({error.name} is not installed); "
            "install the extra: pip install 'protostar[openrouter]'"
        ) from None
    return OpenRouterProvider(api_key=api_key, base_url=base_url, limits=limits, headers=headers)

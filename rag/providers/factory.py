"""Makes the provider that the settings name."""

from __future__ import annotations

from typing import Final

from protostar.settings import CorpusSettings, ProviderName, Settings
from rag.providers.adapter import Headers
from rag.providers.protocol import FatalProviderError, Provider
from rag.providers.streaming import Limits

__all__ = ["ProviderName", "make_provider", "provider_from"]

_TIMEOUT_S: Final = 60.0  # where no chat model answers


def provider_from(settings: CorpusSettings, *, timeout_s: float | None = None, headers: Headers = dict) -> Provider:
    """Make the provider that the settings name, with their key and base URL. Close it when it is no longer needed.

    `timeout_s` takes the place of both limits on the time without a token. `headers` are added to each request.

    Raises:
        FatalProviderError: as `make_provider`.
    """
    first_token_s = stall_s = timeout_s or _TIMEOUT_S
    if timeout_s is None and isinstance(settings, Settings):
        first_token_s, stall_s = settings.first_token_timeout, settings.stall_timeout
    is_openrouter = settings.provider == "openrouter"
    key = settings.openrouter_api_key if is_openrouter else settings.openai_api_key
    base_url = settings.openrouter_base_url if is_openrouter else settings.openai_base_url
    return make_provider(
        settings.provider,
        api_key=key.get_secret_value() if key else "",
        base_url=base_url.get_secret_value() if base_url else None,
        first_token_timeout_s=first_token_s,
        stall_timeout_s=stall_s,
        headers=headers,
    )


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
    # Each SDK is imported where it is used: OpenAI's takes 0.4 s, which every command that asks no model would pay.
    if name == "openai":
        from rag.providers.openai import OpenAIProvider

        return OpenAIProvider(api_key=api_key, base_url=base_url, limits=limits, headers=headers)
    try:
        from rag.providers.openrouter import OpenRouterProvider
    except ModuleNotFoundError as error:
        raise FatalProviderError(
            f"OpenRouter's SDK can't be used ({error.name} is not installed); "
            "install the extra: pip install 'protostar[openrouter]'"
        ) from None
    return OpenRouterProvider(api_key=api_key, base_url=base_url, limits=limits, headers=headers)

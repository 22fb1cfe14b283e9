"""Checks of the models: asks each one short question through the adapters of the workers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

from protostar.cli.checks.finding import Finding, note, ok, problem, skipped, told
from protostar.cli.checks.site import Site
from protostar.settings import Settings
from rag.providers import (
    CompletionRequest,
    FatalProviderError,
    Provider,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
    provider_from,
)
from rag.providers.vendor_messages import Meaning, means

ANSWER_S: Final = 5.0
"""The time that a model has for a few tokens."""

SLOW_S: Final = 2.0

_TOKENS: Final = 16  # some models refuse to answer with fewer


async def warm_up(settings: Settings) -> None:
    """Load the provider's SDK before anything is timed, because loading may block for seconds."""
    with suppress(FatalProviderError):  # said when the provider is made to be asked
        await provider_from(settings).close()


async def models(site: Site) -> list[Finding]:
    """Check that each configured model accepts the key, exists and answers in time."""
    settings = site.settings
    key_name, url_name = _variables(settings)
    site.require("PROTOSTAR_CHAT_MODEL", "PROTOSTAR_PROVIDER", key_name, url_name)
    key = settings.openrouter_api_key if settings.provider == "openrouter" else settings.openai_api_key
    if key is None:
        return [skipped("model", f"{key_name} is not set")]
    try:
        provider = provider_from(settings, timeout_s=ANSWER_S)
    except FatalProviderError as error:
        return [problem("model", *told(str(error)))]
    try:
        asked = [_ask(settings, provider, model, role) for model, role in _named(settings).items()]
        return list(await asyncio.gather(*asked))
    finally:
        await provider.close()


def _variables(settings: Settings) -> tuple[str, str]:
    prefix = "OPENROUTER" if settings.provider == "openrouter" else "OPENAI"
    return f"{prefix}_API_KEY", f"{prefix}_BASE_URL"


def _named(settings: Settings) -> dict[str, str]:
    """Return each model with the variable that names it."""
    named = {settings.chat_model: "PROTOSTAR_CHAT_MODEL"}
    named |= {model: "PROTOSTAR_FALLBACK_MODELS" for model in settings.fallback_models if model not in named}
    named.setdefault(settings.summary_model_or_chat, "PROTOSTAR_SUMMARY_MODEL")
    if settings.embedding_model:
        named[settings.embedding_model] = "PROTOSTAR_EMBEDDING_MODEL"
    return named


async def _ask(settings: Settings, provider: Provider, model: str, variable: str) -> Finding:
    check = f"model {model}"
    began_s = time.perf_counter()
    try:
        if variable == "PROTOSTAR_EMBEDDING_MODEL":
            await provider.embed(["ok"], model=model)
        else:
            question = CompletionRequest(model, [{"role": "user", "content": "Say: ok"}], _TOKENS)
            await provider.complete(question)
    except ProviderError as error:
        return _failure(check, settings, error, model, variable)
    took_s = time.perf_counter() - began_s
    if took_s > SLOW_S:
        says = f"the provider is slow: a few tokens took {took_s:.1f} s"
        return note(
            check, says, "look at the provider's status page; PROTOSTAR_FALLBACK_MODELS names models to fall back on"
        )
    return ok(check, f"answers in {took_s * 1000:.0f} ms")


def _failure(check: str, settings: Settings, error: ProviderError, model: str, variable: str) -> Finding:
    url = _variables(settings)[1]
    match error:
        case StalledError():
            says = f"the provider is slow: no answer within {ANSWER_S:g} s"
            remedy = (
                "look at the provider's status page or at the server's load; PROTOSTAR_FALLBACK_MODELS helps meanwhile"
            )
            return problem(check, says, remedy)
        case RateLimitedError():
            return note(check, f"the provider asks to wait: {error}", "ask it for higher limits if jobs wait for long")
        case ProviderUnavailableError():
            remedy = f"check {url}, the network and the provider's status page"
            return problem(check, f"the provider is unreachable or down: {error}", remedy)
        case FatalProviderError():
            return _refusal(check, settings, error, model, variable)
        case _:
            return problem(check, f"the model can't be asked: {error}", f"check {variable} and {url}")


def _refusal(check: str, settings: Settings, error: FatalProviderError, model: str, variable: str) -> Finding:
    key, url = _variables(settings)
    said = str(error)
    if "answered 402" in said or means(Meaning.NO_CREDIT, said):
        return problem(check, f"the account has no credit: {said}", f"top it up, or use another {key}")
    # The status says more than the words: a server may speak of models where it refuses a key.
    is_unknown = "answered 404" in said or means(Meaning.MODEL_UNKNOWN, said)
    names_key = "answered 401" in said or "answered 403" in said
    if names_key or (not is_unknown and means(Meaning.KEY_REFUSED, said)):
        return problem(check, f"the key is refused: {said}", f"check {key}, and that it belongs to the server of {url}")
    if is_unknown:
        remedy = f"set {variable} to a model that the server has, or check {url}"
        return problem(check, f"the model {model} is unknown: {said}", remedy)
    return problem(check, f"the model refuses: {said}", f"check {variable} and {url}")

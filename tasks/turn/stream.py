"""Streams an answer from the first model that gives one, into the turn's events."""

from __future__ import annotations

from protostar_client.contract import Usage
from protostar_client.normalization import clean_text

from rag.providers import ContextLengthError, Finish, Provider
from rag.providers.fallback import stream_with_fallback
from tasks.billing.charges import OpenCharge
from tasks.context import Context, Tools
from tasks.monitoring import metrics
from tasks.turn.request import fit_smaller_prompt, still_too_long
from tasks.turn.values import FittedPrompt, Gathered, StreamedAnswer, Turn, Unfinished


async def stream_answer(
    ctx: Context, turn: Turn, gathered: Gathered, prompt: FittedPrompt, charge: OpenCharge
) -> StreamedAnswer:
    """Ask the models, and once more with a smaller prompt where they find it too long.

    Raises:
        ProviderBusyError: no model may be asked; nothing was sent.
        ContextLengthError: the smaller prompt is too long, too, or the prompt cannot be made smaller.
        ProviderError: the answer did not come, or broke off.
    """
    tools = ctx["tools"]
    ctx["unfinished"] = Unfinished(turn, prompt, charge)
    async with tools.provider.admitted(tools.settings.chat_models, tokens=prompt.request.most_tokens) as provider:
        turn.events.start(prompt.request.model)
        try:
            return await _stream(tools, provider, turn, prompt, charge)
        except ContextLengthError as error:
            if turn.events.text:
                raise
            prompt = await fit_smaller_prompt(tools, turn, gathered, prompt, error)
        ctx["unfinished"] = Unfinished(turn, prompt, charge)
        try:
            return await _stream(tools, provider, turn, prompt, charge)
        except ContextLengthError as error:
            raise still_too_long(tools.settings, prompt.tokens, error) from None


async def _stream(
    tools: Tools, provider: Provider, turn: Turn, prompt: FittedPrompt, charge: OpenCharge
) -> StreamedAnswer:
    settings = tools.settings
    await charge.send(input_tokens=prompt.tokens)
    async with stream_with_fallback(provider, prompt.request, settings.fallback_models) as (model, parts):
        began_s = metrics.first_token(model, turn.claim)
        charge.answered_by(model)
        turn.events.sources(prompt.sources)  # only now, when a model has taken the prompt that holds them
        async for part in parts:
            if isinstance(part, Finish):
                return _finished(tools, turn, prompt, charge, part, began_s)
            if text := clean_text(part):
                turn.events.append_text(text)
    raise AssertionError("a provider's stream ends with a Finish or an error")


def _finished(
    tools: Tools, turn: Turn, prompt: FittedPrompt, charge: OpenCharge, finish: Finish, began_s: float
) -> StreamedAnswer:
    asked = charge.model
    if finish.usage is not None and asked == tools.settings.chat_model:
        tools.ratios.said(finish.usage.input_tokens, counted=prompt.count.uncorrected(prompt.tokens))
    usage = finish.usage or estimated_usage(turn, prompt)
    metrics.answered(asked, usage.output_tokens, began_s=began_s)
    charge.add(usage, model=clean_text(finish.model))
    return StreamedAnswer(prompt, charge, finish.finish_reason, charge.model, usage)


def estimated_usage(turn: Turn, prompt: FittedPrompt) -> Usage:
    """Count what the prompt and the text so far come to, for a provider that names no usage."""
    return Usage(input_tokens=prompt.tokens, output_tokens=prompt.count(turn.events.text), cost=None, estimated=True)

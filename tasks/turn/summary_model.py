"""Asks the summary model for a text that must follow rules, and once more where the text breaks one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
from protostar_client.contract import ErrorCode, JobError
from protostar_client.normalization import clean_text

from rag.prompt.budget import PromptTooLongError
from rag.providers import ChatMessage, CompletionRequest, Provider, ProviderError
from tasks.billing.charges import OpenCharge, billed
from tasks.context import Context, Tools
from tasks.turn.values import Unfinished

logger = structlog.stdlib.get_logger("protostar.summary")

Compose = Callable[[str], Sequence[ChatMessage]]
"""Makes the prompt, which ends with a note on what was wrong with an earlier try; raises PromptTooLongError."""
Check = Callable[[str], str]
"""Describes what is wrong with a text, in words for the model; empty where nothing is."""


async def complete_with_repair(
    ctx: Context, *, user_uuid: UUID, compose: Compose, check: Check, max_output_tokens: int
) -> tuple[OpenCharge, str]:
    """Ask the summary model, and once more if the text breaks a rule; the second text may break one, too.

    Returns:
        The charge of this attempt, which holds what both requests cost, and the text.

    Raises:
        JobError: the rules leave no room for what is to be summed up.
        ProviderError: no text came.
    """
    tools, model = ctx["tools"], ctx["tools"].settings.summary_model_or_chat
    try:
        request = await _request(tools, compose, "", max_output_tokens)
    except PromptTooLongError:
        raise no_room() from None
    charge = OpenCharge(ctx["claim"], user_uuid=user_uuid, provider=tools.provider.name, model=model)
    ctx["unfinished"] = Unfinished(charge=charge)
    async with tools.provider.admitted([model], tokens=request.most_tokens) as provider, billed(charge):
        text = await _complete(tools, provider, charge, request)
        if note := await asyncio.to_thread(check, text):
            try:
                request = await _request(tools, compose, note, max_output_tokens)
                text = await _complete(tools, provider, charge, request) or text
            except (PromptTooLongError, ProviderError) as error:
                # What is wrong with the first text can be cut out of it.
                logger.warning("repair_failed", job_id=charge.job_id, error=error)
    return charge, text


def no_room() -> JobError:
    """Describe the failure of a job whose rules alone fill the model's window."""
    return JobError(
        ErrorCode.PROMPT_TOO_LONG,
        "the rules leave no room for what they sum up; shorten them or raise PROTOSTAR_CONTEXT_WINDOW",
    )


async def _request(tools: Tools, compose: Compose, note: str, max_output_tokens: int) -> CompletionRequest:
    def make() -> CompletionRequest:
        messages = compose(note)
        tokens = sum(tools.tokens.count(message["content"]) for message in messages)
        return CompletionRequest(tools.settings.summary_model_or_chat, messages, max_output_tokens, tokens)

    return await asyncio.to_thread(make)


async def _complete(tools: Tools, provider: Provider, charge: OpenCharge, request: CompletionRequest) -> str:
    await charge.send(input_tokens=request.input_tokens)
    completion = await provider.complete(request)
    if completion.usage is None:
        charge.add_estimate(output_tokens=tools.tokens.count(completion.text))
        charge.model = completion.model
    else:
        charge.add(completion.usage, model=completion.model)
    return clean_text(completion.text).strip()

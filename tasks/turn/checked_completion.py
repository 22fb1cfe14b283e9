"""Asking the model for a text that has to keep rules: once, and once more where it breaks one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
from protostar_client.contract import ErrorCode, JobError, Usage, clean_text

from rag.prompt.budget import PromptTooLongError
from rag.providers import ChatMessage, CompletionRequest, Provider, ProviderError
from tasks.context import Context, Tools
from tasks.turn.charges import OpenCharge, billed, new_charge

logger = structlog.stdlib.get_logger("protostar.summary")

Compose = Callable[[str], Sequence[ChatMessage]]
"""Makes the prompt, which ends with a note of what was wrong with an earlier try; raises PromptTooLongError."""
Check = Callable[[str], str]
"""Says what is wrong with a text, in words for the model; empty where nothing is."""


async def ask_twice(
    ctx: Context, *, user_uuid: UUID, compose: Compose, check: Check, max_output_tokens: int
) -> tuple[OpenCharge, str]:
    """Ask the summary model, and once more if the text breaks a rule; the text may break one still.

    Returns:
        The charge of this attempt, which holds what both requests cost, and the text.

    Raises:
        JobError: the rules leave no room for what is to be summed up.
        ProviderError: no text came.
    """
    tools, model = ctx["tools"], ctx["tools"].settings.summary_model_or_chat
    try:
        messages = await asyncio.to_thread(compose, "")
    except PromptTooLongError:
        raise no_room() from None
    tokens = await asyncio.to_thread(_count, tools, messages)
    charge = new_charge(tools, ctx["claim"], user_uuid=user_uuid, model=model, input_tokens=tokens)
    ctx["charge"] = charge
    admitted = tools.provider.admitted([model], tokens=charge.input_tokens + max_output_tokens)
    async with admitted as provider, billed(tools, charge):
        text = await _ask(tools, provider, charge, messages, max_output_tokens)
        if note := await asyncio.to_thread(check, text):
            try:
                again = await asyncio.to_thread(compose, note)
                charge.input_tokens = await asyncio.to_thread(_count, tools, again)
                text = await _ask(tools, provider, charge, again, max_output_tokens) or text
            except (PromptTooLongError, ProviderError) as error:
                # What is wrong with the first text can be cut out of it.
                logger.warning("repair_failed", job_id=charge.job_id, error=error)
    return charge, text


def no_room() -> JobError:
    """The failure of a job whose rules alone fill the model's window."""
    return JobError(
        ErrorCode.PROMPT_TOO_LONG,
        "the rules leave no room for what they sum up; shorten them or raise PROTOSTAR_CONTEXT_WINDOW",
    )


async def _ask(
    tools: Tools, provider: Provider, charge: OpenCharge, messages: Sequence[ChatMessage], max_output_tokens: int
) -> str:
    model = tools.settings.summary_model_or_chat
    completion = await provider.complete(CompletionRequest(model, messages, max_output_tokens, charge.input_tokens))
    estimate = Usage(
        input_tokens=charge.input_tokens, output_tokens=tools.tokens.count(completion.text), estimated=True
    )
    charge.add(completion.usage or estimate, model=completion.model)
    return clean_text(completion.text).strip()


def _count(tools: Tools, messages: Sequence[ChatMessage]) -> int:
    return sum(tools.tokens.count(message["content"]) for message in messages)

"""The job that sums an answer up in three sentences, for later turns."""

from __future__ import annotations

from typing import Any

from protostar_client.contract import ErrorCode, JobError, SummaryResult, Usage
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole
from models.transaction import transact
from rag.providers import Completion, CompletionRequest
from rag.summary import build_summary_prompt, short_enough, to_summary
from tasks.context import Context, Tools

SUMMARY_MAX_TOKENS = 400
_NOTHING = Usage(input_tokens=0, output_tokens=0)


async def summarize_message(ctx: Context, message_id: int) -> dict[str, Any]:
    """Write the summary of an answer, once; a short answer is its own and costs no model call.

    Returns:
        A `SummaryResult`.

    Raises:
        JobError: there is no such answer.
        ProviderError: no summary came.
    """
    tools = ctx["tools"]
    message = await _answer(message_id)
    if message.summary is not None:
        return _result(message, "", _NOTHING)
    if short_enough(message.content):
        return _result(await _store(message, to_summary(message.content)), "", _NOTHING)
    completion = await _ask(tools, message.content)
    summary = to_summary(completion.text) or to_summary(message.content)
    stored = await _store(message, summary)
    return _result(stored, completion.model, completion.usage or _estimate(tools, completion, message))


async def _answer(message_id: object) -> Message:
    if not isinstance(message_id, int) or not 0 < message_id < 2**63:
        raise JobError(ErrorCode.INVALID_REQUEST, "message_id: give the number of a message")
    message = await Message.get_or_none(id=message_id, role=MessageRole.ASSISTANT)
    if message is None:
        raise JobError(ErrorCode.INVALID_REQUEST, f"message_id: there is no answer {message_id}")
    return message


async def _ask(tools: Tools, answer: str) -> Completion:
    settings = tools.settings
    max_output_tokens = min(SUMMARY_MAX_TOKENS, settings.max_output_tokens)
    messages = build_summary_prompt(
        tools.prompts.summary,
        answer,
        context_window=settings.context_window,
        max_output_tokens=max_output_tokens,
        count=tools.tokens.count,
    )
    return await tools.provider.complete(CompletionRequest(settings.summary_model_or_chat, messages, max_output_tokens))


async def _store(message: Message, summary: str) -> Message:
    """The first summary stays: a second run of the job changes nothing."""

    async def work(connection: BaseDBAsyncClient) -> Message:
        await Message.filter(id=message.id, summary__isnull=True).using_db(connection).update(summary=summary)
        return await Message.get(id=message.id, using_db=connection)

    return await transact(work)


def _result(message: Message, model: str, usage: Usage) -> dict[str, Any]:
    return SummaryResult(message_id=message.id, summary=message.summary or "", model=model, usage=usage).model_dump()


def _estimate(tools: Tools, completion: Completion, message: Message) -> Usage:
    count = tools.tokens.count
    return Usage(
        input_tokens=count(tools.prompts.summary) + count(message.content),
        output_tokens=count(completion.text),
        estimated=True,
    )

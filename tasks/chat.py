"""The job that answers a question."""

from __future__ import annotations

import asyncio
from typing import Any

from protostar_client.contract import ChatRequest, ErrorCode, JobError, Source, clean_text

from rag.prompt import Prompt, PromptTooLongError, build_prompt
from rag.prompt_files import PAGE_CONTEXT, UnknownModeError
from rag.providers import CompletionRequest, Finish
from rag.providers.fallback import stream_with_fallback
from rag.retrieve import Passage, retrieve
from tasks.context import Context, Tools
from tasks.endings import complete, tell_again, told_before
from tasks.turns import Turn, load_history, open_turn


async def generate_chat(ctx: Context, *args: Any, **arguments: Any) -> dict[str, Any]:
    """Answer one question, once: stream the answer, store it, and leave its summary to be made.

    Returns:
        A `ChatResult`.

    Raises:
        JobError: the request or the prompt can't be used.
        ProviderError: no answer came.
        LeaseLostError: another attempt has the job.
    """
    tools = ctx["tools"]
    await told_before(ctx)
    request, persona = _read_request(tools, args, arguments)
    turn = await open_turn(tools, request, ctx["claim"], named_user=str(arguments["user_uuid"]))
    ctx["turn"] = turn  # for its ending, whatever happens from here
    if turn.stored is not None:
        return await tell_again(tools, turn, turn.stored)
    prompt = await _prompt(tools, turn, persona)
    finish = await _stream(tools, turn, prompt)
    return await complete(tools, turn, finish)


def _read_request(tools: Tools, args: tuple[Any, ...], arguments: dict[str, Any]) -> tuple[ChatRequest, str]:
    if args:
        raise JobError(ErrorCode.INVALID_REQUEST, "positional arguments are not taken; name every argument")
    request = ChatRequest.parse(arguments)
    try:
        persona = tools.prompts.persona(request.mode)
    except UnknownModeError as error:
        raise JobError(ErrorCode.UNKNOWN_MODE, str(error)) from None
    if request.mode == PAGE_CONTEXT and not request.context.strip():
        raise JobError(ErrorCode.INVALID_REQUEST, "context: mode page_context answers from it; give the page's text")
    return request, persona


async def _prompt(tools: Tools, turn: Turn, persona: str) -> Prompt[Passage]:
    settings, request = tools.settings, turn.request
    turn.model = settings.chat_model
    turn.answer.start(turn.model)
    history = await load_history(turn)
    passages: list[Passage] = []
    if request.mode != PAGE_CONTEXT:
        passages = await retrieve(request.content, history=[earlier.question for earlier in history])
    try:
        # Counting a page of 400,000 characters would hold up every other stream.
        prompt = await asyncio.to_thread(
            build_prompt,
            persona,
            request.content,
            history=history,
            passages=passages,
            page_context=request.context,
            context_window=settings.context_window,
            max_output_tokens=settings.max_output_tokens,
            count=tools.tokens.count,
        )
    except PromptTooLongError as error:
        raise JobError(ErrorCode.PROMPT_TOO_LONG, str(error)) from None
    turn.input_tokens = prompt.token_count
    turn.sources = [_source(passage) for passage in prompt.passages]
    turn.answer.sources(turn.sources)
    return prompt


def _source(passage: Passage) -> dict[str, Any]:
    return Source(
        chunk_id=passage.chunk_id,
        document=passage.document,
        heading=passage.heading,
        score=passage.score,
    ).model_dump()


async def _stream(tools: Tools, turn: Turn, prompt: Prompt[Passage]) -> Finish:
    settings = tools.settings
    request = CompletionRequest(turn.model, prompt.messages, settings.max_output_tokens)
    async with stream_with_fallback(tools.provider, request, settings.fallback_models) as parts:
        async for part in parts:
            if isinstance(part, Finish):
                return part
            if text := clean_text(part):
                turn.answer.say(text)
    raise AssertionError("a provider's stream ends with a Finish or an error")

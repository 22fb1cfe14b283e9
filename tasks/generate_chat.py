"""The job that answers a question."""

from __future__ import annotations

from typing import Any

from protostar_client.contract import ChatRequest, ErrorCode, JobError, clean_text

from rag.prompt.modes import PAGE_CONTEXT, UnknownModeError
from rag.providers import CompletionRequest, ContextLengthError, Finish, Provider
from rag.providers.fallback import stream_with_fallback
from tasks.context import Context, Tools
from tasks.turn.charges import billed, close_lost, new_charge
from tasks.turn.endings import complete, tell_again, told_before
from tasks.turn.open import Turn, open_turn
from tasks.turn.request import Material, gather, make_request, make_smaller_request, still_too_long


async def generate_chat(ctx: Context, *args: Any, **arguments: Any) -> dict[str, Any]:
    """Answer one question, once: stream the answer, store it, and leave its summary to be made.

    Returns:
        A `ChatResult`.

    Raises:
        JobError: the request or the prompt can't be used, or a cap of the user is reached.
        ProviderError: no answer came.
        LeaseLostError: another attempt has the job.
    """
    tools = ctx["tools"]
    await told_before(ctx)
    request, persona = _read_request(tools, args, arguments)
    turn = await open_turn(tools, request, ctx["claim"], named_user=str(arguments["user_uuid"]))
    ctx["turn"] = turn  # for its ending, whatever happens from here
    await close_lost(tools, ctx["redis"], ctx["claim"])
    if turn.stored is not None:
        return await tell_again(tools, turn, turn.stored)
    await tools.provider.look(tools.settings.chat_models)  # a job that has to wait says nothing yet
    finish = await _ask(tools, turn, await gather(tools, turn, persona))
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


async def _ask(tools: Tools, turn: Turn, material: Material) -> Finish:
    settings = tools.settings
    request = await make_request(tools, turn, material)
    async with tools.provider.admitted(settings.chat_models, tokens=request.most_tokens) as provider:
        turn.answer.start(turn.model)
        turn.charge = charge = new_charge(
            tools, turn.claim, user_uuid=turn.request.user_uuid, model=turn.model, input_tokens=turn.input_tokens
        )
        async with billed(tools, charge, is_capped=True, said_tokens=lambda: turn.count(turn.answer.text)):
            try:
                return await _stream(tools, provider, request, turn)
            except ContextLengthError as error:
                if turn.answer.text:
                    raise
                request = await make_smaller_request(tools, turn, material, error)
            charge.input_tokens = turn.input_tokens
            try:
                return await _stream(tools, provider, request, turn)
            except ContextLengthError as error:
                raise still_too_long(tools, turn.input_tokens, error) from None


async def _stream(tools: Tools, provider: Provider, request: CompletionRequest, turn: Turn) -> Finish:
    async with stream_with_fallback(provider, request, tools.settings.fallback_models) as (model, parts):
        turn.answered_by(model)
        turn.answer.sources(turn.sources)  # only now, when a model has taken the prompt that holds them
        async for part in parts:
            if isinstance(part, Finish):
                if part.usage is not None and model == tools.settings.chat_model:
                    tools.ratios.said(part.usage.input_tokens, counted=turn.count.uncorrected(turn.input_tokens))
                return part
            if text := clean_text(part):
                turn.answer.say(text)
                tools.pace.add(text)
    raise AssertionError("a provider's stream ends with a Finish or an error")

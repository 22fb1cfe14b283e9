"""The job that answers a question."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from protostar_client.contract import ChatRequest, ErrorCode, JobError

from rag.prompt.modes import PAGE_CONTEXT, Prompts, UnknownModeError
from tasks.billing.caps import Caps
from tasks.billing.charges import OpenCharge, billed
from tasks.billing.lost_charges import close_lost_charges
from tasks.context import Context
from tasks.turn.endings import finish, finish_kept, publish_stored, raise_recorded_ending
from tasks.turn.kept_answers import drop_kept_answer, read_kept_answer
from tasks.turn.open import open_turn
from tasks.turn.request import fit_prompt, gather
from tasks.turn.stream import stream_answer
from tasks.turn.values import Turn, Unfinished


async def generate_chat(
    ctx: Context,
    *,
    user_uuid: str,
    session_id: str,
    content: str,
    mode: str = "general",
    context: str = "",
    documents: Sequence[str] = (),
) -> dict[str, Any]:
    """Answer one question, once: open the turn, check the caps, gather, fit the prompt, stream, finish.

    Returns:
        A `ChatResult`.

    Raises:
        JobError: the request or the prompt cannot be used, or a cap of the user is reached.
        ProviderError: no answer came.
        LeaseLostError: another attempt has the job.
    """
    tools = ctx["tools"]
    await raise_recorded_ending(tools.events, ctx["claim"])
    request = ChatRequest.parse(
        {
            "user_uuid": user_uuid,
            "session_id": session_id,
            "content": content,
            "mode": mode,
            "context": context,
            "documents": documents,
        }
    )
    persona = _persona(tools.prompts, request)
    turn = await _open(ctx, request, named_user=str(user_uuid))
    if (result := await _finish_without_model(ctx, turn)) is not None:
        return result
    async with _caps_checked(ctx, turn) as charge:
        await tools.provider.look(tools.settings.chat_models)  # a job that has to wait publishes nothing yet
        gathered = await gather(tools, turn, persona)
        prompt = await fit_prompt(tools, turn, gathered)
        answer = await stream_answer(ctx, turn, gathered, prompt, charge)
    return await finish(tools, ctx["redis"], turn, answer)


def _persona(prompts: Prompts, request: ChatRequest) -> str:
    try:
        persona = prompts.persona(request.mode)
    except UnknownModeError as error:
        raise JobError(ErrorCode.UNKNOWN_MODE, str(error)) from None
    if request.mode == PAGE_CONTEXT and not request.context.strip():
        raise JobError(ErrorCode.INVALID_REQUEST, "context: mode page_context answers from it; give the page's text")
    return persona


async def _open(ctx: Context, request: ChatRequest, *, named_user: str) -> Turn:
    """Open the turn; from here on the failure path stores and publishes its ending."""
    tools = ctx["tools"]
    turn = await open_turn(
        request, ctx["claim"], named_user=named_user, log=tools.events, raise_attempt=tools.raise_attempt
    )
    ctx["unfinished"] = Unfinished(turn)
    await close_lost_charges(ctx["redis"], tools.ratios, ctx["claim"])
    return turn


async def _finish_without_model(ctx: Context, turn: Turn) -> dict[str, Any] | None:
    """Finish a turn whose answer an earlier attempt has committed or kept; None for any other."""
    tools, redis, claim = ctx["tools"], ctx["redis"], ctx["claim"]
    is_first = claim.attempt == 1
    if turn.stored is not None:
        if not is_first:
            await drop_kept_answer(redis, claim.job_id)  # the commit may have succeeded unacknowledged
        return await publish_stored(tools, turn, turn.stored)
    if not is_first and (kept := await read_kept_answer(redis, claim)) is not None:
        return await finish_kept(tools, redis, turn, kept)
    return None


@asynccontextmanager
async def _caps_checked(ctx: Context, turn: Turn) -> AsyncIterator[OpenCharge]:
    """Let the user's question in, and bill what its answer costs.

    Raises:
        CapReachedError: a cap of the user is reached; nothing was spent.
    """
    tools = ctx["tools"]
    settings, count = tools.settings, await tools.ratios.count()
    charge = OpenCharge(
        ctx["claim"], user_uuid=turn.request.user_uuid, provider=tools.provider.name, model=settings.chat_model
    )
    ctx["unfinished"] = Unfinished(turn, charge=charge)
    async with billed(charge, caps=Caps.of(settings), output_tokens=lambda: count(turn.events.text)):
        yield charge

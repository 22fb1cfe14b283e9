"""The prompt of a turn: what it is made of, and making it once more, smaller, for a provider that finds it too long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from protostar_client.contract import ErrorCode, JobError, Source

from rag.prompt.budget import HISTORY_SHARE, History, Prompt, PromptTooLongError, build_prompt
from rag.prompt.modes import PAGE_CONTEXT
from rag.prompt.overflow import smaller_window
from rag.providers import CompletionRequest, ContextLengthError
from rag.providers.vendor_messages import overflow_sizes
from rag.search.neighbours import with_neighbours
from rag.search.retrieve import Passage, retrieve
from tasks.context import Tools
from tasks.monitoring import metrics
from tasks.monitoring.steps import step
from tasks.turn.open import Turn, load_history
from tasks.turn.prompt_record import Recipe, session_tag_code

logger = structlog.stdlib.get_logger("protostar.prompt")

QUICK_WINDOW: Final = 12_000
QUICK_CHARACTERS: Final = 20_000
"""A prompt for a larger window, or of a longer page and question, takes so long to count that it would hold up the
streams of other answers."""


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to make the prompt of a turn of."""

    persona: str
    history: History
    passages: Sequence[Passage]
    tag_code: str | None
    """The code of the session's prompt tags; None draws one."""


async def gather(tools: Tools, turn: Turn, persona: str) -> Material:
    """Read the history of a turn, and the passages that speak of its question."""
    request = turn.request
    turn.provider, turn.model = tools.provider.name, tools.settings.chat_model
    history = await load_history(turn)
    tag_code = await session_tag_code(turn.question.session.id, before=turn.question.id)
    passages: list[Passage] = []
    if request.mode != PAGE_CONTEXT:
        asked = [earlier.question for earlier in history.turns]
        with step("retrieve"):
            passages = await retrieve(request.content, history=asked, embedder=tools.embedder)
            passages = await with_neighbours(passages, _room(tools, turn, persona))
    return Material(persona, history, passages, tag_code)


def _room(tools: Tools, turn: Turn, persona: str) -> int:
    """Tokens that passages have in the prompt however long the history is; none to spare beside a long question."""
    settings, question = tools.settings, turn.request.content
    if len(question) > QUICK_CHARACTERS:
        return 0
    taken = settings.max_output_tokens + turn.count(persona) + turn.count(question)
    return int((settings.context_window - taken) * (1 - HISTORY_SHARE) / max(turn.count.factor, 1.0))


async def make_request(tools: Tools, turn: Turn, material: Material) -> CompletionRequest:
    """Make the prompt of a turn; the turn then knows its sources, its size and its recipe.

    Raises:
        JobError: the question is too long.
    """
    try:
        return await _make(tools, turn, material, tools.settings.context_window)
    except PromptTooLongError as error:
        raise JobError(ErrorCode.PROMPT_TOO_LONG, str(error)) from None


async def make_smaller_request(
    tools: Tools, turn: Turn, material: Material, refusal: ContextLengthError
) -> CompletionRequest:
    """Make the prompt of a turn anew after every model that answered has found it too long.

    Raises:
        ContextLengthError: it can't be made smaller.
    """
    named, settings = overflow_sizes(str(refusal)), tools.settings
    refused, factor = turn.input_tokens, turn.count.factor
    is_window_smaller = named.window is not None and refused + settings.max_output_tokens > named.window
    if refusal.model == turn.model and (named.prompt is not None or not is_window_smaller):
        counted = turn.count.uncorrected(refused)
        turn.count = tools.ratios.overflowed(named.prompt, counted=counted, factor=factor)
    window = smaller_window(
        named,
        counted=refused,
        corrected=round(refused * turn.count.factor / factor),
        max_output_tokens=settings.max_output_tokens,
        context_window=settings.context_window,
    )
    logger.warning(
        "context_overflow",
        job_id=turn.claim.job_id,
        model=refusal.model,
        counted=refused,
        window=settings.context_window,
        next_window=window,
        error=refusal,
    )
    try:
        return await _make(tools, turn, material, window)
    except PromptTooLongError as error:
        # Counted as the refused prompt was, so that the message's numbers go together.
        fixed = round((error.persona + error.question) * factor / turn.count.factor)
        longer = "question" if error.question > error.persona else "persona"
        raise ContextLengthError(
            f"the prompt of {refused} tokens and the answer's {settings.max_output_tokens} are too long for the model, "
            f"though PROTOSTAR_CONTEXT_WINDOW says {settings.context_window}; the prompt can't be made small enough: "
            f"{fixed} of its tokens are persona and question, which are never cut; shorten the {longer}, lower "
            f"PROTOSTAR_MAX_OUTPUT_TOKENS or choose a model with a larger window ({refusal})"
        ) from None


def still_too_long(tools: Tools, tokens: int, refusal: ContextLengthError) -> ContextLengthError:
    """The failure of a turn whose prompt was refused again after it was made smaller, to so many tokens."""
    settings = tools.settings
    return ContextLengthError(
        f"the prompt of {tokens} tokens and the answer's {settings.max_output_tokens} are too long for the model, also "
        f"made smaller, though PROTOSTAR_CONTEXT_WINDOW says {settings.context_window}: lower it, or ask a shorter "
        f"question ({refusal})"
    )


async def _make(tools: Tools, turn: Turn, material: Material, context_window: int) -> CompletionRequest:
    settings, request = tools.settings, turn.request
    build = partial(
        build_prompt,
        material.persona,
        request.content,
        history=material.history.turns,
        session_summary=material.history.summary,
        passages=material.passages,
        page_context=request.context,
        context_window=context_window,
        max_output_tokens=settings.max_output_tokens,
        count=turn.count,
        tag_code=material.tag_code,
    )
    is_quick = context_window <= QUICK_WINDOW and len(request.context) + len(request.content) <= QUICK_CHARACTERS
    with step("prompt"):
        prompt = build() if is_quick else await asyncio.to_thread(build)
    metrics.PROMPT_TOKENS.observe(prompt.token_count)
    turn.input_tokens = prompt.token_count
    turn.sources = [_source(passage) for passage in prompt.passages]
    turn.recipe = Recipe.of(prompt.parts, prompt.messages, parameters=_parameters(tools, turn, prompt))
    return CompletionRequest(turn.model, prompt.messages, settings.max_output_tokens, turn.input_tokens)


def _parameters(tools: Tools, turn: Turn, prompt: Prompt[Passage]) -> dict[str, Any]:
    return {
        "model": turn.model,
        "mode": turn.request.mode,
        "context_window": prompt.context_window,
        "max_output_tokens": tools.settings.max_output_tokens,
        "token_ratio": turn.count.factor,
    }


def _source(passage: Passage) -> dict[str, Any]:
    return Source(
        chunk_id=passage.chunk_id,
        document=passage.document,
        heading=passage.heading,
        score=passage.score,
    ).model_dump()

"""Gathers the texts of a turn's prompt, fits them into the window, and once more where a model finds it too long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from protostar_client.contract import ErrorCode, JobError, Source

from protostar.settings import Settings
from rag.prompt.budget import HISTORY_SHARE, PromptTooLongError, build_prompt
from rag.prompt.modes import PAGE_CONTEXT
from rag.prompt.overflow import smaller_window
from rag.prompt.token_ratio import CorrectedCount
from rag.providers import CompletionRequest, ContextLengthError
from rag.providers.vendor_messages import overflow_sizes
from rag.search.document_filter import DocumentFilter
from rag.search.neighbours import with_neighbours
from rag.search.retrieve import Passage, retrieve
from tasks.context import Tools
from tasks.monitoring import metrics
from tasks.monitoring.steps import step
from tasks.turn.history import read_history
from tasks.turn.prompt_record import Recipe, session_tag_code
from tasks.turn.values import FittedPrompt, Gathered, Turn

logger = structlog.stdlib.get_logger("protostar.prompt")

QUICK_WINDOW: Final = 12_000
QUICK_CHARACTERS: Final = 20_000
"""Above these, counting a prompt takes so long that it would delay the streams of other answers."""


async def gather(tools: Tools, turn: Turn, persona: str) -> Gathered:
    """Read the history of a turn, and retrieve the passages for its question."""
    request, count = turn.request, await tools.ratios.count()
    history = await read_history(tools.database, turn.session, before=turn.question_id)
    tag_code = await session_tag_code(tools.database, turn.session.id, before=turn.question_id)
    passages: list[Passage] = []
    if request.mode != PAGE_CONTEXT:
        asked = [earlier.question for earlier in history.turns]
        with step("retrieve"):
            passages = await retrieve(
                request.content,
                history=asked,
                embedder=tools.embedder,
                reranker=tools.reranker,
                documents=DocumentFilter.of(request.documents),
                synonyms=await tools.synonyms.current(),
            )
            passages = await with_neighbours(passages, _room(tools.settings, persona, request.content, count))
    return Gathered(persona, history, passages, tag_code, count)


def _room(settings: Settings, persona: str, question: str, count: CorrectedCount) -> int:
    """Tokens that passages have in the prompt however long the history is; none to spare beside a long question."""
    if len(question) > QUICK_CHARACTERS:
        return 0
    taken = settings.max_output_tokens + count(persona) + count(question)
    return int((settings.context_window - taken) * (1 - HISTORY_SHARE) / max(count.factor, 1.0))


async def fit_prompt(tools: Tools, turn: Turn, gathered: Gathered) -> FittedPrompt:
    """Make the prompt of a turn.

    Raises:
        JobError: the question is too long.
    """
    try:
        return await _fit(tools.settings, turn, gathered, tools.settings.context_window)
    except PromptTooLongError as error:
        raise JobError(ErrorCode.PROMPT_TOO_LONG, str(error)) from None


async def fit_smaller_prompt(
    tools: Tools, turn: Turn, gathered: Gathered, refused: FittedPrompt, refusal: ContextLengthError
) -> FittedPrompt:
    """Make the prompt of a turn anew after every model that answered has found it too long.

    Raises:
        ContextLengthError: it cannot be made smaller.
    """
    named, settings, model = overflow_sizes(str(refusal)), tools.settings, refused.request.model
    factor, count = refused.count.factor, refused.count
    is_window_smaller = named.window is not None and refused.tokens + settings.max_output_tokens > named.window
    if refusal.model == model and (named.prompt is not None or not is_window_smaller):
        counted = count.uncorrected(refused.tokens)
        count = tools.ratios.overflowed(named.prompt, counted=counted, factor=factor)
    window = smaller_window(
        named,
        counted=refused.tokens,
        corrected=round(refused.tokens * count.factor / factor),
        max_output_tokens=settings.max_output_tokens,
        context_window=settings.context_window,
    )
    logger.warning(
        "context_overflowed",
        job_id=turn.claim.job_id,
        model=refusal.model,
        counted=refused.tokens,
        window=settings.context_window,
        next_window=window,
        error=refusal,
    )
    try:
        return await _fit(settings, turn, replace(gathered, count=count), window)
    except PromptTooLongError as error:
        # Counted as the refused prompt was, so that the message's numbers go together.
        fixed = round((error.persona + error.question) * factor / count.factor)
        longer = "question" if error.question > error.persona else "persona"
        raise ContextLengthError(
            f"the prompt of {refused.tokens} tokens and the answer's {settings.max_output_tokens} are too long for the "
            f"model, though PROTOSTAR_CONTEXT_WINDOW says {settings.context_window}; the prompt can't be made small "
            f"enough: {fixed} of its tokens are persona and question, which are never cut; shorten the {longer}, lower "
            f"PROTOSTAR_MAX_OUTPUT_TOKENS or choose a model with a larger window ({refusal})"
        ) from None


def still_too_long(settings: Settings, tokens: int, refusal: ContextLengthError) -> ContextLengthError:
    """Describe the failure of a turn whose prompt, made smaller, was refused again."""
    return ContextLengthError(
        f"the prompt of {tokens} tokens and the answer's {settings.max_output_tokens} are too long for the model, also "
        f"made smaller, though PROTOSTAR_CONTEXT_WINDOW says {settings.context_window}: lower it, or ask a shorter "
        f"question ({refusal})"
    )


async def _fit(settings: Settings, turn: Turn, gathered: Gathered, context_window: int) -> FittedPrompt:
    request = turn.request
    build = partial(
        build_prompt,
        gathered.persona,
        request.content,
        history=gathered.history.turns,
        session_summary=gathered.history.summary,
        passages=gathered.passages,
        page_context=request.context,
        context_window=context_window,
        max_output_tokens=settings.max_output_tokens,
        count=gathered.count,
        tag_code=gathered.tag_code,
    )
    is_quick = context_window <= QUICK_WINDOW and len(request.context) + len(request.content) <= QUICK_CHARACTERS
    with step("prompt"):
        prompt = build() if is_quick else await asyncio.to_thread(build)
    metrics.PROMPT_TOKENS.observe(prompt.token_count)
    parameters = {
        "model": settings.chat_model,
        "mode": request.mode,
        "context_window": prompt.context_window,
        "max_output_tokens": settings.max_output_tokens,
        "token_ratio": gathered.count.factor,
    }
    return FittedPrompt(
        CompletionRequest(settings.chat_model, prompt.messages, settings.max_output_tokens, prompt.token_count),
        [_source(passage) for passage in prompt.passages],
        Recipe.of(prompt.parts, prompt.messages, parameters=parameters),
        gathered.count,
    )


def _source(passage: Passage) -> dict[str, Any]:
    return Source(
        chunk_id=passage.chunk_id,
        document=passage.document,
        heading=passage.heading,
        score=passage.score,
    ).model_dump()

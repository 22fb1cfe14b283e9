"""Makes what the jobs of a worker share when it starts, and closes it when it stops."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from arq.connections import ArqRedis
from tortoise.backends.base.client import BaseDBAsyncClient

from models.database import DatabaseError, connect
from protostar.settings import Settings, unknown_variables
from rag.analysis.synonyms import SynonymsFile
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import Count
from rag.prompt.modes import Prompts, PromptsError, load_prompts
from rag.providers import FatalProviderError, Provider, provider_from
from rag.providers.embedder import make_embedder
from rag.search.rerank import make_reranker
from tasks.context import Tools
from tasks.engine.connection import StartupError
from tasks.engine.queue import Queue
from tasks.gate.gate import Gate
from tasks.gate.gated_provider import GatedProvider
from tasks.gate.rate_limits import RateLimits
from tasks.legacy.intake import OlderIntake
from tasks.monitoring.logs import configure
from tasks.monitoring.metrics_server import MetricsServer
from tasks.monitoring.status import read_status
from tasks.monitoring.traces import start_tracing, trace_headers
from tasks.outbox import OutboxRelay
from tasks.turn.event_log import EventLog
from tasks.turn.token_ratios import TokenRatios

logger = structlog.stdlib.get_logger("protostar.start")

LEAST_ROOM_TOKENS: Final = 100
"""Tokens of the prompt that are left for a question and the format of a chat."""
_STACK: Final = "startup_stack"


async def start(settings: Settings, ctx: dict[Any, Any]) -> None:
    """Put the shared tools into a worker's `ctx`. What was made before an error is closed.

    Raises:
        StartupError: a setting is wrong, or PostgreSQL cannot be used.
    """
    configure(settings.log_format, settings.log_level)
    for unknown in unknown_variables():
        logger.warning("setting_unknown", variable=unknown.name, hint=unknown.advice)
    async with AsyncExitStack() as stack:
        if settings.otlp_endpoint is not None:
            stack.push_async_callback(start_tracing(ctx["queue"].owner))
        try:
            ctx["tools"] = await _make_tools(settings, ctx["redis"], ctx["queue"], stack)
        except (DatabaseError, PromptsError, FatalProviderError) as error:
            raise StartupError(str(error)) from None
        if settings.older_protocol:
            stack.push_async_callback(OlderIntake(ctx["redis"]).close)
        if settings.metrics_port:
            read = partial(read_status, ctx["redis"], ctx["tools"].database)
            server = MetricsServer(
                settings.metrics_host,
                settings.metrics_port,
                read,
                watch=ctx["loop_watch"],
                unhealthy_after_s=settings.lease / 2,
            )
            stack.push_async_callback(server.close)
        ctx[_STACK] = stack.pop_all()
    # A full collection stops every stream while it traverses the objects of the start, none of which is garbage.
    gc.collect()
    gc.freeze()


async def stop(ctx: dict[Any, Any]) -> None:
    """Close what `start` made."""
    if _STACK in ctx:
        await ctx[_STACK].aclose()


async def _make_tools(settings: Settings, redis: ArqRedis, queue: Queue, stack: AsyncExitStack) -> Tools:
    database: BaseDBAsyncClient = await stack.enter_async_context(connect(settings.database_url.get_secret_value()))
    prompts = load_prompts(settings.prompts_dir)
    _check_corpus(settings.corpus_dir)
    tokens = TokenCounter(settings.chat_model)
    ratios = TokenRatios(redis, tokens, settings.chat_model)
    _check_window(settings, prompts, await ratios.count())
    provider = provider_from(settings, headers=trace_headers)
    stack.push_async_callback(provider.close)
    stack.push_async_callback(ratios.close)
    outbox = OutboxRelay(redis)
    stack.push_async_callback(outbox.close)
    events = EventLog(redis, owner=queue.owner, ttl_s=settings.event_ttl, is_mirrored=settings.older_protocol)
    stack.push_async_callback(events.close)
    reranker = make_reranker(settings)
    if reranker is not None:
        stack.push_async_callback(reranker.close)
    gated = GatedProvider(provider, _make_gate(settings, redis, queue.owner, provider))
    return Tools(
        settings=settings,
        database=database,
        provider=gated,
        embedder=make_embedder(settings, provider=gated),
        reranker=reranker,
        prompts=prompts,
        synonyms=SynonymsFile(settings.corpus_dir),
        tokens=tokens,
        ratios=ratios,
        events=events,
        outbox=outbox,
        raise_attempt=queue.raise_attempt,
    )


def _make_gate(settings: Settings, redis: ArqRedis, owner: str, provider: Provider) -> Gate:
    limits = RateLimits(
        redis, requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
    )
    return Gate(
        redis,
        provider=provider.name,
        owner=owner,
        first_token_s=settings.first_token_timeout,
        longest_wait_s=settings.provider_wait,
        limits=limits,
    )


def _check_corpus(folder: Path) -> None:
    """A folder that is missing is a wrong setting; an empty one may be filled while the worker runs."""
    if not folder.is_dir():
        raise StartupError(
            f"PROTOSTAR_CORPUS_DIR is wrong: there is no folder {folder}; name one that holds Markdown files"
        )
    if not any(folder.iterdir()):
        logger.warning("corpus_empty", folder=folder, hint="put Markdown files into it")


def _check_window(settings: Settings, prompts: Prompts, count: Count) -> None:
    """A window that no question fits into would fail every job and blame its user."""
    for mode, persona in prompts.personas.items():
        needed = count(persona) + settings.max_output_tokens + LEAST_ROOM_TOKENS
        if needed > settings.context_window:
            raise StartupError(
                f"PROTOSTAR_CONTEXT_WINDOW is {settings.context_window}; the persona of mode {mode}, the answer's "
                f"{settings.max_output_tokens} tokens and a short question take {needed}: raise it"
            )

"""What every job function finds in its `ctx`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from arq.connections import ArqRedis
from tortoise.backends.base.client import BaseDBAsyncClient

from protostar.settings import Settings
from rag.analysis.synonyms import SynonymsFile
from rag.corpus.tokens import TokenCounter
from rag.prompt.modes import Prompts
from rag.providers.embedder import Embedder
from rag.search.rerank import Reranker
from tasks.engine.claim import Claim
from tasks.engine.queue import Queue
from tasks.gate.gated_provider import GatedProvider
from tasks.outbox import OutboxRelay
from tasks.turn.event_log import EventLog
from tasks.turn.token_ratios import TokenRatios
from tasks.turn.values import Unfinished


@dataclass(frozen=True, slots=True)
class Tools:
    """What the worker makes once at start and its jobs share."""

    settings: Settings
    database: BaseDBAsyncClient
    provider: GatedProvider
    embedder: Embedder | None
    reranker: Reranker | None
    prompts: Prompts
    synonyms: SynonymsFile
    tokens: TokenCounter
    ratios: TokenRatios
    events: EventLog
    outbox: OutboxRelay
    raise_attempt: Callable[[Claim, int], Awaitable[bool]]


class Context(TypedDict):
    """ARQ's context, and what Protostar adds to it."""

    redis: ArqRedis
    """ARQ's pool."""
    job_id: str
    """ARQ's job id: the producer's idempotency key."""
    job_try: int
    """The number of this attempt; it fences its effects."""
    claim: Claim
    """The claim of this attempt."""
    queue: Queue
    """The worker's end of the queue; its `owner` is the worker's name."""
    tools: Tools
    """The worker's tools."""
    unfinished: NotRequired[Unfinished]
    """What the attempt has begun. Job functions replace it as they go on; the failure path reads nothing else."""


def about_worker(ctx: dict[Any, Any]) -> dict[str, Any]:
    """Describe a worker's tools for its heartbeat (fields of `tasks.monitoring.worker_report.Beat`)."""
    tools: Tools = ctx["tools"]
    settings = tools.settings
    models = (*settings.chat_models, settings.summary_model_or_chat, settings.embedding_model)
    return {
        "provider": tools.provider.name,
        "models": [model for model in dict.fromkeys(models) if model],
        "requests_per_minute": settings.requests_per_minute,
        "tokens_per_minute": settings.tokens_per_minute,
    }

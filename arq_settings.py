"""The worker's settings: `arq arq_settings.WorkerSettings` starts it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import arq.worker
import structlog
import uvloop
from arq import cron, func
from arq.connections import RedisSettings
from arq.cron import CronJob
from arq.typing import WorkerCoroutine
from protostar_client.codec import dump_json, load_json
from protostar_client.contract import (
    GENERATE_CHAT,
    INDEX_DOCUMENTS,
    READ_HISTORY,
    REINDEX_CORPUS,
    ROLL_UP_SESSION,
    SUMMARIZE_MESSAGE,
)

from models.database import DatabaseError, connect, tortoise_config
from protostar.settings import JobClass, SettingsError, load_settings
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import Count
from rag.prompt.modes import Prompts, PromptsError, load_prompts
from rag.providers import FatalProviderError, Provider
from rag.providers.embedder import make_embedder
from rag.providers.factory import make_provider
from tasks.context import Tools, about_worker
from tasks.engine.connection import StartupError
from tasks.engine.worker import Worker
from tasks.gate.gate import Gate
from tasks.gate.gated_provider import GatedProvider
from tasks.gate.rate_limits import RateLimits
from tasks.generate_chat import generate_chat
from tasks.index_documents import index_documents
from tasks.legacy.intake import OlderIntake
from tasks.monitoring.logs import configure
from tasks.monitoring.metrics_server import MetricsServer
from tasks.monitoring.observer import WorkerObserver
from tasks.monitoring.status import read_status
from tasks.monitoring.traces import start_tracing, trace_headers
from tasks.outbox import OutboxRelay
from tasks.read_history import read_history
from tasks.reindex_corpus import reindex_corpus
from tasks.retry_policy import MAX_TRIES, ChatRetryPolicy
from tasks.roll_up_session import roll_up_session
from tasks.summarize_message import summarize_message
from tasks.turn.endings import tell_failure
from tasks.turn.event_log import EventLog
from tasks.turn.pace import Pace
from tasks.turn.token_ratios import TokenRatios

try:
    SETTINGS: Final = load_settings()
except SettingsError as error:
    raise SystemExit(f"protostar: {error}") from None

TORTOISE_ORM: Final = tortoise_config(SETTINGS.database_url.get_secret_value())

# ARQ's command looks its Worker up here, after importing this module: this makes it run ours.
arq.worker.Worker = Worker  # type: ignore[misc]
uvloop.install()

logger = structlog.stdlib.get_logger("protostar.start")

LEAST_ROOM_TOKENS: Final = 100  # for a question and the format of a chat
_CLOSE: Final = "close"


async def start(ctx: dict[Any, Any]) -> None:
    """Make what the jobs share; what was made before something failed is closed."""
    configure(SETTINGS.log_format, SETTINGS.log_level)
    async with AsyncExitStack() as stack:
        if SETTINGS.otlp_endpoint is not None:
            stack.push_async_callback(start_tracing(ctx["queue"].owner))
        try:
            database = await stack.enter_async_context(connect(SETTINGS.database_url.get_secret_value()))
            prompts = load_prompts(SETTINGS.prompts_dir)
            _check_corpus(SETTINGS.corpus_dir)
            tokens = TokenCounter(SETTINGS.chat_model)
            ratios = TokenRatios(ctx["redis"], tokens, SETTINGS.chat_model)
            _check_window(prompts, await ratios.count())
            provider = _provider()
        except (DatabaseError, PromptsError, FatalProviderError) as error:
            raise StartupError(str(error)) from None
        stack.push_async_callback(provider.close)
        stack.push_async_callback(ratios.close)
        outbox = OutboxRelay(ctx["redis"])
        stack.push_async_callback(outbox.close)
        events = EventLog(ctx["redis"], owner=ctx["queue"].owner, ttl_s=SETTINGS.event_ttl)
        stack.push_async_callback(events.close)
        gated = _gated(ctx, provider)
        ctx["tools"] = Tools(
            settings=SETTINGS,
            provider=gated,
            embedder=make_embedder(SETTINGS, provider=gated),
            prompts=prompts,
            tokens=tokens,
            ratios=ratios,
            events=events,
            outbox=outbox,
            pace=Pace(tokens.count),
            raise_attempt=ctx["queue"].raise_attempt,
        )
        stack.push_async_callback(OlderIntake(ctx["redis"]).close)
        if SETTINGS.metrics_port:
            read = partial(read_status, ctx["redis"], database)
            stack.push_async_callback(MetricsServer(SETTINGS.metrics_host, SETTINGS.metrics_port, read).close)
        ctx[_CLOSE] = stack.pop_all()
    # A full collection stops every stream while it looks through what start-up made, none of which is garbage.
    gc.collect()
    gc.freeze()


def _check_corpus(folder: Path) -> None:
    """A folder that is missing is a wrong setting; one that is empty may be filled while the worker runs."""
    if not folder.is_dir():
        raise StartupError(
            f"PROTOSTAR_CORPUS_DIR is wrong: there is no folder {folder}; name one that holds Markdown files"
        )
    if not any(folder.iterdir()):
        logger.warning("corpus_empty", folder=folder, hint="put Markdown files into it")


def _check_window(prompts: Prompts, count: Count) -> None:
    """A window that no question fits into would fail every job and blame the asker."""
    for mode, persona in prompts.personas.items():
        needed = count(persona) + SETTINGS.max_output_tokens + LEAST_ROOM_TOKENS
        if needed > SETTINGS.context_window:
            raise StartupError(
                f"PROTOSTAR_CONTEXT_WINDOW is {SETTINGS.context_window}; the persona of mode {mode}, the answer's "
                f"{SETTINGS.max_output_tokens} tokens and a short question take {needed}: raise it"
            )


def _provider() -> Provider:
    is_openrouter = SETTINGS.provider == "openrouter"
    key = SETTINGS.openrouter_api_key if is_openrouter else SETTINGS.openai_api_key
    base_url = SETTINGS.openrouter_base_url if is_openrouter else SETTINGS.openai_base_url
    return make_provider(
        SETTINGS.provider,
        api_key=key.get_secret_value() if key else "",
        base_url=base_url.get_secret_value() if base_url else None,
        first_token_timeout_s=SETTINGS.first_token_timeout,
        stall_timeout_s=SETTINGS.stall_timeout,
        headers=trace_headers,
    )


def _gated(ctx: dict[Any, Any], provider: Provider) -> GatedProvider:
    limits = RateLimits(
        ctx["redis"],
        requests_per_minute=SETTINGS.requests_per_minute,
        tokens_per_minute=SETTINGS.tokens_per_minute,
    )
    gate = Gate(
        ctx["redis"],
        provider=provider.name,
        owner=ctx["queue"].owner,
        first_token_s=SETTINGS.first_token_timeout,
        longest_wait_s=SETTINGS.provider_wait,
        limits=limits,
    )
    return GatedProvider(provider, gate)


async def stop(ctx: dict[Any, Any]) -> None:
    """Close what `start` made."""
    if _CLOSE in ctx:
        await ctx[_CLOSE].aclose()


def _as_job(function: Any) -> WorkerCoroutine:
    """ARQ types a job's context as a plain dict; ours says what is in it."""
    return cast(WorkerCoroutine, function)


def reindex_schedule(every_minutes: int) -> list[CronJob]:
    """Cron jobs that reindex at start and then at every whole `every_minutes` of the clock; 0 is never."""
    if every_minutes == 0:
        return []
    minutes = set(range(0, 60, every_minutes)) if every_minutes < 60 else {0}
    hours = set(range(0, 24, -(-every_minutes // 60))) if every_minutes >= 60 else None
    return [
        cron(
            _as_job(reindex_corpus),
            hour=hours,
            minute=minutes,
            run_at_startup=True,
            timeout=REINDEX_TIMEOUT_S,
            max_tries=MAX_TRIES,
        )
    ]


def slots_served(max_jobs: int, serve: Sequence[JobClass]) -> dict[str, int]:
    """Slots of each class; none for a class that other workers serve."""
    slots: dict[JobClass, int] = {"chat": max_jobs, "summary": max(1, max_jobs // 4), "reindex": 1}
    return {name: count if name in serve else 0 for name, count in slots.items()}


REINDEX_TIMEOUT_S: Final = 3600


class WorkerSettings:
    """Bare, as ARQ reads it."""

    functions = [
        func(_as_job(generate_chat), name=GENERATE_CHAT),
        func(_as_job(summarize_message), name=SUMMARIZE_MESSAGE),
        # Without a result of a failure that would keep its id, a later turn can try again.
        func(_as_job(roll_up_session), name=ROLL_UP_SESSION, keep_result=0),
        func(_as_job(reindex_corpus), name=REINDEX_CORPUS, timeout=REINDEX_TIMEOUT_S),
        func(_as_job(index_documents), name=INDEX_DOCUMENTS, timeout=REINDEX_TIMEOUT_S, keep_result=0),
        func(_as_job(read_history), name=READ_HISTORY),
    ]
    cron_jobs = reindex_schedule(SETTINGS.reindex_minutes)
    # A share of slots each, so that none of them starves another.
    classes = {
        GENERATE_CHAT: "chat",
        SUMMARIZE_MESSAGE: "summary",
        ROLL_UP_SESSION: "summary",
        REINDEX_CORPUS: "reindex",
        INDEX_DOCUMENTS: "reindex",
        f"cron:{reindex_corpus.__qualname__}": "reindex",
    }
    slots = slots_served(SETTINGS.max_jobs, SETTINGS.serve)
    turn_function = GENERATE_CHAT
    redis_settings = RedisSettings.from_dsn(SETTINGS.redis_url.get_secret_value())
    redis_url = SETTINGS.redis_url.get_secret_value()
    on_startup = start
    on_shutdown = stop
    on_job_failure = tell_failure
    retry_policy = ChatRetryPolicy()
    observer = WorkerObserver()
    about = about_worker
    max_jobs = SETTINGS.max_jobs
    max_tries = MAX_TRIES
    job_timeout = SETTINGS.job_timeout
    lease_s = SETTINGS.lease
    # An answer's reader is known by its result, so that has to live as long as its events.
    keep_result = max(3600, SETTINGS.event_ttl)
    job_completion_wait = SETTINGS.shutdown_grace
    allow_abort_jobs = True
    job_serializer = dump_json
    job_deserializer = load_json

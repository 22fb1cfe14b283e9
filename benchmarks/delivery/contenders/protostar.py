"""Protostar's worker, put in ARQ's place as `arq_settings.py` does; producers: the client, and ARQ's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import arq.worker
import uvloop
from arq import func
from arq.connections import RedisSettings
from protostar_client import ChatClient
from protostar_client.codec import dump_json, load_json
from protostar_client.contract import GENERATE_CHAT

import protostar.log  # noqa: F401  (configures structlog: a line a job is not written)
from benchmarks.delivery.contenders.arq_producer import stock_producer
from benchmarks.delivery.contenders.common import (
    KEEP_RESULT_S,
    LONGEST_S,
    SLOTS,
    Enqueue,
    do_job,
    option,
    redis_url,
)
from tasks.engine.worker import Worker
from tasks.retry_policy import MAX_TRIES

arq.worker.Worker = Worker  # type: ignore[misc]
uvloop.install()

_NO_LIMIT: Final = 10**9


async def chat_turn(_: dict[Any, Any], **arguments: Any) -> None:
    """A turn of a session, as the client enqueues it, that only holds its slot."""
    number, hold_ms = arguments["content"].split()
    await do_job(int(number), int(hold_ms))


async def plain_job(_: dict[Any, Any], number: int, hold_ms: int) -> None:
    """A job without a session, as ARQ's own client enqueues it."""
    await do_job(number, hold_ms)


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    """The client; every job is a turn of a session of its own."""
    async with ChatClient.connect(redis_url(), max_queue=_NO_LIMIT) as client:

        async def enqueue(number: int, hold_ms: int) -> object:
            return await client.enqueue(
                user_uuid=UUID(int=number), session_id="s", content=f"{number} {hold_ms}", job_id=f"job-{number}"
            )

        yield enqueue


@asynccontextmanager
async def arqs_producer() -> AsyncIterator[Enqueue]:
    """ARQ's own client with JSON; it publishes no wake-up."""
    async with stock_producer("plain_job", dump_json) as enqueue:
        yield enqueue


class WorkerSettings:
    """As in `arq_settings.py`, with no-op functions."""

    functions = (func(chat_turn, name=GENERATE_CHAT), func(plain_job, name="plain_job"))  # type: ignore[arg-type]
    classes = MappingProxyType({GENERATE_CHAT: "chat"})
    slots = MappingProxyType({"chat": SLOTS, "summary": max(1, SLOTS // 4), "reindex": 1})
    turn_function = GENERATE_CHAT
    redis_settings = RedisSettings.from_dsn(redis_url())
    redis_url = redis_url()
    max_jobs = SLOTS
    max_tries = MAX_TRIES
    job_timeout = LONGEST_S
    lease_s = float(option("DELIVERY_LEASE", "15"))
    keep_result = KEEP_RESULT_S
    allow_abort_jobs = True
    job_serializer = dump_json
    job_deserializer = load_json

"""Completes the charges of attempts whose workers died, from the events that they had published."""

from __future__ import annotations

import asyncio
import json
from typing import Final

import structlog
from protostar_client import keys
from protostar_client.contract import EventType
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from tortoise.backends.base.client import BaseDBAsyncClient

from models import Charge
from models.transaction import transact
from tasks.billing.charges import LOST, MOST_TOKENS
from tasks.engine.claim import Claim
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.turn.token_ratios import TokenRatios

logger = structlog.stdlib.get_logger("protostar.bill")

_NOT_SENT: Final = 0
"""Input tokens of a row whose request was never sent."""


async def close_lost_charges(redis: Redis, ratios: TokenRatios, claim: Claim) -> None:
    """Complete the charges that older attempts of a job have left open; those without a request are deleted."""
    if claim.attempt == 1:
        return
    left = await Charge.filter(job_id=claim.job_id, attempt__lt=claim.attempt, outcome__isnull=True)
    if not left:
        return
    count = await ratios.count()
    for charge in left:
        text = await _published_text(redis, claim.job_id, charge.attempt)
        await _close(charge, count(text))
        logger.info("charge_lost", job_id=claim.job_id, attempt=charge.attempt)


async def _close(charge: Charge, output_tokens: int) -> None:
    async def work(connection: BaseDBAsyncClient) -> None:
        still_open = Charge.filter(id=charge.id, outcome__isnull=True).using_db(connection)
        if charge.input_tokens == _NOT_SENT:
            await still_open.delete()
        else:
            await still_open.update(outcome=LOST, estimated=True, output_tokens=min(output_tokens, MOST_TOKENS))

    await transact(work)


async def _published_text(redis: Redis, job_id: str, attempt: int) -> str:
    """The text that an attempt has published; empty where its events have expired."""
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            entries = await redis.xrange(keys.events(job_id), str(attempt), str(attempt))
    except ResponseError:  # the key does not hold a stream
        return ""
    events = (json.loads(fields[b"data"]) for _, fields in entries)
    return "".join(event["text"] for event in events if event["type"] == EventType.DELTA)

"""Keeps a whole answer in Redis while PostgreSQL refuses it, so that no model is asked for it twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import structlog
from protostar_client import keys
from protostar_client.contract import Usage
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from models import MessageStatus
from tasks.billing.charges import DONE, OpenCharge
from tasks.engine.claim import Claim
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.engine.waiting import AWAY
from tasks.turn.prompt_record import Recipe
from tasks.turn.store import AnswerRecord

logger = structlog.stdlib.get_logger("protostar.answer")

KEPT_S: Final = 86_400
"""How long an answer waits for PostgreSQL: as long as ARQ keeps a job."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A completed answer that is not committed, and the charge of the attempt that it cost."""

    record: AnswerRecord
    charge: OpenCharge


async def keep_answer(redis: Redis, job_id: str, answer: KeptAnswer) -> None:
    """Keep an answer for a later attempt. Where Redis fails, the model will be asked again."""
    try:
        value = await asyncio.to_thread(_dump, answer)
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            await redis.set(keys.kept_answer(job_id), value, ex=KEPT_S)
    except AWAY as error:
        logger.warning("answer_keep_failed", job_id=job_id, error=error)
    else:
        logger.warning("answer_kept", job_id=job_id)


async def read_kept_answer(redis: Redis, claim: Claim) -> KeptAnswer | None:
    """Read the answer of a job that is kept, if any."""
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            value = await redis.get(keys.kept_answer(claim.job_id))
    except ResponseError:  # the key holds something else
        return None
    return None if value is None else await asyncio.to_thread(_load, value, claim)


async def drop_kept_answer(redis: Redis, job_id: str) -> None:
    """Delete an answer that is committed now; where Redis fails, it expires."""
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            await redis.delete(keys.kept_answer(job_id))
    except AWAY as error:
        logger.warning("kept_answer_delete_failed", job_id=job_id, error=error)


def _dump(answer: KeptAnswer) -> bytes:
    record, recipe = answer.record, answer.record.recipe
    value = {
        "content": record.content,
        "finish_reason": record.finish_reason,
        "provider": record.provider,
        "model": record.model,
        "usage": record.usage.model_dump(),
        "sources": list(record.sources),
        "recipe": None if recipe is None else {"fields": recipe.fields, "texts": recipe.texts},
        "charge": answer.charge.dump(),
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _load(value: bytes, claim: Claim) -> KeptAnswer:
    kept: dict[str, Any] = json.loads(value)
    record = AnswerRecord(
        content=kept["content"],
        status=MessageStatus.COMPLETED,
        outcome=DONE,
        usage=Usage.model_validate(kept["usage"]),
        finish_reason=kept["finish_reason"],
        provider=kept["provider"],
        model=kept["model"],
        sources=kept["sources"],
        recipe=None if kept["recipe"] is None else Recipe(**kept["recipe"]),
    )
    return KeptAnswer(record, OpenCharge.load(claim, kept["charge"]))

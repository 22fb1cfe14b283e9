"""The bill: what each attempt cost at the provider, and what a user may spend.

A charge is opened just before an attempt sends its request and completed when the attempt is over, so that one whose
worker dies in between costs what it cost, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final
from uuid import UUID

import structlog
from protostar_client import keys
from protostar_client.contract import EventType, Usage, clean_text
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.expressions import Q

from models import Charge
from models.transaction import RETRY_FOR_S, transact
from rag.providers import ProviderError, StalledError
from tasks.context import Tools
from tasks.engine.claim import Claim
from tasks.engine.scripts import REDIS_TIMEOUT_S
from tasks.monitoring import metrics
from tasks.retry_policy import code_of
from tasks.turn.caps import check_caps

logger = structlog.stdlib.get_logger("protostar.bill")

DONE: Final = "done"
CANCELLED: Final = "cancelled"
LOST: Final = "lost"
"""The outcome of an attempt whose worker died or let go of the job."""

GIVE_UP_S: Final = 2.0
LONGEST_PAUSE_S: Final = 2.0  # a frozen worker must not hold up the user's other answers

_MOST_TOKENS: Final = 2**31 - 1
_MOST_COST: Final = 1e8

# A row of an earlier life of the job, which Redis has forgotten, is never written over: its number is passed by.
_OPEN: Final = """
INSERT INTO charges (job_id, attempt, user_uuid, provider, model, input_tokens, output_tokens, estimated, created_at)
SELECT $1::varchar, GREATEST($2::int, 1 + max(attempt)), $3::uuid, $4::varchar, $5::text, $6::int, 0, true, now()
FROM charges WHERE job_id = $1::varchar AND outcome IS NOT NULL
ON CONFLICT (job_id, attempt) DO UPDATE SET attempt = EXCLUDED.attempt
RETURNING attempt
"""


@dataclass(slots=True)
class OpenCharge:
    """The charge of an attempt that has sent, or is about to send, its request.

    `attempt` numbers the row. `asked` is the model as the settings name it, `model` as its provider does once it
    has answered. `input_tokens` is our estimate for the request under way, `spent` the sum of those
    that are over. `user_uuid` is None where the cost is nobody's.
    """

    job_id: str
    attempt: int
    user_uuid: UUID | None
    provider: str
    model: str
    asked: str
    input_tokens: int
    spent: Usage = field(default_factory=lambda: Usage(input_tokens=0, output_tokens=0))

    def add(self, usage: Usage, *, model: str) -> None:
        """Add what a request cost whose answer is there, made by `model`."""
        self.spent = _sum(self.spent, usage)
        metrics.spent(self.asked, usage)
        self.model = model

    async def complete(self, outcome: str, connection: BaseDBAsyncClient) -> None:
        """Write down how the attempt ended and what was spent, once: a known outcome stays.

        An attempt that was thought lost knows better what it cost than who took its job over.
        """
        own = Charge.filter(job_id=self.job_id, attempt=self.attempt).using_db(connection)
        await own.filter(Q(outcome__isnull=True) | Q(outcome=LOST)).update(
            outcome=outcome, model=clean_text(self.model), **_columns(self.spent)
        )

    async def complete_alone(self, outcome: str, *, retry_for_s: float = RETRY_FOR_S) -> None:
        """As `complete`, in a transaction of its own."""
        await transact(lambda connection: self.complete(outcome, connection), retry_for_s=retry_for_s)

    async def give_up(self) -> None:
        """Complete the charge of an attempt that loses its job, as far as that works now."""
        with contextlib.suppress(Exception):  # where it fails, the next attempt does it
            async with asyncio.timeout(GIVE_UP_S):
                await self.complete_alone(LOST, retry_for_s=0)


def new_charge(tools: Tools, claim: Claim, *, user_uuid: UUID | None, model: str, input_tokens: int) -> OpenCharge:
    """A charge, not yet written, for an attempt that is to ask `model` with a prompt of so many tokens."""
    return OpenCharge(claim.job_id, claim.attempt, user_uuid, tools.provider.name, model, model, input_tokens)


@asynccontextmanager
async def billed(
    tools: Tools, charge: OpenCharge, *, is_capped: bool = False, said_tokens: Callable[[], int] = int
) -> AsyncIterator[None]:
    """Open a charge for the requests made inside. Where that ends with an error, see to what they cost.

    An error of the provider completes the charge. Any other may still have an ending to tell, which completes it.

    Args:
        tools: the worker's tools.
        charge: what to open; `charge.add` what each answered request cost.
        is_capped: whether the user's caps hold. They are asked at a job's first request only: an answer that
            was let in is finished, whatever its retries cost.
        said_tokens: the size of what has come of the answer to the request under way.

    Raises:
        CapReachedError: a cap of the user is reached; nothing was written.
    """
    try:
        await _open(tools, charge, is_capped=is_capped)
        yield
    except ProviderError as error:
        output_tokens = said_tokens()
        if output_tokens or isinstance(error, StalledError):  # or else it was refused, which costs nothing
            charge.add(_estimate(charge, output_tokens), model=charge.model)
        await charge.complete_alone(code_of(error))
        raise
    except BaseException:
        charge.add(_estimate(charge, said_tokens()), model=charge.model)
        await charge.give_up()
        raise


async def _open(tools: Tools, charge: OpenCharge, *, is_capped: bool) -> None:
    is_capped = is_capped and charge.user_uuid is not None and tools.settings.has_user_caps
    values = [charge.job_id, charge.attempt, charge.user_uuid, charge.provider, charge.model]

    async def work(connection: BaseDBAsyncClient) -> int:
        if is_capped:
            await check_caps(connection, tools.settings, user_uuid=charge.user_uuid, job_id=charge.job_id)
        [row] = await connection.execute_query_dict(_OPEN, [*values, min(charge.input_tokens, _MOST_TOKENS)])
        return int(row["attempt"])

    charge.attempt = await transact(work, longest_pause_s=LONGEST_PAUSE_S if is_capped else None)


def _estimate(charge: OpenCharge, output_tokens: int) -> Usage:
    return Usage(input_tokens=charge.input_tokens, output_tokens=output_tokens, estimated=True)


async def close_lost(tools: Tools, redis: Redis, claim: Claim) -> None:
    """Complete the charges that older attempts of a job have left open; what they said is in the event log."""
    if claim.attempt == 1:
        return
    left = await Charge.filter(job_id=claim.job_id, attempt__lt=claim.attempt, outcome__isnull=True)
    count = await tools.ratios.count()
    for charge in left:
        said = await _said(redis, claim.job_id, charge.attempt)
        await _close(charge, count(said))
        logger.info("charge_lost", job_id=claim.job_id, attempt=charge.attempt)


async def _close(charge: Charge, output_tokens: int) -> None:
    async def work(connection: BaseDBAsyncClient) -> None:
        still_open = Charge.filter(id=charge.id, outcome__isnull=True).using_db(connection)
        await still_open.update(outcome=LOST, estimated=True, output_tokens=min(output_tokens, _MOST_TOKENS))

    await transact(work)


async def _said(redis: Redis, job_id: str, attempt: int) -> str:
    """What an attempt has told its readers; empty where its events are gone, or were never."""
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            entries = await redis.xrange(keys.events(job_id), str(attempt), str(attempt))
    except ResponseError:  # no stream
        return ""
    events = (json.loads(fields[b"data"]) for _, fields in entries)
    return "".join(event["text"] for event in events if event["type"] == EventType.DELTA)


def _sum(first: Usage, second: Usage) -> Usage:
    costs = [usage.cost for usage in (first, second) if usage.cost is not None]
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost=sum(costs) if costs else None,
        estimated=first.estimated or second.estimated,
    )


def _columns(usage: Usage) -> dict[str, int | bool | Decimal | None]:
    """The usage as the table takes it: a provider may say any number."""
    return {
        "input_tokens": min(usage.input_tokens, _MOST_TOKENS),
        "output_tokens": min(usage.output_tokens, _MOST_TOKENS),
        "cost": None if usage.cost is None or usage.cost >= _MOST_COST else Decimal(str(usage.cost)),
        "estimated": usage.estimated,
    }

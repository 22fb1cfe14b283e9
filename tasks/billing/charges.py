"""The bill: what each attempt at a job cost at the provider.

A charge has a row from just before its first request is sent, or from the check of the user's caps on, so that an
attempt whose worker dies is billed, too. A row without input tokens belongs to a request that was never sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from protostar_client.contract import Usage
from protostar_client.normalization import clean_text
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.expressions import Q

from models import Charge
from models.transaction import RETRY_FOR_S, transact
from rag.providers import ProviderError, StalledError
from tasks.billing.caps import Caps
from tasks.engine.claim import Claim
from tasks.monitoring import metrics
from tasks.retry_policy import code_of

DONE: Final = "done"
CANCELLED: Final = "cancelled"
LOST: Final = "lost"
"""The outcome of an attempt whose worker died or let go of the job."""

GIVE_UP_S: Final = 2.0
LONGEST_PAUSE_S: Final = 2.0  # a frozen worker must not hold up the user's other answers
MOST_TOKENS: Final = 2**31 - 1

_MOST_COST: Final = 1e8

# The row of an earlier life of the job, which Redis has forgotten, is never overwritten: its number is skipped.
_OPEN: Final = """
INSERT INTO charges (job_id, attempt, user_uuid, provider, model, input_tokens, output_tokens, estimated, created_at)
SELECT $1::varchar, GREATEST($2::int, 1 + max(attempt)), $3::uuid, $4::varchar, $5::text, $6::int, 0, true, now()
FROM charges WHERE job_id = $1::varchar AND outcome IS NOT NULL
ON CONFLICT (job_id, attempt) DO UPDATE SET model = EXCLUDED.model, input_tokens = EXCLUDED.input_tokens
RETURNING attempt
"""


class OpenCharge:
    """What an attempt has spent so far, and its row.

    `user_uuid` is None where the cost has no user. `model` is the one that was asked last, by the provider's name for
    it once it has answered. `spent` is the sum of the requests that are over.
    """

    def __init__(self, claim: Claim, *, user_uuid: UUID | None, provider: str, model: str) -> None:
        self.job_id = claim.job_id
        self.user_uuid = user_uuid
        self.provider = provider
        self.model = model
        self.spent = Usage(input_tokens=0, output_tokens=0)
        self.attempt = claim.attempt
        self._asked = model
        self._input_tokens = 0  # of the last request
        self._is_under_way = False
        self._has_row = False

    def dump(self) -> dict[str, Any]:
        """Describe the charge of an answer that is whole, as JSON values."""
        user = None if self.user_uuid is None else str(self.user_uuid)
        fields = {"provider": self.provider, "model": self.model, "attempt": self.attempt}
        return {**fields, "user_uuid": user, "spent": self.spent.model_dump()}

    @classmethod
    def load(cls, claim: Claim, fields: Mapping[str, Any]) -> OpenCharge:
        """Take up a charge of an earlier attempt at the job, to complete it."""
        user = None if fields["user_uuid"] is None else UUID(fields["user_uuid"])
        charge = cls(claim, user_uuid=user, provider=fields["provider"], model=fields["model"])
        charge.attempt, charge.spent = fields["attempt"], Usage.model_validate(fields["spent"])
        charge._input_tokens, charge._has_row = max(1, charge.spent.input_tokens), True
        return charge

    @property
    def is_sent(self) -> bool:
        """Whether a request was sent."""
        return self._input_tokens > 0

    async def reserve(self, caps: Caps) -> None:
        """Check the user's caps and open the row, in one transaction: two answers cannot both take the last place.

        Raises:
            CapReachedError: a cap of the user is reached; nothing was written.
        """

        async def work(connection: BaseDBAsyncClient) -> int:
            await caps.check(connection, user_uuid=self.user_uuid, job_id=self.job_id)
            return await self._open(connection, input_tokens=0)

        self.attempt = await transact(work, longest_pause_s=LONGEST_PAUSE_S)
        self._has_row = True

    async def send(self, *, input_tokens: int) -> None:
        """Write the estimate for a request before it is sent."""
        tokens = min(max(1, input_tokens), MOST_TOKENS)
        if not self.is_sent:
            self.attempt = await transact(lambda connection: self._open(connection, input_tokens=tokens))
            self._has_row = True
        self._input_tokens = tokens
        self._is_under_way = True

    def answered_by(self, model: str) -> None:
        """Note which of the models in the settings has begun to answer."""
        self.model = self._asked = model

    def add(self, usage: Usage, *, model: str) -> None:
        """Add the cost of a request that was answered by `model`."""
        self._is_under_way = False
        self.spent = _sum(self.spent, usage)
        metrics.spent(self._asked, usage)
        self.model = model

    def add_estimate(self, *, output_tokens: int) -> None:
        """Add the request under way, if there is one, for which the provider names no usage."""
        if not self._is_under_way:
            return
        usage = Usage(input_tokens=self._input_tokens, output_tokens=output_tokens, estimated=True)
        self.add(usage, model=self.model)

    async def complete(self, outcome: str, connection: BaseDBAsyncClient) -> None:
        """Write how the attempt ended and what it cost, once. Without a request the row is deleted.

        An attempt that was considered lost knows its cost better than the attempt that took its job over.
        """
        if not self._has_row:
            return
        own = Charge.filter(job_id=self.job_id, attempt=self.attempt).using_db(connection)
        still_open = own.filter(Q(outcome__isnull=True) | Q(outcome=LOST))
        if self.is_sent:
            await still_open.update(outcome=outcome, model=clean_text(self.model), **columns(self.spent))
        else:
            await still_open.delete()

    async def complete_alone(self, outcome: str, *, retry_for_s: float = RETRY_FOR_S) -> None:
        """As `complete`, in a transaction of its own."""
        await transact(lambda connection: self.complete(outcome, connection), retry_for_s=retry_for_s)

    async def give_up(self) -> None:
        """Complete the charge of an attempt that lets go of its job, if that works at once."""
        with contextlib.suppress(Exception):  # where it fails, the next attempt does it
            async with asyncio.timeout(GIVE_UP_S):
                await self.complete_alone(LOST, retry_for_s=0)

    async def _open(self, connection: BaseDBAsyncClient, *, input_tokens: int) -> int:
        values = [self.job_id, self.attempt, self.user_uuid, self.provider, self.model, input_tokens]
        [row] = await connection.execute_query_dict(_OPEN, values)
        return int(row["attempt"])


@asynccontextmanager
async def billed(
    charge: OpenCharge, *, caps: Caps | None = None, output_tokens: Callable[[], int] = int
) -> AsyncIterator[OpenCharge]:
    """Bill the requests made inside. Where that ends with an error, add what the request under way cost.

    An error of the provider completes the charge. After any other the attempt may still publish an ending, which
    completes it.

    Args:
        charge: the attempt's charge; `send` it before each request and `add` what each answer cost.
        caps: the user's caps, checked first. An answer that was let in is finished, whatever its retries cost.
        output_tokens: counts what the request under way has brought.

    Raises:
        CapReachedError: a cap of the user is reached; nothing was written.
    """
    try:
        if caps is not None:
            await charge.reserve(caps)
        yield charge
    except ProviderError as error:
        if not charge.is_sent:
            await charge.give_up()
            raise
        received = output_tokens()
        if received or isinstance(error, StalledError):  # a request that was refused costs nothing
            charge.add_estimate(output_tokens=received)
        await charge.complete_alone(code_of(error))
        raise
    except BaseException:
        charge.add_estimate(output_tokens=output_tokens())
        await charge.give_up()
        raise


def _sum(first: Usage, second: Usage) -> Usage:
    costs = [usage.cost for usage in (first, second) if usage.cost is not None]
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost=sum(costs) if costs else None,
        estimated=first.estimated or second.estimated,
    )


def columns(usage: Usage) -> dict[str, int | bool | Decimal | None]:
    """The usage as the table takes it: a provider may report any number."""
    return {
        "input_tokens": min(usage.input_tokens, MOST_TOKENS),
        "output_tokens": min(usage.output_tokens, MOST_TOKENS),
        "cost": None if usage.cost is None or usage.cost >= _MOST_COST else Decimal(str(usage.cost)),
        "estimated": usage.estimated,
    }

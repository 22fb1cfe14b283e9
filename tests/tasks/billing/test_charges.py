"""A charge counts every request once, by the provider's usage or by an estimate."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from protostar_client.contract import Usage

from models import Charge
from models.database import connect
from rag.providers import ProviderUnavailableError, StalledError
from tasks.billing.charges import OpenCharge, billed
from tasks.engine.claim import Claim

USAGE = Usage(input_tokens=30, output_tokens=7)


def opened() -> OpenCharge:
    claim = Claim(id=uuid4().hex.encode(), attempt=1, spared=0, rank_ms=0, payload=None, aborted=False)
    return OpenCharge(claim, user_uuid=uuid4(), provider="openai", model="m")


async def row(charge: OpenCharge) -> tuple[str | None, int, int, bool] | None:
    found = await Charge.get_or_none(job_id=charge.job_id)
    return None if found is None else (found.outcome, found.input_tokens, found.output_tokens, found.estimated)


async def attempt(charge: OpenCharge, error: BaseException, *, usage: Usage | None = None, received: int = 0) -> None:
    """Send a request that brings a usage or some tokens, then fail."""
    async with billed(charge, output_tokens=lambda: received):
        await charge.send(input_tokens=20)
        if usage is not None:
            charge.add(usage, model="m")
        raise error


async def test_a_cancellation_after_the_usage_came_adds_no_estimate(database_url: str) -> None:
    async with connect(database_url):
        charge = opened()
        with pytest.raises(asyncio.CancelledError):
            await attempt(charge, asyncio.CancelledError(), usage=USAGE, received=99)
        assert await row(charge) == ("lost", 30, 7, False)


@pytest.mark.parametrize(
    ("error", "received", "expected"),
    [
        (ProviderUnavailableError("down"), 0, ("provider_unavailable", 0, 0, False)),
        (ProviderUnavailableError("broke off"), 5, ("provider_unavailable", 20, 5, True)),
        (StalledError("silent"), 0, ("stalled", 20, 0, True)),
        (asyncio.CancelledError(), 5, ("lost", 20, 5, True)),
    ],
    ids=repr,
)
async def test_a_request_that_fails_is_estimated_if_it_cost_something(
    database_url: str, error: BaseException, received: int, expected: tuple[str, int, int, bool]
) -> None:
    async with connect(database_url):
        charge = opened()
        with pytest.raises(type(error)):
            await attempt(charge, error, received=received)
        assert await row(charge) == expected


async def test_without_a_request_nothing_is_written(database_url: str) -> None:
    async with connect(database_url):
        charge = opened()
        with pytest.raises(ValueError, match="too long"):
            async with billed(charge):
                raise ValueError("too long")
        assert await row(charge) is None

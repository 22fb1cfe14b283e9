"""How long an answer's next token is waited for."""

from __future__ import annotations

import asyncio

import pytest

from rag.providers import StalledError, streaming
from rag.providers.streaming import Limits, Patience

NEVER_S = 3600.0


def patience(*, first_token_s: float = NEVER_S, stall_s: float = NEVER_S) -> Patience:
    return Patience("a provider", Limits(first_token_s, stall_s))


async def never() -> None:
    await asyncio.get_running_loop().create_future()


def current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_tokens_renew_it_for_as_long_as_they_come() -> None:
    patient = patience(first_token_s=2, stall_s=0.5)
    for _ in range(15):
        await patient.wait_for_part(asyncio.sleep(0.05))
        patient.renew()
    with pytest.raises(StalledError, match=r"0\.5 s"):
        await asyncio.wait_for(patient.wait_for_part(never()), 5)


async def test_waits_without_a_token_use_it_up_together() -> None:
    patient = patience(first_token_s=0.2)

    async def keep_alive() -> None:
        while True:
            await patient.wait_for_part(asyncio.sleep(0.01))

    with pytest.raises(StalledError, match=r"0\.2 s"):
        await asyncio.wait_for(keep_alive(), 5)


async def test_only_waiting_uses_it_up() -> None:
    patient = patience(first_token_s=0.3)
    await patient.wait_for_part(asyncio.sleep(0.01))
    await asyncio.sleep(0.6)  # a slow reader, beyond the moment at which the timer looks
    await patient.wait_for_part(asyncio.sleep(0.01))


async def test_after_the_finish_reason_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "USAGE_WAIT_S", 0.05)
    patient = patience()
    await patient.wait_for_part(asyncio.sleep(0))  # the timer is set for much later
    patient.shorten()
    with pytest.raises(StalledError):
        await asyncio.wait_for(patient.wait_for_part(never()), 5)


async def test_the_task_goes_on_as_if_it_had_not_been_cancelled() -> None:
    with pytest.raises(StalledError):
        await patience(first_token_s=0.01).wait(never())
    assert current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_a_task_that_was_cancelled_before_stalls_all_the_same() -> None:
    async def clean_up() -> int:
        try:
            await never()
        except asyncio.CancelledError:
            with pytest.raises(StalledError):
                await patience(first_token_s=0.01).wait(never())
        return current_task().cancelling()

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 1


@pytest.mark.parametrize("is_over", [False, True], ids=["in time", "as it is used up"])
async def test_somebody_elses_cancellation_is_passed_on(is_over: bool) -> None:
    patient = patience()
    task = asyncio.create_task(patient.wait(never()))
    await asyncio.sleep(0)
    if is_over:
        patient._deadline_s = 0
        patient._look()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_single_wait_leaves_no_timer() -> None:
    patient = patience()
    await patient.wait(asyncio.sleep(0))
    assert patient._timer is None

"""A job that is called with wrong arguments names the first of them."""

from __future__ import annotations

from typing import Any

import pytest
from protostar_client.contract import JobError

from tasks.arguments import as_job


async def greet(ctx: dict[Any, Any], *, name: str, times: int = 1) -> str:
    """A job function."""
    return f"{ctx['greeting']}, {name}" * times


JOB = as_job(greet)
CTX = {"greeting": "Hello"}


async def test_a_right_call_reaches_the_function() -> None:
    assert await JOB(CTX, name="A", times=2) == "Hello, AHello, A"
    assert JOB.__qualname__ == "greet"


@pytest.mark.parametrize(
    ("positional", "named", "problem"),
    [
        ((), {"name": "A", "tims": 2}, "tims: is unknown; the arguments are name, times"),
        ((), {"times": 2}, "name: is missing"),
        (("A",), {}, "name every argument"),
    ],
)
async def test_a_wrong_call_is_an_invalid_request(
    positional: tuple[str, ...], named: dict[str, Any], problem: str
) -> None:
    with pytest.raises(JobError, match=problem) as raised:
        await JOB(CTX, *positional, **named)
    assert raised.value.code == "invalid_request"

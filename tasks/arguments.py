"""Checks the arguments of a job against its function before the function is called."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, cast

from arq.typing import WorkerCoroutine
from protostar_client.contract import ErrorCode, InvalidRequest, JobError


def as_job(function: Callable[..., Awaitable[Any]]) -> WorkerCoroutine:
    """Make a job of a function with a context and keyword arguments: a wrong call raises `InvalidRequest`."""
    _, *parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters]
    required = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]

    @wraps(function)
    async def call(ctx: dict[Any, Any], *args: Any, **arguments: Any) -> Any:
        if args:
            raise JobError(ErrorCode.INVALID_REQUEST, "the arguments have no names; name every argument")
        for name in arguments:
            if name not in names:
                raise InvalidRequest(name, f"is unknown; the arguments are {', '.join(names) or 'none'}")
        for name in required:
            if name not in arguments:
                raise InvalidRequest(name, "is missing")
        return await function(ctx, **arguments)

    return cast(WorkerCoroutine, call)

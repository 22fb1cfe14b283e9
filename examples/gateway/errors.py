"""Errors as status codes and one form of JSON: `{"error": {"code", "message", ...}}`."""

from __future__ import annotations

import logging
from typing import Any, Final

import asyncpg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from protostar_client import (
    ConnectionLost,
    EventsExpired,
    InvalidRequest,
    JobError,
    JobVanished,
    ProtostarError,
    QueueFull,
    RedisRefused,
    SessionBusy,
)

from .users import NotSignedInError

_QUEUE_FULL_S: Final = 5
_REDIS_AWAY_S: Final = 2


logger = logging.getLogger("protostar.gateway")


class NotFoundError(Exception):
    """There is no such thing, or this user may not see it."""


def answer_errors(app: FastAPI) -> None:
    """Give every error the same form."""
    app.add_exception_handler(ProtostarError, _protostar)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(NotSignedInError, lambda _, error: _reply(401, "not_signed_in", str(error)))
    app.add_exception_handler(NotFoundError, lambda _, error: _reply(404, "not_found", str(error)))
    app.add_exception_handler(TimeoutError, _no_answer)
    for away in (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        app.add_exception_handler(away, _database_away)


def _protostar(_request: Request, error: Exception) -> JSONResponse:
    text = str(error)
    match error:
        case InvalidRequest(field=field, message=message):
            return _reply(422, "invalid_request", message, field=field)
        case QueueFull():
            return _reply(503, error.code, error.message, retry_s=_QUEUE_FULL_S)
        case SessionBusy():
            return _reply(409, "session_busy", text, job_id=error.job_id)
        case JobVanished() | EventsExpired():
            return _reply(404, "not_found", text)
        case ConnectionLost() | RedisRefused():
            # Their own messages name addresses, which are not a browser's business.
            logger.warning("redis unavailable: %s", error)
            return _reply(503, "unavailable", "the queue can't be reached; try again", retry_s=_REDIS_AWAY_S)
        case JobError():
            return _reply(502, error.code, error.message)
        case _:
            return _reply(500, "internal", "the gateway failed; its log says why")


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    names = [str(part) for part in problem["loc"][1:] if not isinstance(part, int)]
    field = names[0] if names else str(problem["loc"][0])
    return _reply(422, "invalid_request", f"{field}: {problem['msg']}", field=field)


def _no_answer(_request: Request, _error: Exception) -> JSONResponse:
    return _reply(504, "no_worker", "no worker has answered in time; is one running?")


def _database_away(_request: Request, _error: Exception) -> JSONResponse:
    return _reply(503, "unavailable", "the database can't be reached; try again", retry_s=_REDIS_AWAY_S)


def _reply(status: int, code: str, message: str, *, retry_s: int | None = None, **more: Any) -> JSONResponse:
    headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers)

"""Formats log lines as text or JSON. A line about a job carries its id, its session and its attempt."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from protostar.log import Event, add_labels
from protostar.settings import LogFormat, LogLevel
from tasks.engine.claim import Claim

_ARQ_HANDLER: Final = "arq.standard"
"""The name of the handler in the log configuration of ARQ's command; a handler of another name is the user's."""
_MAX_SESSION: Final = 128


@dataclass(slots=True)
class JobLabels:
    """The fields that every log line about a job carries.

    It refers to the claim because the number of an attempt may rise while it runs.
    """

    claim: Claim
    session: str = ""

    @property
    def fields(self) -> dict[str, str | int]:
        """The labels by name; a job without a session has no `session`."""
        session = {"session": self.session[:_MAX_SESSION]} if self.session else {}
        return {"job_id": self.claim.job_id, **session, "attempt": self.claim.attempt}

    def bind(self) -> None:
        """Label every line of the running task and of the tasks that it starts."""
        structlog.contextvars.bind_contextvars(labels=self)


def label_session(session: str) -> None:
    """Name the session of the running job, where its arguments don't."""
    if labels := structlog.contextvars.get_contextvars().get("labels"):
        labels.session = session


def configure(log_format: LogFormat, level: LogLevel | None) -> None:
    """Write events where ARQ's command writes its lines, unless a log configuration of the user decides."""
    ours, arqs = logging.getLogger("protostar"), logging.getLogger("arq")
    if not ours.handlers:
        ours.handlers = arqs.handlers
        ours.setLevel(arqs.level)
    handlers = [handler for handler in arqs.handlers if handler.name == _ARQ_HANDLER]
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    if level is not None:
        for logger in (ours, arqs):
            logger.setLevel(level.upper())
        for handler in handlers:
            handler.setLevel(level.upper())
    if handlers and log_format == "json" and not logging.root.handlers:
        _take_all_lines(handlers, ours, arqs)


def _take_all_lines(handlers: list[logging.Handler], *loggers: logging.Logger) -> None:
    """Write the warnings of other libraries too: a line that is not JSON would break a log collector."""
    for logger in loggers:
        logger.handlers = []
    logging.root.handlers = handlers
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """Formats a line as ARQ's command does, on one line, with the labels of the running job."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Format the line without its traceback."""
        line = super().formatMessage(record).replace("\n", "\\n")
        return line + str(Event(event="", **_labels_of(record)))


class JsonFormatter(logging.Formatter):
    """Formats one JSON object a line: `time`, `level`, `logger`, the `event` with its fields, and the job's labels.

    A line of another library has a `message` in place of an event. A traceback is the `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(record.msg if isinstance(record.msg, Event) else {"message": record.getMessage()}),
            **_labels_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def _labels_of(record: logging.LogRecord) -> dict[str, Any]:
    """The labels of a line of another library; an event has them among its fields."""
    if isinstance(record.msg, Event):
        return {}
    return dict(add_labels(None, "", structlog.contextvars.get_contextvars()))

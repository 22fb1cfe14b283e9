"""How log lines look: text or JSON; every line about a job carries its id, its session and its attempt."""

from __future__ import annotations

import json
import logging
import re
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from protostar.settings import LogFormat, LogLevel
from tasks.engine.claim import Claim

_ARQS_HANDLER: Final = "arq.standard"
"""The name ARQ's command gives the handler of its own log configuration; under another one it is the user's."""
_LONGEST_SESSION: Final = 128

# `event_name key=%s key=%.1f ...`, as this project writes its lines.
_EVENT: Final = re.compile(r"[a-z]+(?:_[a-z]+)*(?= |$)")
_FIELD: Final = re.compile(r" (\w+)=%[-+#0 ]?\d*(?:\.\d+)?([sdrfgx])")
_CONVERSION: Final = re.compile(r"%[^%]")
_BARE: Final = re.compile(r"[\w.:@/+-]+")


@dataclass(slots=True)
class JobLabels:
    """What the log lines about a job say of it. A claim's attempt may be numbered anew, so the claim is kept."""

    claim: Claim
    session: str = ""

    @property
    def fields(self) -> dict[str, str | int]:
        """The labels by name; a job of no session has none."""
        session = {"session": self.session[:_LONGEST_SESSION]} if self.session else {}
        return {"job_id": self.claim.job_id, **session, "attempt": self.claim.attempt}

    @property
    def extra(self) -> dict[str, JobLabels]:
        """For a line about the job that is written elsewhere: `logger.warning(..., extra=labels.extra)`."""
        return {"job": self}

    def bind(self) -> None:
        """Label every line of the running task and of those it starts."""
        _bound.set(self)


_bound: ContextVar[JobLabels | None] = ContextVar("job_labels", default=None)


def label_session(session: str) -> None:
    """Name the session of the running job, where its arguments don't."""
    if labels := _bound.get():
        labels.session = session


def configure(log_format: LogFormat, level: LogLevel | None) -> None:
    """Say what happens where ARQ's command says it, unless a log configuration of the user's decides."""
    ours, arqs = logging.getLogger("protostar"), logging.getLogger("arq")
    if not ours.handlers:
        ours.handlers = arqs.handlers
        ours.setLevel(arqs.level)
    handlers = [handler for handler in arqs.handlers if handler.name == _ARQS_HANDLER]
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
    """Write the lines of other libraries too, from a warning on: one that is no JSON would break a collector."""
    for logger in loggers:
        logger.handlers = []
    logging.root.handlers = handlers
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """A line as ARQ's command writes it, and after it the labels that it does not name itself."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """The line, without the traceback."""
        line = super().formatMessage(record).replace("\n", "\\n")
        named = {name for name, _ in _parts_of(str(record.msg))[1]}
        labels = _labels_of(record).items()
        return line + "".join(f" {name}={_bare(value)}" for name, value in labels if name not in named)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, the `event` with its fields, and the job's labels.

    What is not written as an event and fields is the `message`; a traceback is the `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_said(record),
        }
        for name, value in _labels_of(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def _labels_of(record: logging.LogRecord) -> dict[str, str | int]:
    labels = getattr(record, "job", None) or _bound.get()
    return labels.fields if isinstance(labels, JobLabels) else {}


def _said(record: logging.LogRecord) -> dict[str, Any]:
    event, names, is_all = _parts_of(str(record.msg))
    if not event:
        return {"message": record.getMessage()}
    fields: dict[str, Any] = {"event": event}
    if isinstance(record.args, tuple) and len(names) == len(record.args):
        for (name, kind), value in zip(names, record.args, strict=True):
            is_plain = value is None or isinstance(value, bool | int | float)
            fields[name] = value if is_plain else repr(value) if kind == "r" else str(value)
    return fields if is_all else {**fields, "message": record.getMessage()}


@lru_cache(maxsize=512)
def _parts_of(template: str) -> tuple[str, tuple[tuple[str, str], ...], bool]:
    """The event of a line, the names and conversions of its fields in order, and whether that is all it says."""
    event = _EVENT.match(template)
    if event is None:
        return "", (), False
    rest = template[event.end() :]
    names = tuple((name, kind) for name, kind in _FIELD.findall(rest))
    if len(names) != len(_CONVERSION.findall(rest)):
        return event[0], (), False
    return event[0], names, not _FIELD.sub("", rest)


def _bare(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)

"""Passes structlog's events on to the standard library's loggers, so that one log configuration decides about all.

Importing this module configures structlog: each program imports it once, before its first event.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

_BARE: Final = re.compile(r"[^\s\"=]+")


class Event(dict[str, Any]):
    """An event and its fields. Its text is `event key=value ...` on one line."""

    def __str__(self) -> str:
        fields = (f" {name}={_quoted(value)}" for name, value in self.items() if name != "event")
        return str(self.get("event", "")).replace("\n", "\\n") + "".join(fields)


def add_labels(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the fields of the running job, where the event does not name them itself."""
    labels = event.pop("labels", None)
    return event if labels is None else {**event, **{k: v for k, v in labels.fields.items() if k not in event}}


def _to_record(_logger: WrappedLogger, _method: str, event: EventDict) -> tuple[tuple[Event], dict[str, Any]]:
    exc_info = event.pop("exc_info", None)
    return (Event(event=event.pop("event"), **event),), {"exc_info": exc_info}


def _quoted(value: object) -> str:
    text = str(value)
    quoted = text if _BARE.fullmatch(text) and text.isprintable() else json.dumps(text, ensure_ascii=False)
    return quoted.encode(errors="backslashreplace").decode()


structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, add_labels, _to_record],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)

"""A log configuration for ARQ's `--custom-log-dict` that writes every event of Protostar."""

from __future__ import annotations

from typing import Any, Final

LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(name)s %(message)s"}},
    "handlers": {"standard_error": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"protostar": {"level": "INFO", "handlers": ["standard_error"]}},
}

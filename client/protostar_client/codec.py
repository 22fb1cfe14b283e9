"""ARQ's records as JSON: what is given to ARQ as serializer and deserializer, in place of pickle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from protostar_client.contract import CANCELLED_CODE, ErrorCode, JobError


def dump_json(value: dict[str, Any]) -> bytes:
    """Serialise one of ARQ's records. An exception becomes `{"error": {"code", "message"}}`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_dump_exception)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can escape it
        return json.dumps(value, separators=(",", ":"), default=_dump_exception).encode()


def load_json(data: bytes) -> dict[str, Any]:
    """Read one of ARQ's records; a failed job's result becomes the exception that `Job.result()` raises.

    Raises:
        ValueError: `data` is not a JSON object (a pickle, for one), so nothing of it is run.
    """
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("a record must be a JSON object")
    if record.get("s") is False:
        record["r"] = _load_exception(record.get("r"))
    return record


def _dump_exception(value: object) -> object:
    if isinstance(value, asyncio.CancelledError):
        return {"error": {"code": CANCELLED_CODE, "message": "the job was cancelled"}}
    if isinstance(value, JobError):
        return {"error": {"code": value.code, "message": value.message}}
    if isinstance(value, BaseException):
        return {
            "error": {
                "code": ErrorCode.INTERNAL.value,
                "message": "the job failed; the worker's log says why",
            }
        }
    raise TypeError(f"{type(value).__name__} is not JSON")


def _load_exception(value: object) -> BaseException:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return JobError(ErrorCode.INTERNAL, str(value))
    if error.get("code") == CANCELLED_CODE:
        return asyncio.CancelledError()
    return JobError(str(error.get("code")), str(error.get("message")))

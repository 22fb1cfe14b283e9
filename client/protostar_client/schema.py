"""JSON Schemas of requests, results and events, made from the models; `schemas/` holds them as files.

`python -m protostar_client.schema` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from protostar_client import contract
from protostar_client.contract import EVENT_FIELDS, ErrorCode, Event, EventType

FOLDER: Final = Path(__file__).parent / "schemas"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_MODELS: Final[dict[str, type[BaseModel]]] = {
    "generate_chat.request": contract.ChatRequest,
    "generate_chat.result": contract.ChatResult,
    "summarize_message.request": contract.SummaryRequest,
    "summarize_message.result": contract.SummaryResult,
    "reindex_corpus.request": contract.ReindexRequest,
    "reindex_corpus.result": contract.ReindexResult,
    "read_history.request": contract.HistoryRequest,
    "read_history.result": contract.HistoryResult,
}
_IN_EVERY_EVENT: Final = ("v", "type", "job_id", "attempt", "seq")
_NULLABLE: Final = {(EventType.CANCELLED, "message_id")}


def schemas() -> dict[str, str]:
    """The text of every schema, by its name: a function's request or result, a failed job's result, an event."""
    made = {name: _of_model(model, name) for name, model in _MODELS.items()}
    made |= {"failure.result": _failure(), "event": _event()}
    return {
        name: json.dumps({"$schema": _DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"
        for name, schema in made.items()
    }


def _of_model(model: type[BaseModel], name: str) -> dict[str, Any]:
    # A request says what may be left out, a result what is always there.
    return model.model_json_schema(mode="validation" if name.endswith(".request") else "serialization")


def _failure() -> dict[str, Any]:
    code = {"type": "string", "examples": [*ErrorCode, contract.CANCELLED_CODE]}
    error = {"type": "object", "properties": {"code": code, "message": {"type": "string"}}}
    return {
        "title": "Failure",
        "description": "The result of a job that failed or was cancelled.",
        "type": "object",
        "properties": {"error": {**error, "required": ["code", "message"]}},
        "required": ["error"],
    }


def _event() -> dict[str, Any]:
    """The field `data` of an entry: one shape a type."""
    return {
        "title": "Event",
        "description": "The field `data` of an entry of an answer's log.",
        "oneOf": [_event_of(kind, fields) for kind, fields in EVENT_FIELDS.items()],
        "$defs": Event.model_json_schema(mode="serialization")["$defs"],
    }


def _event_of(kind: EventType, fields: tuple[str, ...]) -> dict[str, Any]:
    properties = {name: _field(kind, name) for name in (*_IN_EVERY_EVENT, *fields)}
    properties["type"] = {"const": kind.value}
    return {"title": kind.value, "type": "object", "properties": properties, "required": list(properties)}


def _field(kind: EventType, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = dict(Event.model_json_schema(mode="serialization")["properties"][name])
    schema.pop("default", None)
    if "anyOf" in schema and (kind, name) not in _NULLABLE:
        [schema] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    schema.pop("title", None)
    return schema


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for schema_name, text in schemas().items():
        (FOLDER / f"{schema_name}.json").write_text(text, encoding="utf-8")

"""The JSON Schemas that ship with the client are those of its models."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from protostar_client.contract import EVENT_FIELDS, ChatRequest, ErrorCode, EventType, InvalidRequest
from protostar_client.schema import FOLDER, schemas


def test_the_files_are_what_the_models_say() -> None:
    assert {path.stem: path.read_text() for path in FOLDER.glob("*.json")} == schemas(), (
        "write them anew: python -m protostar_client.schema"
    )


def test_every_event_of_a_log_has_a_shape_that_names_its_fields() -> None:
    shapes = {shape["title"]: shape for shape in json.loads(schemas()["event"])["oneOf"]}
    assert shapes.keys() == {kind.value for kind in EventType} - {EventType.GAP}
    for kind, fields in EVENT_FIELDS.items():
        assert shapes[kind]["required"] == ["v", "type", "job_id", "attempt", "seq", *fields]
    assert shapes["done"]["properties"]["message_id"] == {"type": "integer"}
    assert shapes["cancelled"]["properties"]["message_id"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}


def test_a_result_says_what_is_always_there() -> None:
    usage = json.loads(schemas()["generate_chat.result"])["$defs"]["Usage"]
    assert usage["required"] == ["input_tokens", "output_tokens", "cost", "estimated"]
    failure = json.loads(schemas()["failure.result"])
    assert set(failure["properties"]["error"]["properties"]["code"]["examples"]) == {*ErrorCode, "cancelled"}


def test_document_patterns_are_bounded_and_left_out_where_all_documents_are_meant() -> None:
    asked = {"user_uuid": str(UUID(int=1)), "session_id": "s", "content": "q"}
    assert "documents" not in ChatRequest.parse(asked).arguments()
    assert ChatRequest.parse({**asked, "documents": ["hr/**"]}).arguments()["documents"] == ["hr/**"]
    for wrong in (["a"] * 101, ["a" * 301], [""], [1], "hr/**"):
        with pytest.raises(InvalidRequest, match=r"^invalid_request: documents: "):
            ChatRequest.parse({**asked, "documents": wrong})

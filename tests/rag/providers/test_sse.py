"""Server-sent events are read however their bytes are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.providers.sse import EventReader, MalformedEventError

EVENTS = [{"text": "안녕 👋🏽"}, {"n": 1}, {}, {"nested": {"줄": "a\nb"}}]


def event_bytes(line_end: str, *, multi_line: bool) -> bytes:
    lines = ["\ufeff: comment", "", "event: message", "id: 7", "retry"]
    for event in EVENTS:
        text = json.dumps(event, ensure_ascii=False, indent=1 if multi_line else None)
        lines += [*(f"data: {line}" for line in text.split("\n")), "", ": OPENROUTER PROCESSING", ""]
    lines += ["data:[DONE]", "", "data: not read any more", "", ""]
    return line_end.join(lines).encode()


@given(
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    multi_line=st.booleans(),
    cuts=st.lists(st.integers(min_value=0, max_value=400)),
)
def test_events_are_the_same_however_the_bytes_are_cut(line_end: str, multi_line: bool, cuts: list[int]) -> None:
    data = event_bytes(line_end, multi_line=multi_line)
    reader = EventReader()
    found = []
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        found += list(reader.feed(data[start:cut]))
        start = max(start, cut)
    found += list(reader.end())
    assert found == EVENTS
    assert reader.done


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_in_another_way(data: bytes) -> None:
    reader = EventReader()
    try:
        events = [*reader.feed(b"data:" + data), *reader.end()]
    except MalformedEventError:
        return
    assert all(isinstance(event, dict) for event in events)


def test_an_event_without_its_empty_line_still_counts_at_the_end() -> None:
    reader = EventReader()
    assert list(reader.feed(b'data: {"a": 1}\n\ndata: {"b": 2}')) == [{"a": 1}]
    assert list(reader.end()) == [{"b": 2}]


@pytest.mark.parametrize("line_end", [b"", b"\n"], ids=["one line", "many lines"])
def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(line_end: bytes) -> None:
    reader = EventReader()
    endless = (event for _ in range(100) for event in reader.feed(b"data: " + b"x" * 100_000 + line_end))
    with pytest.raises(MalformedEventError):
        list(endless)

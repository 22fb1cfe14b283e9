"""What every adapter does alike, the one that `docs/providers.md` shows among them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from protostar_client.contract import Usage

from rag.providers import CompletionRequest, Finish, Provider
from tests.support.asking import MESSAGES, PIECES, REQUEST, streamed
from tests.support.model_control import ModelControl

pytest_plugins = ["tests.support.provider_fixtures"]

MESSAGE_CHOICE = {"index": 0, "message": {"content": "답"}, "finish_reason": "stop"}


async def test_an_answer_comes_piece_by_piece_and_ends_with_one_finish(provider: Provider, model: ModelControl) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15, "cost": 0.00025}
    model.script({"pieces": PIECES, "usage": usage})
    texts, finish = await streamed(provider)
    assert texts == PIECES
    assert finish == Finish("stop", "some-model", Usage(input_tokens=11, output_tokens=4, cost=0.00025))
    body = model.requests()[-1]["body"]
    assert body["stream"] is True
    assert body["max_tokens"] == 100
    assert body["messages"] == MESSAGES


async def test_a_whole_answer(provider: Provider, model: ModelControl) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15, "cost": 0.5}
    model.script({"pieces": PIECES, "usage": usage, "finish_reason": "length"})
    answer = await provider.complete(REQUEST)
    assert answer.text == "".join(PIECES)
    assert answer.finish_reason == "length"
    assert answer.model == "some-model"
    assert answer.usage == Usage(input_tokens=11, output_tokens=4, cost=0.5)
    assert not model.requests()[-1]["body"].get("stream")


@pytest.mark.parametrize(
    "layout",
    [
        {"line_end": "\r\n"},
        {"line_end": "\r"},
        {"space": False},
        {"comments": True},
        {"multi_line": True},
        {"together": True},
        {"split_bytes": 1},
        {"split_bytes": 7, "line_end": "\r\n", "comments": True, "multi_line": True},
        {"fault": "empty_choices", "after": 1},
        {"fault": "empty_deltas", "after": 1, "fault_s": 0.1},
        {"fault": "keep_alive", "fault_s": 0.1},
        {"content_type": "text/event-stream"},
    ],
    ids=str,
)
async def test_the_layout_of_the_bytes_changes_nothing(
    provider: Provider, model: ModelControl, layout: dict[str, Any]
) -> None:
    model.script({"pieces": PIECES, **layout})
    texts, finish = await streamed(provider)
    assert "".join(texts) == "".join(PIECES)
    assert finish.finish_reason == "stop"


async def test_a_missing_or_nonsensical_usage_is_none(provider: Provider, model: ModelControl) -> None:
    for usage in ("absent", {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 2}):
        model.script({"pieces": PIECES, "usage": usage, "times": 2})
        assert (await streamed(provider))[1].usage is None
        assert (await provider.complete(REQUEST)).usage is None


async def test_a_character_cut_into_two_escapes_is_joined(provider: Provider, model: ModelControl) -> None:
    events = [
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}',
        '{"choices":[{"delta":{"content":"\\udc4b"}}]}',
    ]
    events += ['{"choices":[{"delta":{},"finish_reason":"stop"}]}', "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    model.script({"body": body, "content_type": "text/event-stream"})
    assert (await streamed(provider))[0] == ["a", "👋"]


@pytest.mark.parametrize("leave", ["break", "cancel"])
async def test_leaving_closes_the_upstream_request(provider: Provider, model: ModelControl, leave: str) -> None:
    model.script({"pieces": PIECES, "after": 2, "hold": "gate"})

    async def read() -> None:
        async with provider.stream(REQUEST) as parts:
            seen = 0
            async for _ in parts:
                seen += 1
                if leave == "break" and seen == 2:
                    break

    reading = asyncio.create_task(read())
    if leave == "cancel":
        await model.until_waiting("gate")
        reading.cancel()
    await asyncio.wait({reading})
    left_at = time.time()
    await model.until_idle()
    request = model.requests()[-1]
    assert request["closed_early"]
    assert request["pieces_sent"] == 2
    assert request["closed_at"] - left_at < 0.5


async def test_a_stream_that_is_opened_and_never_read_is_closed(provider: Provider, model: ModelControl) -> None:
    model.script({"pieces": PIECES, "hold": "gate"})
    async with provider.stream(REQUEST):
        await model.until_waiting("gate")
    await model.until_idle()
    assert model.requests()[-1]["closed_early"]


async def test_a_request_cancelled_before_its_first_byte_is_closed(provider: Provider, model: ModelControl) -> None:
    model.script({"status": 500, "hold": "gate"})
    asking = asyncio.create_task(provider.complete(REQUEST))
    await model.until_waiting("gate")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await model.until_idle()
    assert model.requests()[-1]["closed_early"]


async def test_the_readers_own_error_passes_through_untouched(provider: Provider, model: ModelControl) -> None:
    model.script({"pieces": PIECES})

    async def read() -> None:
        async with provider.stream(REQUEST) as parts:
            async for _ in parts:
                raise ConnectionResetError("the reader's own")

    with pytest.raises(ConnectionResetError, match="the reader's own"):
        await read()
    await model.until_idle()


async def test_many_streams_at_once_stay_apart(provider: Provider, model: ModelControl) -> None:
    count = 30
    model.script(*({"model": f"m{n}", "pieces": [f"{n}-", "끝"], "delay_s": 0.005} for n in range(count)))
    requests = [CompletionRequest(f"m{n}", MESSAGES, 10) for n in range(count)]
    answers = await asyncio.gather(*(streamed(provider, request) for request in requests))
    assert ["".join(texts) for texts, _ in answers] == [f"{n}-끝" for n in range(count)]


async def test_texts_are_embedded_in_their_order(provider: Provider) -> None:
    texts = ["고양이가 잔다", "PostgreSQL keeps rows", "고양이가 자고 있다"]
    cat, rows, sleeping_cat = await provider.embed(texts, model="e")
    assert len(cat) == len(rows) == 512
    assert _dot(cat, sleeping_cat) > _dot(cat, rows)
    assert await provider.embed([], model="e") == []


async def test_of_several_answers_only_the_first_is_read(provider: Provider, model: ModelControl) -> None:
    other = {"index": 1, "delta": {"content": "다른 답"}, "finish_reason": "length"}
    mine = {"index": 0, "delta": {"content": "답"}, "finish_reason": "stop"}
    events = [{"choices": [other]}, {"choices": [other, mine]}, {"choices": [other]}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    model.script({"body": body, "content_type": "text/event-stream"})
    assert await streamed(provider) == (["답"], Finish("stop", "some-model", None))
    model.script({"body": json.dumps({"choices": [{**other, "message": {"content": "다른"}}, MESSAGE_CHOICE]})})
    assert (await provider.complete(REQUEST)).text == "답"


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))

"""Both adapters keep one contract, whatever the server does."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protostar_client.contract import Usage

from rag.providers import (
    ChatMessage,
    CompletionRequest,
    ContentFilteredError,
    ContextLengthError,
    FatalProviderError,
    Finish,
    Provider,
    ProviderError,
    ProviderName,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
    StreamPart,
    make_provider,
)
from rag.providers.sse import EventReader, MalformedEventError
from tests.model_control import ModelControl, running_model_server

KEY = "sk-test-0123456789abcdef"
QUESTION = "이 질문은 어떤 오류 문장에도 나타나면 안 됩니다"
MESSAGES: list[ChatMessage] = [{"role": "user", "content": QUESTION}]
REQUEST = CompletionRequest(model="some-model", messages=MESSAGES, max_output_tokens=100)
PIECES = ["안녕", "하세요", " 👋🏽", "\n끝."]
SHORT_S = 0.3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelControl]:
    with running_model_server(tmp_path_factory.mktemp("model")) as control:
        yield control


@pytest.fixture
def model(server: ModelControl) -> ModelControl:
    server.reset()
    return server


@pytest.fixture(params=["openai", "openrouter"])
def name(request: pytest.FixtureRequest) -> ProviderName:
    found: ProviderName = request.param
    return found


@pytest.fixture
async def provider(name: ProviderName, model: ModelControl) -> AsyncIterator[Provider]:
    made = make_provider(name, api_key=KEY, base_url=model.base_url, first_token_timeout_s=20, stall_timeout_s=20)
    yield made
    await made.close()


@pytest.fixture
async def impatient(name: ProviderName, model: ModelControl) -> AsyncIterator[Provider]:
    made = make_provider(
        name, api_key=KEY, base_url=model.base_url, first_token_timeout_s=SHORT_S, stall_timeout_s=SHORT_S
    )
    yield made
    await made.close()


async def read_into(texts: list[StreamPart], provider: Provider) -> None:
    async with provider.stream(REQUEST) as parts:
        async for part in parts:
            texts.append(part)


async def streamed(provider: Provider, request: CompletionRequest = REQUEST) -> tuple[list[str], Finish]:
    texts: list[str] = []
    finish: Finish | None = None
    async with provider.stream(request) as parts:
        async for part in parts:
            assert finish is None, "a part came after the finish"
            if isinstance(part, Finish):
                finish = part
            else:
                assert part, "an empty text is no part"
                texts.append(part)
    assert finish is not None
    return texts, finish


async def error_of(provider: Provider, *, whole: bool = False) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        await (provider.complete(REQUEST) if whole else streamed(provider))
    shown = f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"
    assert KEY not in shown
    assert QUESTION not in shown
    assert str(raised.value).startswith(provider.name)
    return raised.value


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


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"status": 401}, FatalProviderError),
        ({"status": 402}, FatalProviderError),
        ({"status": 403}, FatalProviderError),
        ({"status": 404}, FatalProviderError),
        ({"status": 422, "body": "nonsense"}, FatalProviderError),
        ({"status": 400, "error": {"message": "no such field"}}, FatalProviderError),
        ({"status": 400}, ContextLengthError),
        ({"status": 400, "error": {"code": 400, "message": "context length exceeded"}}, ContextLengthError),
        ({"status": 400, "error": {"code": "content_filter", "message": "no"}}, ContentFilteredError),
        ({"status": 403, "error": {"code": 403, "message": "flagged by moderation"}}, ContentFilteredError),
        ({"status": 429}, RateLimitedError),
        ({"status": 429, "error": {"code": "insufficient_quota", "message": "pay"}}, FatalProviderError),
        ({"status": 408}, ProviderUnavailableError),
        ({"status": 500}, ProviderUnavailableError),
        ({"status": 502, "body": "<html>", "content_type": "text/html"}, ProviderUnavailableError),
        ({"status": 503}, ProviderUnavailableError),
        ({"status": 529}, ProviderUnavailableError),
        ({"fault": "refuse"}, ProviderUnavailableError),
        ({"body": "<html>hello", "content_type": "text/html"}, ProviderUnavailableError),
        ({"body": "{}"}, ProviderUnavailableError),
        ({"body": "[1, 2"}, ProviderUnavailableError),
        ({"body": '{"error": {"message": "down", "code": 502}}'}, ProviderUnavailableError),
        ({"body": '{"error": {"message": "slow", "code": 429}}'}, RateLimitedError),
        ({"body": '{"error": {"message": "key", "code": 401}}'}, FatalProviderError),
        ({"body": '{"error": "something"}'}, ProviderUnavailableError),
        ({"pieces": PIECES, "finish_reason": "content_filter"}, ContentFilteredError),
        ({"pieces": PIECES, "finish_reason": "error"}, ProviderUnavailableError),
        ({"pieces": PIECES, "fault": "drop", "after": 2}, ProviderUnavailableError),
        ({"pieces": PIECES, "fault": "error_chunk", "after": 2}, ProviderUnavailableError),
        (
            {"pieces": PIECES, "fault": "error_chunk", "error": {"code": 429, "message": "slow"}},
            RateLimitedError,
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_every_fault_has_its_error(
    provider: Provider, model: ModelControl, behaviour: dict[str, Any], expected: type, whole: bool
) -> None:
    model.script(behaviour)
    error = await error_of(provider, whole=whole)
    assert type(error) is expected
    assert len(model.requests()) == 1, "a provider retries nothing"


@pytest.mark.parametrize("fault", ["end", "malformed"])
async def test_a_stream_that_breaks_off_is_no_answer(provider: Provider, model: ModelControl, fault: str) -> None:
    model.script({"pieces": PIECES, "fault": fault, "after": 3})
    assert type(await error_of(provider)) is ProviderUnavailableError


@pytest.mark.parametrize("fault", ["end", "drop", "malformed", "error_chunk"])
async def test_what_came_before_the_break_was_handed_on(provider: Provider, model: ModelControl, fault: str) -> None:
    model.script({"pieces": PIECES, "fault": fault, "after": 3, "delay_s": 0.01})
    texts: list[StreamPart] = []
    with pytest.raises(ProviderUnavailableError):
        await read_into(texts, provider)
    assert texts == PIECES[:3]


async def test_an_empty_list_of_choices_is_no_whole_answer(provider: Provider, model: ModelControl) -> None:
    model.script({"pieces": PIECES, "fault": "empty_choices"})
    assert type(await error_of(provider, whole=True)) is ProviderUnavailableError


@pytest.mark.parametrize("fault", ["stall", "keep_alive", "empty_deltas"])
@pytest.mark.parametrize("after", [0, 2])
async def test_what_holds_no_token_does_not_hold_off_the_limits(
    impatient: Provider, model: ModelControl, fault: str, after: int
) -> None:
    model.script({"pieces": PIECES, "fault": fault, "after": after})
    start = time.monotonic()
    assert type(await error_of(impatient)) is StalledError
    assert time.monotonic() - start > SHORT_S * 0.9
    await model.until_idle()
    assert model.requests()[-1]["closed_early"]


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_a_server_that_sends_no_headers_stalls(impatient: Provider, model: ModelControl, whole: bool) -> None:
    model.script({"status": 500, "fault": "stall"})
    assert type(await error_of(impatient, whole=whole)) is StalledError


async def test_a_slow_reader_is_no_stall(name: ProviderName, model: ModelControl) -> None:
    limit_s = 1.0
    provider = make_provider(
        name, api_key=KEY, base_url=model.base_url, first_token_timeout_s=20, stall_timeout_s=limit_s
    )
    model.script({"pieces": PIECES, "after": 1, "hold": "gate"})
    texts = []
    async with provider.stream(REQUEST) as parts:
        async for part in parts:
            if not isinstance(part, Finish):
                texts.append(part)
            if len(texts) == 1:
                await asyncio.sleep(limit_s * 1.1)
                model.release("gate")
    assert texts == PIECES
    await provider.close()


async def test_a_missing_or_nonsensical_usage_is_none(provider: Provider, model: ModelControl) -> None:
    for usage in ("absent", {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 2}):
        model.script({"pieces": PIECES, "usage": usage, "times": 2})
        assert (await streamed(provider))[1].usage is None
        assert (await provider.complete(REQUEST)).usage is None


async def test_a_connection_lost_after_the_finish_reason_loses_only_the_usage(
    provider: Provider, model: ModelControl
) -> None:
    finish = {"choices": [{"delta": {"content": "다"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(finish)}\n\ndata: broken\n\n"
    model.script({"body": body, "content_type": "text/event-stream"})
    assert await streamed(provider) == (["다"], Finish("stop", "some-model", None))


async def test_a_character_cut_into_two_escapes_is_joined(provider: Provider, model: ModelControl) -> None:
    events = [
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}',
        '{"choices":[{"delta":{"content":"\\udc4b"}}]}',
    ]
    events += ['{"choices":[{"delta":{},"finish_reason":"stop"}]}', "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    model.script({"body": body, "content_type": "text/event-stream"})
    assert (await streamed(provider))[0] == ["a", "👋"]


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("1.5", 1.5, 1.5), ("soon", None, None), ("-3", 0, 0), ("nan", None, None)],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds(
    provider: Provider, model: ModelControl, status: int, value: str, low: float | None, high: float | None
) -> None:
    model.script({"status": status, "headers": {"Retry-After": value}})
    error = await error_of(provider)
    assert isinstance(error, RateLimitedError | ProviderUnavailableError)
    assert error.retry_after_s == low == high


async def test_retry_after_as_a_date(provider: Provider, model: ModelControl) -> None:
    at = datetime.now(UTC) + timedelta(seconds=30)
    model.script({"status": 429, "headers": {"Retry-After": format_datetime(at, usegmt=True)}})
    error = await error_of(provider)
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s is not None
    assert 25 < error.retry_after_s <= 30


async def test_an_error_names_the_status_and_what_the_provider_said(provider: Provider, model: ModelControl) -> None:
    model.script({"status": 503, "error": {"message": "The model is\n overloaded."}})
    assert str(await error_of(provider)) == f"{provider.name} answered 503: The model is overloaded."


@pytest.mark.parametrize("said", [f"bad key {KEY}", f"cannot do: {QUESTION}", f"Bearer {KEY} {QUESTION[5:]}"])
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_no_error_repeats_the_key_or_the_prompt(
    provider: Provider, model: ModelControl, said: str, whole: bool
) -> None:
    model.script({"status": 400, "error": {"message": said}}, {"fault": "error_chunk", "error": {"message": said}})
    for _ in range(2):
        error = await error_of(provider, whole=whole)
        assert QUESTION[5:] not in str(error)
    assert KEY not in repr(provider)
    assert KEY not in repr(vars(provider))


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


async def test_a_server_that_is_not_there(name: ProviderName) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        provider = make_provider(name, api_key=KEY, base_url=url, first_token_timeout_s=5, stall_timeout_s=5)
        for whole in (False, True):
            assert type(await error_of(provider, whole=whole)) is ProviderUnavailableError
        with pytest.raises(ProviderUnavailableError):
            await provider.embed(["글"], model="e")
        await provider.close()


async def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(
    name: ProviderName, model: ModelControl
) -> None:
    provider = make_provider(
        name, api_key="열쇠-비밀", base_url=model.base_url, first_token_timeout_s=5, stall_timeout_s=5
    )
    error = await error_of(provider)
    assert type(error) is FatalProviderError
    assert "열쇠" not in f"{error}{error!r}"
    await provider.close()


async def test_texts_are_embedded_in_their_order(provider: Provider) -> None:
    texts = ["고양이가 잔다", "PostgreSQL keeps rows", "고양이가 자고 있다"]
    cat, rows, sleeping_cat = await provider.embed(texts, model="e")
    assert len(cat) == len(rows) == 512
    assert _dot(cat, sleeping_cat) > _dot(cat, rows)
    assert await provider.embed([], model="e") == []


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"status": 429}, RateLimitedError),
        ({"status": 404}, FatalProviderError),
        ({"status": 500}, ProviderUnavailableError),
        ({"body": '{"error": {"message": "no", "code": 503}}'}, ProviderUnavailableError),
        ({"body": '{"data": [{"index": 0, "embedding": [1.0]}]}'}, ProviderUnavailableError),
        ({"body": '{"data": [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}]}'}, ProviderUnavailableError),
        ({"body": '{"data": [{"embedding": ["x"]}, {"embedding": [null]}]}'}, ProviderUnavailableError),
        ({"fault": "refuse"}, ProviderUnavailableError),
    ],
    ids=str,
)
async def test_a_failed_embedding_has_its_error(
    provider: Provider, model: ModelControl, behaviour: dict[str, Any], expected: type
) -> None:
    model.script({"endpoint": "embeddings", **behaviour})
    with pytest.raises(ProviderError) as raised:
        await provider.embed(["하나", "둘"], model="e")
    assert type(raised.value) is expected
    assert KEY not in f"{raised.value!r}"


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_a_model_that_refuses_max_tokens_is_asked_in_its_own_words(model: ModelControl, whole: bool) -> None:
    refusal = {
        "message": "Use 'max_completion_tokens'.",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
    provider = make_provider("openai", api_key=KEY, base_url=model.base_url, first_token_timeout_s=5, stall_timeout_s=5)
    model.script({"status": 400, "error": refusal}, {"pieces": PIECES, "times": 2})
    for _ in range(2):
        await (provider.complete(REQUEST) if whole else streamed(provider))
    await provider.close()
    limits = [sorted(key for key in request["body"] if key.startswith("max")) for request in model.requests()]
    assert limits == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


def test_a_missing_sdk_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openrouter", None)
    monkeypatch.delitem(sys.modules, "rag.providers.openrouter", raising=False)
    with pytest.raises(FatalProviderError, match=r"pip install 'protostar\[openrouter\]'"):
        make_provider("openrouter", api_key=KEY, first_token_timeout_s=1, stall_timeout_s=1)


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


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))

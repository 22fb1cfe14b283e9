"""From whatever a server says or fails to say, every adapter makes the one family of errors."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from rag.providers import (
    ContentFilteredError,
    ContextLengthError,
    FatalProviderError,
    Finish,
    Provider,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StreamPart,
    make_provider,
)
from rag.providers.vendor_messages import OverflowSizes, overflow_sizes
from tests.support.asking import KEY, PIECES, QUESTION, REQUEST, Make, error_of, read_into, streamed
from tests.support.model_control import ModelControl

pytest_plugins = ["tests.support.provider_fixtures"]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"status": 401}, FatalProviderError),
        ({"status": 402}, FatalProviderError),
        ({"status": 403}, FatalProviderError),
        ({"status": 404}, FatalProviderError),
        ({"status": 422, "body": "nonsense"}, FatalProviderError),
        ({"status": 413, "body": "<html>", "content_type": "text/html"}, ContextLengthError),
        ({"status": 400, "error": {"message": "no such field"}}, FatalProviderError),
        ({"status": 400}, ContextLengthError),
        ({"status": 400, "error": {"code": 400, "message": "context length exceeded"}}, ContextLengthError),
        ({"status": 400, "error": {"code": "content_filter", "message": "no"}}, ContentFilteredError),
        ({"status": 403, "error": {"code": 403, "message": "flagged by moderation"}}, ContentFilteredError),
        ({"status": 429}, RateLimitedError),
        ({"status": 429, "error": {"code": "insufficient_quota", "message": "pay"}}, FatalProviderError),
        ({"status": 408}, ProviderUnavailableError),
        ({"status": 500}, ProviderUnavailableError),
        ({"status": 501}, FatalProviderError),
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


async def test_a_connection_lost_after_the_finish_reason_loses_only_the_usage(
    provider: Provider, model: ModelControl
) -> None:
    finish = {"choices": [{"delta": {"content": "다"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(finish)}\n\ndata: broken\n\n"
    model.script({"body": body, "content_type": "text/event-stream"})
    assert await streamed(provider) == (["다"], Finish("stop", "some-model", None))


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


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_the_numbers_of_an_overflow_outlive_words_that_are_left_out(
    provider: Provider, model: ModelControl, whole: bool
) -> None:
    sizes = {"n_prompt_tokens": 6031, "n_ctx": 2048}  # as llama.cpp gives them
    said = {"code": 400, "type": "exceed_context_size_error", "message": f"2048 tokens exceeded by {QUESTION}", **sizes}
    model.script({"status": 400, "error": said})
    error = await error_of(provider, whole=whole)
    assert type(error) is ContextLengthError
    assert QUESTION not in str(error)
    assert overflow_sizes(str(error)) == OverflowSizes(2048, 6031)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


async def test_a_server_that_is_not_there(make: Make, closed_port: int) -> None:
    provider = make(f"http://127.0.0.1:{closed_port}/v1")
    for whole in (False, True):
        assert type(await error_of(provider, whole=whole)) is ProviderUnavailableError
    with pytest.raises(ProviderUnavailableError):
        await provider.embed(["글"], model="e")
    await provider.close()


async def test_a_password_in_the_base_url_is_not_shown(make: Make, closed_port: int) -> None:
    provider = make(f"http://user:{KEY}@127.0.0.1:{closed_port}/v1")
    await error_of(provider)
    await provider.close()


@asynccontextmanager
async def closing(provider: Provider) -> AsyncIterator[Provider]:
    try:
        yield provider
    finally:
        await provider.close()


async def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(make: Make, model: ModelControl) -> None:
    async def ask() -> None:
        async with closing(make(model.base_url, api_key="열쇠-비밀")) as provider:
            await streamed(provider)

    with pytest.raises(FatalProviderError) as raised:
        await ask()
    assert "열쇠" not in f"{raised.value}{raised.value!r}"


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

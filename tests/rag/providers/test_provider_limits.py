"""How long every adapter waits for a token, and what counts as one."""

from __future__ import annotations

import asyncio
import time

import pytest

from rag.providers import FatalProviderError, Finish, Provider, StalledError
from tests.support.asking import PIECES, REQUEST, SHORT_S, Make, error_of, streamed
from tests.support.model_control import ModelControl

pytest_plugins = ["tests.support.provider_fixtures"]

ANSWER_EVENTS = (
    'data: {"choices":[{"delta":{"content":"답"}}]}\n\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
)


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


async def test_a_slow_reader_is_no_stall(make: Make, model: ModelControl) -> None:
    limit_s = 1.0
    provider = make(model.base_url, stall_s=limit_s)
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


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_a_thought_is_a_token_without_text(make: Make, model: ModelControl, field: str) -> None:
    provider = make(model.base_url, first_token_s=1.5, stall_s=1.5)
    thought = f'data: {{"choices":[{{"delta":{{"content":null,"{field}":"흠"}}}}]}}\n\n'
    model.script({"raw": [*[thought, 0.6] * 4, ANSWER_EVENTS], "content_type": "text/event-stream"})
    assert (await streamed(provider))[0] == ["답"]
    await provider.close()


@pytest.mark.parametrize("fault", ["stall", "keep_alive"])
async def test_after_the_finish_reason_the_usage_is_not_waited_for_longer_than_a_token(
    impatient: Provider, model: ModelControl, fault: str
) -> None:
    model.script({"raw": [ANSWER_EVENTS], "content_type": "text/event-stream", "fault": fault})
    texts, finish = await streamed(impatient)
    assert (texts, finish.finish_reason, finish.usage) == (["답"], "stop", None)
    await model.until_idle()


async def test_a_provider_that_keeps_no_limit_on_tokens_is_cut_off(provider: Provider, model: ModelControl) -> None:
    event = 'data: {"choices":[{"delta":{"content":"끝없이"}}]}\n\n'
    model.script({"raw": [event], "raw_times": None, "content_type": "text/event-stream"})
    assert type(await error_of(provider)) is FatalProviderError
    await model.until_idle()
    assert model.requests()[-1]["closed_early"]

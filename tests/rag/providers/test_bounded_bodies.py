"""Whatever a provider sends, an adapter reads a bounded part of it and keeps an answer that was paid for."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rag.providers import ContextLengthError, Provider, ProviderUnavailableError
from rag.providers.answer import FINISH_REASON_CHARACTERS, MODEL_CHARACTERS
from tests.support.asking import PIECES, REQUEST, error_of, streamed
from tests.support.model_control import ModelControl

pytest_plugins = ["tests.support.provider_fixtures"]

MEGABYTE = "0" * 1_000_000
ENDLESS = {"raw": ['{"x": "', MEGABYTE], "raw_times": None}
MOST_MEMORY_KIB = 48 * 1024
LONGEST_PAUSE_S = 0.25  # the first error of an SDK takes 0.14 s: it imports its types then


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    """The block takes little memory, and little of the loop's CPU time at once: a busy machine changes neither."""
    pauses_s: list[float] = []
    measured = asyncio.Event()

    async def watch() -> None:
        while True:
            start_s = time.thread_time()
            await asyncio.sleep(0.001)
            pauses_s.append(time.thread_time() - start_s)
            measured.set()

    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watcher = asyncio.create_task(watch())
    try:
        await asyncio.sleep(0)  # starts the watcher
        yield
        await measured.wait()
    finally:
        watcher.cancel()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < MOST_MEMORY_KIB
    assert sorted(pauses_s)[-1] < LONGEST_PAUSE_S


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_an_error_whose_body_has_no_end_is_cut(
    provider: Provider, model: ModelControl, gzip: bool, whole: bool
) -> None:
    model.script({"status": 500, "gzip": gzip, **ENDLESS})
    async with bounded():
        assert type(await error_of(provider, whole=whole)) is ProviderUnavailableError
    await model.until_idle()
    assert model.requests()[-1]["closed_early"]


async def test_an_error_whose_body_goes_silent_is_read_as_far_as_it_came(
    provider: Provider, model: ModelControl
) -> None:
    said = '{"error": {"code": "context_length_exceeded", "message": "too long"}}'
    model.script({"status": 400, "raw": [said], "fault": "stall"})
    assert type(await error_of(provider)) is ContextLengthError


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
async def test_a_body_without_an_end_in_place_of_a_stream_is_cut(
    provider: Provider, model: ModelControl, gzip: bool
) -> None:
    model.script({"gzip": gzip, **ENDLESS})
    async with bounded():
        assert type(await error_of(provider)) is ProviderUnavailableError


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
async def test_a_whole_answer_without_an_end_is_refused(provider: Provider, model: ModelControl, gzip: bool) -> None:
    model.script({"gzip": gzip, **ENDLESS})
    async with bounded():
        error = await error_of(provider, whole=True)
    assert "more than 1048576 bytes" in str(error)


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
async def test_vectors_without_an_end_are_refused(provider: Provider, model: ModelControl, gzip: bool) -> None:
    model.script({"endpoint": "embeddings", "gzip": gzip, **ENDLESS})
    async with bounded():
        with pytest.raises(ProviderUnavailableError, match="more than 524288 bytes"):
            await provider.embed(["하나"], model="e")


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
async def test_a_stream_of_one_event_without_an_end_is_refused(
    provider: Provider, model: ModelControl, gzip: bool
) -> None:
    model.script({"gzip": gzip, "content_type": "text/event-stream", **ENDLESS, "raw": ["data: ", MEGABYTE]})
    model.script({"gzip": gzip, "content_type": "text/event-stream", "raw": [MEGABYTE], "raw_times": None})
    for _ in range(2):
        async with bounded():
            assert type(await error_of(provider)) is ProviderUnavailableError


async def test_a_compression_that_nobody_asked_for_is_refused(provider: Provider, model: ModelControl) -> None:
    for headers in ({"Content-Encoding": "br"}, {"Content-Encoding": "gzip, gzip"}):
        model.script({"body": "x", "headers": headers})
        assert "compressed" in str(await error_of(provider))


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_a_long_error_message_is_cut(provider: Provider, model: ModelControl, whole: bool) -> None:
    model.script({"status": 400, "error": {"message": "context length " + "7" * 60_000}})
    async with bounded():
        error = await error_of(provider, whole=whole)
    assert len(str(error)) < 300


def odd_answer(**odd: Any) -> dict[str, Any]:
    return {"pieces": PIECES, **odd}


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 1e300, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": "7", "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": None, "completion_tokens": []},
    ],
    ids=str,
)
async def test_a_usage_that_is_not_credible_leaves_the_answer_whole(
    provider: Provider, model: ModelControl, usage: dict[str, Any], whole: bool
) -> None:
    model.script(odd_answer(usage=usage))
    if whole:
        completion = await provider.complete(REQUEST)
        text, found = completion.text, completion.usage
    else:
        texts, finish = await streamed(provider)
        text, found = "".join(texts), finish.usage
    assert (text, found) == ("".join(PIECES), None)


@pytest.mark.parametrize("cost", [1e300, -1, "1"])
async def test_a_cost_that_is_not_credible_is_left_out(provider: Provider, model: ModelControl, cost: object) -> None:
    model.script(odd_answer(usage={"prompt_tokens": 3, "completion_tokens": 4, "cost": cost}))
    usage = (await streamed(provider))[1].usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cost) == (3, 4, None)


async def test_a_whole_answer_that_is_longer_than_its_tokens_is_refused(
    provider: Provider, model: ModelControl
) -> None:
    model.script({"pieces": ["가" * 10_000]})
    assert "no limit on tokens" in str(await error_of(provider, whole=True))


async def test_names_are_cleaned_and_cut(provider: Provider, model: ModelControl) -> None:
    event = (
        'data: {"model": "m\\u0000\\ud800' + "x" * 1_000 + '", "choices":[{"delta":{"content":"답"},'
        '"finish_reason":"\\u0000stop' + "!" * 80 + '"}]}\n\n'
    )
    model.script({"raw": [event], "content_type": "text/event-stream"})
    texts, finish = await streamed(provider)
    assert texts == ["답"]
    assert finish.finish_reason.startswith("stop!")
    assert len(finish.finish_reason) <= FINISH_REASON_CHARACTERS
    assert finish.model.startswith("m\ufffdx")
    assert len(finish.model) <= MODEL_CHARACTERS


async def test_thoughts_without_an_end_are_cut_off(provider: Provider, model: ModelControl) -> None:
    thought = 'data: {"choices":[{"delta":{"reasoning":"' + "흠" * 1_000 + '"}}]}\n\n'
    model.script({"raw": [thought], "raw_times": None, "content_type": "text/event-stream"})
    assert "no limit on tokens" in str(await error_of(provider))


@pytest.mark.parametrize(
    "rows", ['[{"index": [], "embedding": [1]}]', '[{"embedding": [NaN]}]', '[{"embedding": [1e400]}]']
)
async def test_vectors_of_nonsense_are_refused(provider: Provider, model: ModelControl, rows: str) -> None:
    model.script({"endpoint": "embeddings", "body": f'{{"data": {rows}}}'})
    with pytest.raises(ProviderUnavailableError, match="did not give one vector"):
        await provider.embed(["하나"], model="e")

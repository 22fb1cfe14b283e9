"""Tokens of models with an unknown encoding: the count follows the reported usage and ignores wrong reports."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protostar_client import keys
from redis.asyncio import Redis

from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import FORMAT_TOKENS
from rag.prompt.token_memo import TokenMemo
from rag.prompt.token_ratio import (
    FIRST_RATIO,
    LEAST_RATIO,
    LEAST_TOKENS,
    MARGIN,
    MOST_RATIO,
    RECENT,
    CorrectedCount,
    TokenRatio,
)
from tasks.turn.token_ratios import TokenRatios
from tests.support.stack_under_test import Stack, until

UNKNOWN = TokenCounter("some-llama")
START = FIRST_RATIO * MARGIN
TEXT = "가나다라 마바사."


def after(*ratios: float) -> TokenRatio:
    """The ratio once a provider has said these, one after the other."""
    ratio = TokenRatio()
    for said in ratios:
        ratio = ratio.reported(round(said * 1_000), counted=1_000)
    return ratio


def test_an_unknown_model_starts_with_a_margin() -> None:
    assert TokenRatio().factor == START > 1.16  # of the tokenizers measured the most but one


def test_a_larger_ratio_holds_at_once_and_a_smaller_one_after_many_answers() -> None:
    assert after(1.5).factor == pytest.approx(1.5 * MARGIN)
    assert after(1.5, *[1.0] * (RECENT - 1)).factor == pytest.approx(1.5 * MARGIN)
    assert after(1.5, *[1.0] * RECENT).factor == pytest.approx(1.0 * MARGIN)


@settings(print_blob=True)
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=60))
def test_the_factor_is_never_below_the_margin_over_the_largest_recent_ratio(said: list[float]) -> None:
    factor = after(*said).factor
    recent = [min(max(ratio, LEAST_RATIO), MOST_RATIO) for ratio in said[-RECENT:]]
    assert factor >= max(recent) * MARGIN * 0.999
    assert LEAST_RATIO <= factor <= MOST_RATIO * MARGIN


def test_a_size_that_cannot_be_the_prompts_is_ignored() -> None:
    assert after(0.0, 0.49, 0.3) == TokenRatio()  # cached tokens left out
    assert after(900.0).factor == MOST_RATIO * MARGIN  # images, say
    short = LEAST_TOKENS - 1
    assert TokenRatio().reported(short * 2, counted=short) == TokenRatio()
    assert TokenRatio().reported(10, counted=0) == TokenRatio()


def test_one_odd_number_is_forgotten() -> None:
    assert after(*[1.1] * RECENT, 50.0, *[1.1] * RECENT) == after(*[1.1] * RECENT)


def test_an_overflow_without_a_number_raises_the_ratio() -> None:
    assert TokenRatio().overflowed(factor=START).factor == pytest.approx(START * 1.5 * MARGIN)


@given(st.lists(st.floats(0.5, 4), max_size=40))
def test_ratios_are_the_same_after_a_line_of_text(said: list[float]) -> None:
    assert TokenRatio.parse(after(*said).dump()) == after(*said)


@pytest.mark.parametrize("line", ["", "what?", "1.1 x", "nan", "0", "-1 2", "1e9", "inf", " "])
def test_a_line_without_ratios_is_that_of_an_unknown_model(line: str) -> None:
    assert TokenRatio.parse(line) == TokenRatio()


@given(st.integers(0, 100_000), st.floats(LEAST_RATIO, MOST_RATIO))
def test_a_corrected_count_is_rounded_up_and_can_be_taken_back(tokens: int, factor: float) -> None:
    corrected = CorrectedCount(lambda _: tokens, factor)("text")
    assert corrected == math.ceil(tokens * factor)
    assert abs(CorrectedCount(len, factor).uncorrected(corrected) - tokens) <= 2


pieces = [
    "<a>",
    "\n",
    "</a>\n\n",
    "/",
    " ",
    "가나",
    "a1",
    "'s",
    ".",
    "\t",
    "\r",
    "\u00a0",
    "\u2028",
    "\x1c",
    "漢",
    "\n<",
]
lines = st.lists(st.sampled_from(pieces), max_size=16).map("".join)
MEMOS = {model: (TokenCounter(model), TokenMemo(TokenCounter(model))) for model in ("gpt-4o", "gpt-4", "some-llama")}


@settings(deadline=None, print_blob=True, max_examples=500)
@given(lines, st.sampled_from(sorted(MEMOS)))
def test_counting_line_by_line_counts_the_same(text: str, model: str) -> None:
    counter, memo = MEMOS[model]
    assert memo.count(text) == memo.count(text) == counter.count(text)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def factor_after(ratios: TokenRatios) -> float:
    await ratios.close()
    return (await ratios.count()).factor


async def test_an_encoding_that_is_known_is_never_corrected(redis: Redis) -> None:
    known = TokenCounter("gpt-4o")
    ratios = TokenRatios(redis, known, "gpt-4o")
    ratios.said(5_000, counted=1_000)
    assert ratios.overflowed(5_000, counted=1_000, factor=1).factor == 1
    assert await factor_after(ratios) == 1
    assert (await ratios.count())(TEXT) == known.count(TEXT)
    assert not await redis.exists(keys.TOKEN_RATIOS)


async def test_a_ratio_is_shared_with_other_workers_and_kept_when_they_are_gone(redis: Redis) -> None:
    first = TokenRatios(redis, UNKNOWN, "some-llama")
    assert (await first.count()).factor == START
    first.said(1_600, counted=1_000)
    assert await factor_after(first) == pytest.approx(1.6 * MARGIN)
    second = TokenRatios(redis, UNKNOWN, "some-llama")
    assert (await second.count())(TEXT) == math.ceil(UNKNOWN.count(TEXT) * 1.6 * MARGIN)
    assert (await TokenRatios(redis, UNKNOWN, "another").count()).factor == START


async def test_ratios_that_two_workers_learn_at_the_same_time_are_both_kept(redis: Redis) -> None:
    workers = [TokenRatios(redis, UNKNOWN, "m") for _ in range(2)]
    for worker, said in zip(workers, (1_900, 1_100), strict=True):
        await worker.count()
        for _ in range(5):
            worker.said(said, counted=1_000)
    for worker in workers:
        await worker.close()
    recent = TokenRatio.parse((await redis.hget(keys.TOKEN_RATIOS, "m") or b"").decode()).recent  # type: ignore[misc]
    assert sorted(recent) == sorted([1.1] * 5 + [1.9] * 5 + [FIRST_RATIO])


async def test_an_overflow_holds_at_once(redis: Redis) -> None:
    ratios = TokenRatios(redis, UNKNOWN, "m")
    assert ratios.overflowed(2_000, counted=1_000, factor=START).factor == pytest.approx(2 * MARGIN)
    assert await factor_after(ratios) == pytest.approx(2 * MARGIN)


async def test_without_redis_the_count_goes_on(redis: Redis) -> None:
    async with Redis(port=1) as nowhere:
        ratios = TokenRatios(nowhere, UNKNOWN, "m")
        assert (await ratios.count()).factor == START
        ratios.said(1_500, counted=1_000)
        assert await factor_after(ratios) == pytest.approx(1.5 * MARGIN)
    await redis.set(keys.TOKEN_RATIOS, b"\xff no hash")
    ratios = TokenRatios(redis, UNKNOWN, "m")
    ratios.said(1_500, counted=1_000)
    assert await factor_after(ratios) == pytest.approx(1.5 * MARGIN)


async def test_the_next_prompt_is_counted_by_the_usage_of_the_last_one(stack: Stack) -> None:
    await stack.start_worker()
    page = "가나다라 마바사. " * 3_000
    stack.model.script(
        {"pieces": ["네."], "usage": {"prompt_tokens": 12_000, "completion_tokens": 2}},
        {"pieces": ["아니요."]},
    )
    first = await stack.ask("요약해 줘.", mode="page_context", context=page)
    await stack.events(first.job_id)

    async def learned() -> object:
        return await stack.redis.hget(keys.TOKEN_RATIOS, "test-model")  # type: ignore[misc]

    line = (await until(learned, "the worker has written what it learned")).decode()
    before, after = [1 / START, 1 / TokenRatio.parse(line).factor]
    await stack.events((await stack.ask("요약해 줘.", mode="page_context", context=page)).job_id)
    sizes = [counted(request) for request in stack.model.requests() if is_answer(request)]
    assert sizes[1] / sizes[0] == pytest.approx(after / before, rel=0.1)


async def test_estimates_are_corrected_too(stack: Stack) -> None:
    await stack.redis.hset(keys.TOKEN_RATIOS, "test-model", "2")  # type: ignore[misc]
    await stack.start_worker()
    answer = "예순네 개의 낱말로 된 답이다. " * 10
    stack.model.script({"pieces": [answer], "usage": "absent"})
    job = await stack.ask("길이는?")
    usage = (await stack.events(job.job_id))[-1]["usage"]
    assert usage["estimated"]
    assert usage["output_tokens"] == math.ceil(UNKNOWN.count(answer) * 2 * MARGIN)
    [request] = [request for request in stack.model.requests() if is_answer(request)]
    assert usage["input_tokens"] == pytest.approx(counted(request) * 2 * MARGIN + FORMAT_TOKENS, abs=3)
    [charge] = await stack.rows("SELECT * FROM charges WHERE job_id = $1", job.job_id)
    assert (charge["input_tokens"], charge["output_tokens"]) == (usage["input_tokens"], usage["output_tokens"])


async def test_a_window_that_is_too_small_for_the_models_tokens_is_refused_at_start(stack: Stack) -> None:
    window = {"PROTOSTAR_CONTEXT_WINDOW": "1500", "PROTOSTAR_MAX_OUTPUT_TOKENS": "600"}
    await stack.redis.hset(keys.TOKEN_RATIOS, "test-model", "3")  # type: ignore[misc]
    worker = stack.launch(**window)

    async def ended() -> bool:
        return not worker.running

    await until(ended, "the worker refuses to start", stack.logs)
    assert "PROTOSTAR_CONTEXT_WINDOW is 1500" in worker.last_lines(10)
    await stack.redis.delete(keys.TOKEN_RATIOS)
    await stack.start_worker(**window)


def is_answer(request: dict[str, Any]) -> bool:
    """Whether a request of the model server's log asks for an answer, not for a summary."""
    return bool(request["body"].get("stream"))


def counted(request: dict[str, Any]) -> int:
    return sum(UNKNOWN.count(message["content"]) for message in request["body"]["messages"])

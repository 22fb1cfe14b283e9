"""A prompt that the provider finds too long is made once more, smaller, and the reader sees nothing of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from protostar_client import keys

from rag.corpus.tokens import TokenCounter
from rag.prompt.overflow import smaller_window
from rag.prompt.token_ratio import FIRST_RATIO, TokenRatio
from rag.providers.vendor_messages import OverflowSizes, overflow_sizes
from tests.support.stack_under_test import Stack, check_order, text_of, until

COUNT = TokenCounter("test-model").count
REFUSED = {"status": 400, "error": {"message": "Too long: the context length is exceeded.", "code": 400}}
SMALL = {"PROTOSTAR_CONTEXT_WINDOW": "2500", "PROTOSTAR_MAX_OUTPUT_TOKENS": "300", "PROTOSTAR_REINDEX_MINUTES": "0"}
PAGE = "이 문장은 쪽의 본문을 이룬다. " * 2_000


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9216 tokens (8292 in the "
            "messages, 924 in the completion).",
            OverflowSizes(8192, 8292),
        ),
        (
            "This model's maximum context length is 8,192 tokens. However, your messages resulted in 9015 tokens.",
            OverflowSizes(8192, 9015),
        ),
        (
            "'max_tokens' is too large: 1024. This model's maximum context length is 4096 tokens and your request has "
            "3500 input tokens (1024 > 4096 - 3500).",
            OverflowSizes(4096, 3500),
        ),
        (
            "You passed 3073 input tokens. However, the model's context length is only 4096 tokens",
            OverflowSizes(4096, 3073),
        ),
        ("request (5012 tokens) exceeds the available context size (4096 tokens), try", OverflowSizes(4096, 5012)),
        ("prompt is too long: 208310 tokens > 200000 maximum", OverflowSizes(200_000, 208_310)),
        (
            "This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 tokens "
            "(138976 of text input, 1024 in the output).",
            OverflowSizes(131_072, 138_976),
        ),
        (
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            OverflowSizes(1_048_576, 1_200_000),
        ),
        ("the request exceeds the available context size. try increasing it", OverflowSizes(None, None)),
        ("openai answered 400: its message quotes the request and is left out", OverflowSizes(None, None)),
        ("maximum context length is 0 tokens", OverflowSizes(None, None)),
    ],
)
def test_the_numbers_of_a_providers_message_are_found(message: str, named: OverflowSizes) -> None:
    assert overflow_sizes(message) == named


def window_after(named: OverflowSizes, *, corrected: int = 6_000) -> int:
    return smaller_window(named, counted=6_000, corrected=corrected, max_output_tokens=1_000, context_window=8_000)


def test_the_window_that_the_provider_names_is_taken() -> None:
    assert window_after(OverflowSizes(4_096, None)) == 4_096
    assert window_after(OverflowSizes(4_096, 5_000)) == 4_096


def test_where_only_our_count_was_wrong_the_window_stays() -> None:
    assert window_after(OverflowSizes(8_000, 9_000), corrected=9_000) == 8_000
    assert window_after(OverflowSizes(128_000, 9_000), corrected=9_000) == 8_000


def test_numbers_that_explain_nothing_leave_two_thirds_of_what_was_refused() -> None:
    for named in (OverflowSizes(None, None), OverflowSizes(8_000, None), OverflowSizes(7_500, 6_000)):
        assert window_after(named) == 4_666


def answers(stack: Stack) -> list[dict[str, Any]]:
    """The bodies of the requests for answers, oldest first."""
    return [request["body"] for request in stack.model.requests() if request["body"].get("stream")]


def size(body: dict[str, Any]) -> int:
    return sum(COUNT(message["content"]) for message in body["messages"])


async def ask_about_page(stack: Stack) -> list[dict[str, Any]]:
    job = await stack.ask("이 쪽을 요약해 줘.", mode="page_context", context=PAGE)
    return await stack.events(job.job_id)


async def test_a_refused_prompt_is_made_smaller_once_in_the_same_attempt(stack: Stack) -> None:
    await stack.start_worker()
    stack.model.script(REFUSED, {"pieces": ["요약."]})
    events = await ask_about_page(stack)
    check_order(events)
    assert [event["type"] for event in events] == ["start", "delta", "done"]
    assert (events[-1]["attempt"], text_of(events)) == (1, "요약.")
    first, second = answers(stack)
    assert 0.3 < size(second) / size(first) < 2 / 3
    assert all(body["messages"][-1]["content"].endswith("이 쪽을 요약해 줘.") for body in (first, second))

    async def learned() -> object:
        return await stack.redis.hget(keys.TOKEN_RATIOS, "test-model")  # type: ignore[misc]

    line = await until(learned, "the worker has written what it learned")
    assert TokenRatio.parse(line.decode()).recent[-2] > 1.4 * FIRST_RATIO


async def test_the_numbers_that_a_provider_names_are_used(stack: Stack) -> None:
    await stack.start_worker()
    message = "This model's maximum context length is 3000 tokens. However, your messages resulted in 7168 tokens."
    stack.model.script({"status": 400, "error": {"message": message, "code": 400}}, {"pieces": ["요약."]})
    assert (await ask_about_page(stack))[-1]["type"] == "done"
    first, second = answers(stack)
    assert 0.9 < size(second) * 7_168 / size(first) / (3_000 - 1_024) <= 1


async def test_the_sources_told_are_those_of_the_prompt_that_was_answered(stack: Stack) -> None:
    for number in range(6):
        (stack.corpus / f"{number}.md").write_text(f"# 임대 {number}\n\n" + "임대는 만료되면 끝난다. " * 20)
    for number in range(30):
        (stack.corpus / f"weather-{number}.md").write_text(f"# 날씨\n\n바람이 {number}번 불고 비가 왔다.")
    await stack.start_worker(**SMALL)
    reindexed = await stack.redis.enqueue_job("reindex_corpus")
    assert reindexed is not None
    await reindexed.result(timeout=20, poll_delay=0.05)
    named = {"status": 400, "error": {"message": "The maximum context length is 1500 tokens.", "code": 400}}
    stack.model.script(named, {"pieces": ["끝난다."]})
    job = await stack.ask("임대는 언제 끝나는가?")
    events = await stack.events(job.job_id)
    assert [event["type"] for event in events] == ["start", "sources", "delta", "done"]
    refused, answered = (json.dumps(body, ensure_ascii=False) for body in answers(stack))
    told = [source["document"] for source in events[1]["sources"]]
    assert told
    assert [name for name in told if f'document=\\"{name}\\"' in answered] == told
    assert answered.count("document=") == len(told) < refused.count("document=")
    [_, message] = await stack.messages(job.job_id)
    assert [source["document"] for source in json.loads(message["sources"])] == told


async def test_a_second_overflow_ends_the_turn_with_the_numbers(stack: Stack) -> None:
    await stack.start_worker()
    stack.model.script({**REFUSED, "times": 2}, {"pieces": ["?"]})
    events = await ask_about_page(stack)
    check_order(events)
    assert [event["type"] for event in events] == ["start", "error"]
    assert events[-1]["code"] == "context_length"
    assert "PROTOSTAR_CONTEXT_WINDOW says 8192" in events[-1]["message"]
    first, second = answers(stack)
    assert size(second) < size(first)
    [charge] = await stack.rows("SELECT * FROM charges")
    assert (charge["outcome"], charge["output_tokens"]) == ("context_length", 0)


async def test_a_prompt_that_cannot_be_made_smaller_ends_the_turn_at_once(stack: Stack) -> None:
    await stack.start_worker()
    named = {"status": 400, "error": {"message": "The maximum context length is 1100 tokens.", "code": 400}}
    stack.model.script(named, {"pieces": ["?"]})
    events = await ask_about_page(stack)
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "context_length")
    [refused] = answers(stack)
    said = str(events[-1]["message"])
    assert "The maximum context length is 1100 tokens." in said
    assert "can't be made small enough" in said
    numbers = [int(number) for number in re.findall(r"\d+", said)]  # the first is the prompt's size
    assert 1 < numbers[0] / size(refused) < 1.3
    assert {1024, 8192} <= set(numbers)
    assert "PROTOSTAR_CONTEXT_WINDOW" in said
    assert "shorten the persona" in said


async def test_what_cannot_be_made_smaller_is_not_said_to_have_been(stack: Stack) -> None:
    await stack.start_worker(**SMALL | {"PROTOSTAR_CONTEXT_WINDOW": "1500"})
    stack.model.script({**REFUSED, "times": None})
    job = await stack.ask("왜?")
    said = str((await stack.events(job.job_id))[-1]["message"])
    assert "1500" in said
    assert re.match(r"the prompt of \d+ tokens and the answer's 300 are too long", said)
    assert not re.search(r"also made smaller|model's window of|shorten the question", said)
    assert "Too long: the context length is exceeded." in said
    assert len(answers(stack)) == 1


async def test_an_overflow_after_the_first_word_takes_nothing_back(stack: Stack) -> None:
    await stack.start_worker()
    stack.model.script(
        {"pieces": ["앞", "뒤"], "after": 1, "fault": "error_chunk", "error": REFUSED["error"]}, {"pieces": ["?"]}
    )
    events = await ask_about_page(stack)
    check_order(events)
    assert (text_of(events), events[-1]["code"]) == ("앞", "context_length")
    assert len(answers(stack)) == 1


async def test_a_fallback_model_may_have_a_larger_window(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_FALLBACK_MODELS="large-model")
    stack.model.script({**REFUSED, "model": "test-model"}, {"model": "large-model", "pieces": ["요약."]})
    assert text_of(await ask_about_page(stack)) == "요약."
    first, second = answers(stack)
    assert (first["model"], second["model"]) == ("test-model", "large-model")
    assert first["messages"] == second["messages"]


async def test_where_no_model_answers_and_one_overflowed_the_prompt_is_made_smaller_for_all(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_FALLBACK_MODELS="other-model,down-model")
    stack.model.script(
        {**REFUSED, "model": "test-model", "times": 2},
        {"status": 503, "model": "down-model", "times": None},
        {**REFUSED, "model": "other-model"},
        {"model": "other-model", "pieces": ["요약."]},
    )
    events = await ask_about_page(stack)
    assert (text_of(events), events[-1]["attempt"]) == ("요약.", 1)
    asked = answers(stack)
    assert [body["model"] for body in asked] == ["test-model", "other-model", "down-model", "test-model", "other-model"]
    assert len({size(body) for body in asked[:3]}) == 1
    assert size(asked[3]) == size(asked[4]) < size(asked[0])

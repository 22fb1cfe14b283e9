"""What is stored as the summary of an answer, whatever the model says."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from rag.prompt.sentences import split_sentences
from tests.support.stack_under_test import Stack

ANSWER = (
    "작업은 잃지 않습니다. 워커가 죽으면 15초 안에 다른 워커가 이어받습니다. "
    "이어받은 워커는 처음부터 다시 답합니다. 독자는 restart 이벤트를 봅니다. 그 뒤의 답이 참입니다."
)
GOOD = "작업은 15초 안에 다른 워커가 이어받습니다."
WRONG_NUMBER = "작업은 47초 안에 이어받습니다. 답은 처음부터 다시 옵니다."
LONG = "하나입니다. 둘입니다. 셋입니다. 넷입니다. 다섯입니다."


async def summed_up(stack: Stack, *replies: dict[str, Any]) -> dict[str, Any]:
    """The result of the summary of `ANSWER`, where the model is asked for it as often as there are replies."""
    stack.model.script({"pieces": [ANSWER]}, *replies)
    job = await stack.ask("워커가 죽으면?")
    await stack.events(job.job_id)
    [_, answer] = await stack.messages(job.job_id)
    record = await stack.result(f"summary:{answer['id']}")
    assert record["s"], record
    [_, answer] = await stack.messages(job.job_id)
    result: dict[str, Any] = record["r"]
    assert answer["summary"] == result["summary"]
    assert len(stack.model.requests()) == 1 + len(replies)
    return result


def last_prompt(stack: Stack) -> str:
    return str(stack.model.requests()[-1]["body"]["messages"][-1]["content"])


async def test_a_summary_with_a_number_of_its_own_is_asked_for_again(shared_stack: Stack) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, "cost": 0.25}
    result = await summed_up(
        shared_stack, {"pieces": [WRONG_NUMBER], "usage": usage}, {"pieces": [GOOD], "usage": usage}
    )
    assert result["summary"] == GOOD
    assert result["usage"] == {"input_tokens": 200, "output_tokens": 40, "cost": 0.5, "estimated": False}
    assert "(47)" in last_prompt(shared_stack)
    assert ANSWER in last_prompt(shared_stack)


async def test_a_summary_of_five_sentences_is_asked_for_again(shared_stack: Stack) -> None:
    assert (await summed_up(shared_stack, {"pieces": [LONG]}, {"pieces": [GOOD]}))["summary"] == GOOD
    assert "it had 5 sentences, and 3 are the most" in last_prompt(shared_stack)


async def test_a_summary_that_stays_too_long_is_cut_at_a_sentence_end(shared_stack: Stack) -> None:
    result = await summed_up(shared_stack, {"pieces": [LONG]}, {"pieces": [LONG]})
    assert result["summary"] == "하나입니다. 둘입니다. 셋입니다."


async def test_a_sentence_that_keeps_a_wrong_number_is_dropped(shared_stack: Stack) -> None:
    result = await summed_up(shared_stack, {"pieces": [WRONG_NUMBER]}, {"pieces": [WRONG_NUMBER]})
    assert result["summary"] == "답은 처음부터 다시 옵니다."


@pytest.mark.parametrize("text", ["47초입니다.", "```", " "])
async def test_where_nothing_is_left_the_answers_first_sentences_are_its_summary(
    shared_stack: Stack, text: str
) -> None:
    result = await summed_up(shared_stack, {"pieces": [text]}, {"pieces": [text]})
    assert result["summary"] == " ".join(split_sentences(ANSWER)[:3])


async def test_a_repair_that_fails_leaves_the_first_try_without_its_fault(shared_stack: Stack) -> None:
    result = await summed_up(shared_stack, {"pieces": [WRONG_NUMBER]}, {"status": 500})
    assert result["summary"] == "답은 처음부터 다시 옵니다."


async def test_a_model_that_thinks_aloud_and_sends_control_characters_is_summed_up(shared_stack: Stack) -> None:
    result = await summed_up(shared_stack, {"pieces": ["<think>99초? 아니다.</think>\n\n작업은\x00 남습니다."]})
    assert result["summary"] == "작업은 남습니다."


async def test_a_failed_summary_leaves_the_answer_readable(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"pieces": [ANSWER]}, {"status": 401}, {"pieces": ["네."]})
    job = await stack.ask("워커가 죽으면?", user=user)
    await stack.events(job.job_id)
    [_, answer] = await stack.messages(job.job_id)
    assert not (await stack.result(f"summary:{answer['id']}"))["s"]
    await stack.events((await stack.ask("그 뒤에는?", user=user)).job_id)
    assert ANSWER in json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)

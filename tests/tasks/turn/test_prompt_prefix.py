"""Consecutive prompts of a session share what they begin with, so that a provider can cache it."""

from __future__ import annotations

import re
from itertools import pairwise
from uuid import uuid4

from tests.support.stack_under_test import Stack
from tests.tasks.billing.test_bill import NO_REINDEX, ended

QUESTIONS = (
    "워커가 죽으면 작업은 어떻게 되나요?",
    "재시도는 몇 번 하나요?",
    "워커 임대는 몇 초인가요?",
    "작업은 어디에 있나요?",
)
TURN_END = re.compile(r"</(?:answer|answer-summary)-[0-9a-f]+>\n\n")


async def prompts_of_session(stack: Stack) -> list[list[dict[str, str]]]:
    """The prompts of a session whose answers have their summaries."""
    user, prompts = str(uuid4()), []
    for number, question in enumerate(QUESTIONS):
        stack.model.script({"pieces": [f"{number}번 답입니다."]})
        job_id = await ended(stack, question, user=user)
        prompts.append(stack.model.requests()[-1]["body"]["messages"])
        await stack.result(f"summary:{(await stack.messages(job_id))[1]['id']}")
    return prompts


def codes(messages: list[dict[str, str]]) -> set[str]:
    return set(re.findall(r"<(?:question|passage)-([0-9a-f]+)", messages[1]["content"]))


async def test_prompts_of_a_session_share_all_turns_but_the_last(stack: Stack) -> None:
    await stack.start_worker(**NO_REINDEX)
    assert await stack.protostar("reindex") == 0
    prompts = await prompts_of_session(stack)
    assert any("<passage-" in messages[1]["content"] for messages in prompts[2:])
    for before, after in pairwise(prompts[1:]):
        assert before[0] == after[0]
        ends = [match.end() for match in TURN_END.finditer(after[1]["content"])]
        assert before[1]["content"].startswith(after[1]["content"][: ends[-2]])
    assert len(set.union(*map(codes, prompts))) == 1


async def test_another_session_has_another_code(stack: Stack) -> None:
    await stack.start_worker(**NO_REINDEX)
    one, other = await prompts_of_session(stack), await prompts_of_session(stack)
    assert codes(one[-1]).isdisjoint(codes(other[-1]))

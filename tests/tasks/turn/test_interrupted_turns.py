"""A turn whose answer failed or was cancelled enters no later prompt, roll-up or summary."""

from __future__ import annotations

import json
import time
from uuid import uuid4

from models import MessageStatus
from tasks.turn.history import Row, stored_turns
from tests.support.stack_under_test import Stack

FRAGMENT = "비밀번호는 네 자리이고"


def last_prompt(stack: Stack) -> str:
    return json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)


async def test_a_failed_answer_and_its_question_are_absent_from_the_next_prompt(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script(
        {"pieces": [FRAGMENT], "finish_reason": "content_filter"}, {"contains": "날씨", "pieces": ["맑습니다."]}
    )
    failed = await stack.ask("비밀번호 규칙은요?", user=user)
    assert (await stack.events(failed.job_id))[-1]["type"] == "error"
    assert (await stack.messages(failed.job_id))[1]["content"] == FRAGMENT
    await stack.events((await stack.ask("오늘 날씨는요?", user=user)).job_id)
    assert FRAGMENT not in last_prompt(stack)
    assert "비밀번호 규칙은요?" not in last_prompt(stack)


async def test_a_cancelled_answer_and_its_question_are_absent_from_the_next_prompt(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script(
        {"pieces": [FRAGMENT, "뒤"], "after": 1, "hold": "never"}, {"contains": "날씨", "pieces": ["맑습니다."]}
    )
    cancelled = await stack.ask("비밀번호 규칙은요?", user=user)
    await stack.until_said(cancelled.job_id, FRAGMENT)
    await stack.redis.zadd("arq:abort", {cancelled.job_id: int(time.time() * 1000)})
    assert (await stack.events(cancelled.job_id))[-1]["type"] == "cancelled"
    await stack.events((await stack.ask("오늘 날씨는요?", user=user)).job_id)
    assert FRAGMENT not in last_prompt(stack)
    assert "비밀번호 규칙은요?" not in last_prompt(stack)


async def test_a_failed_answer_has_no_summary(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": [FRAGMENT], "finish_reason": "content_filter"})
    failed = await stack.ask("비밀번호 규칙은요?")
    await stack.events(failed.job_id)
    [_, answer] = await stack.messages(failed.job_id)
    job = await stack.redis.enqueue_job("summarize_message", message_id=answer["id"])
    assert job is not None
    failure = (await stack.result(job.job_id))["r"]["error"]
    assert (failure["code"], "no completed answer" in failure["message"]) == ("invalid_request", True)


def test_only_completed_answers_make_turns() -> None:
    def rows(number: int, status: MessageStatus) -> list[Row]:
        shared = {"job_id": str(number), "summary": None}
        return [
            {"id": 2 * number, "role": "user", "content": f"질문 {number}", "status": "completed", **shared},
            {"id": 2 * number + 1, "role": "assistant", "content": f"답 {number}", "status": status, **shared},
        ]

    messages = [row for number, status in enumerate(MessageStatus, start=1) for row in rows(number, status)]
    assert [stored.turn.answer for stored in stored_turns(messages)] == ["답 1"]

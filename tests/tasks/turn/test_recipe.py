"""A prompt can be made again exactly as it was sent, whatever has changed since then."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from models import Session
from models.database import connect
from models.transaction import transact
from protostar.settings import SHIPPED_PROMPTS_DIR
from rag.prompt.parts import PromptParts
from tasks.turn.prompt_record import Recipe
from tests.support.stack_under_test import Stack, until
from tests.tasks.billing.test_bill import LONG_ANSWER, NO_REINDEX, ended

SUMMARY = "작업은 잃지 않으며 15초 안에 다른 워커가 이어받습니다."
QUESTION = "워커가 죽으면 작업은 몇 초 안에 이어받나요?"


def sent(stack: Stack) -> list[dict[str, str]]:
    """The messages that the model server received last."""
    messages: list[dict[str, str]] = stack.model.requests()[-1]["body"]["messages"]
    return messages


async def rebuilt(stack: Stack, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await stack.output("prompt", job_id, "--json"))
    return found


async def summed_up(stack: Stack, job_id: str) -> None:
    await stack.result(f"summary:{(await stack.messages(job_id))[1]['id']}")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A prompts folder of one's own."""
    folder = tmp_path / "prompts"
    shutil.copytree(SHIPPED_PROMPTS_DIR, folder)
    return folder


async def test_a_prompt_is_made_again_byte_for_byte_after_everything_has_changed(stack: Stack, prompts: Path) -> None:
    worker = await stack.start_worker(PROTOSTAR_PROMPTS_DIR=str(prompts), **NO_REINDEX)
    assert await stack.protostar("reindex") == 0
    stack.model.script({"pieces": [LONG_ANSWER]}, {"pieces": [SUMMARY]}, {"pieces": ["네."]}, {"pieces": ["네, 네."]})
    user = str(uuid4())
    first = await ended(stack, QUESTION, user=user)
    await summed_up(stack, first)
    second = await ended(stack, "짧게 한 번 더?", user=user)
    await summed_up(stack, second)
    third = await ended(stack, "재시도는 어떻게 하나요?\n\t(표로)", user=user)
    received = sent(stack)
    user_message = received[1]["content"]
    for part in ("<passage-", SUMMARY, "짧게 한 번 더?", "지수 백오프"):
        assert part in user_message

    (stack.corpus / "delivery.md").write_text("# 다른 글\n\n이제 아무것도 남지 않았다.")
    assert await stack.protostar("reindex", "--full") == 0
    await stack.rows("UPDATE messages SET summary = 'gone', content = 'gone' WHERE job_id = ANY($1)", [first, second])
    for name in ("general", "page_context", "summary"):
        (prompts / f"{name}.md").write_text("Another persona.")
    worker.stop()

    again = await rebuilt(stack, third)
    assert again["messages"] == received
    assert json.dumps(again["messages"], ensure_ascii=False) == json.dumps(received, ensure_ascii=False)
    assert (again["provider"], again["model"], again["attempt"]) == ("openai", "test-model", 1)
    expected = {"model": "test-model", "mode": "general", "context_window": 8192, "max_output_tokens": 1024}
    assert expected.items() <= again["parameters"].items()
    assert len(again["version"]) == 64
    readable = await stack.output("prompt", third)
    assert all(f"--- {message['role']} ---\n{message['content']}\n" in readable for message in received)


async def test_a_page_that_was_cut_is_made_again(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["요약입니다."]})
    page = "".join(f"{number}번째 문장입니다. " for number in range(5_000))
    job_id = await ended(stack, "요약해 줘.", mode="page_context", context=page)
    received = sent(stack)
    assert "page is cut here" in received[1]["content"]
    assert (await rebuilt(stack, job_id))["messages"] == received


async def test_the_version_follows_the_persona_alone(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["네."], "times": 3})
    jobs = [await ended(stack, "하나"), await ended(stack, "둘")]
    jobs.append(await ended(stack, "셋", mode="page_context", context="글."))
    versions = [(await rebuilt(stack, job_id))["version"] for job_id in jobs]
    assert versions[0] == versions[1] != versions[2]


async def test_a_session_keeps_a_text_once_however_many_prompts_held_it(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"pieces": ["네."], "times": 3})
    first = await ended(stack, QUESTION, user=user)
    await summed_up(stack, first)
    before = await stack.rows("SELECT count(*) AS texts FROM prompt_texts")
    job_id = await ended(stack, QUESTION, user=user)
    [added] = await stack.rows("SELECT count(*) - $1 AS texts FROM prompt_texts", before[0]["texts"])
    assert added["texts"] == 1  # the first turn's answer, which the second prompt holds
    assert (await rebuilt(stack, job_id))["messages"] == sent(stack)
    wrong = "SELECT hash FROM prompt_texts WHERE hash <> encode(sha256(convert_to(text, 'UTF8')), 'hex')"
    assert await stack.rows(wrong) == []


async def test_the_texts_of_a_session_are_deleted_with_it_and_those_of_others_stay(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"pieces": ["네."], "times": 2})
    own, other = await ended(stack, QUESTION, user=user), await ended(stack, QUESTION)
    messages = sent(stack)
    await stack.rows("DELETE FROM sessions WHERE user_uuid = $1", user)
    [left] = await stack.rows(
        "SELECT count(*) AS texts FROM prompt_texts WHERE session_id NOT IN (SELECT id FROM sessions)"
    )
    assert left["texts"] == 0
    assert "there is no turn" in await problem(stack, own)
    assert (await rebuilt(stack, other))["messages"] == messages


async def test_the_last_attempts_prompt_is_the_one_that_is_kept(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"status": 401}, {"status": 500}, {"pieces": ["네."]})
    job_id = await ended(stack, QUESTION)
    await stack.result(job_id)
    first = await rebuilt(stack, job_id)
    assert await stack.protostar("retry", job_id) == 0
    await stack.events(job_id)
    again = await rebuilt(stack, job_id)
    assert again["messages"] == sent(stack) != first["messages"]
    assert again["attempt"] == 3


async def test_a_failed_answer_keeps_its_prompt(shared_stack: Stack) -> None:
    shared_stack.model.script({"status": 401})
    job_id = await ended(shared_stack)
    again = await rebuilt(shared_stack, job_id)
    assert (again["provider"], again["messages"]) == ("openai", sent(shared_stack))


async def test_a_cancelled_answer_keeps_its_prompt(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "반쪽")
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    await stack.events(job.job_id)
    assert (await rebuilt(stack, job.job_id))["messages"] == sent(stack)


async def problem(stack: Stack, job_id: str) -> str:
    """The one line by which the command fails."""
    code, printed, said = await stack.run("prompt", job_id)
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert job_id in said
    return said


async def test_a_turn_without_a_prompt_names_the_reason(shared_stack: Stack) -> None:
    stack = shared_stack
    assert "there is no turn" in await problem(stack, "nobody")
    too_long = await ended(stack, "단어 " * 10_000)
    assert "ended (failed) before a prompt was made" in await problem(stack, too_long)

    stack.model.script({"pieces": ["네."], "hold": "running"})
    running = await stack.ask("질문")
    await stack.model.until_waiting("running")
    assert "has not ended" in await problem(stack, running.job_id)
    stack.model.release("running")
    await stack.events(running.job_id)

    job_id = running.job_id
    await stack.rows('UPDATE messages SET prompt = prompt || \'{"messages": ""}\' WHERE job_id = $1', job_id)
    assert "another version" in await problem(stack, job_id)
    await stack.rows("UPDATE messages SET prompt = NULL WHERE job_id = $1", job_id)
    assert "older version" in await problem(stack, job_id)


async def test_two_answers_that_store_the_same_texts_cannot_deadlock(database_url: str) -> None:
    persona, question = sorted(("하나", "둘"), key=_hash, reverse=True)
    recipe = Recipe.of(PromptParts(persona, question, "0123456789"), [], parameters={})
    insert = "INSERT INTO prompt_texts (session_id, hash, text) VALUES ($1, $2, $3)"
    other = await asyncpg.connect(database_url)
    async with connect(database_url):
        session = await Session.create(user_uuid=uuid4(), session_id="s")
        async with other.transaction():
            await other.execute(insert, session.id, _hash(question), question)
            storing = asyncio.create_task(transact(partial(recipe.store_texts, session_id=session.id), retry_for_s=0))

            async def waits() -> bool:
                return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await until(waits, "the answer waits for the other one's first text")
            await other.execute(insert, session.id, _hash(persona), persona)
        await storing
        assert await other.fetchval("SELECT count(*) FROM prompt_texts") == 2
    await other.close()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

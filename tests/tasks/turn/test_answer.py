"""The main job from outside, on real servers: a question is answered, stored and summed up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from uuid import uuid4

from tests.support.stack_under_test import Stack, check_order, text_of, until

LONG_ANSWER = (
    "작업은 잃지 않습니다. 워커가 죽으면 15초 안에 다른 워커가 이어받습니다. "
    "이어받은 워커는 처음부터 다시 답합니다. 독자는 restart 이벤트를 봅니다. 그 뒤의 답이 참입니다."
)
SUMMARY = "작업은 잃지 않으며 15초 안에 다른 워커가 이어받습니다."


def pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


async def test_an_answer_is_published_stored_and_summed_up_once(shared_stack: Stack) -> None:
    stack = shared_stack
    usage = {"prompt_tokens": 321, "completion_tokens": 54, "total_tokens": 375, "cost": 0.0021}
    stack.model.script(
        {"pieces": pieces(LONG_ANSWER), "usage": usage, "delay_s": 0.001},
        {"pieces": [SUMMARY]},
    )
    user = str(uuid4())
    job = await stack.ask("워커가 죽으면 작업은 어떻게 되나요?", user=user, session="일")
    events = await stack.events(job.job_id)

    check_order(events)
    assert [event["type"] for event in events[:2]] == ["start", "sources"]
    assert text_of(events) == LONG_ANSWER
    assert all(e["v"] == 1 and e["job_id"] == job.job_id for e in events)
    assert events[1]["sources"][0]["document"] == "delivery.md"

    question, answer = await stack.messages(job.job_id)
    assert (question["role"], question["content"]) == ("user", "워커가 죽으면 작업은 어떻게 되나요?")
    assert (answer["role"], answer["status"], answer["content"]) == ("assistant", "completed", LONG_ANSWER)
    assert (answer["finish_reason"], answer["attempt"]) == ("stop", 1)
    expected = {"input_tokens": 321, "output_tokens": 54, "cost": 0.0021, "estimated": False}
    assert json.loads(answer["usage"]) == events[-1]["usage"] == expected
    assert events[-1]["message_id"] == answer["id"]

    result = await job.result(timeout=10)
    assert result["content"] == LONG_ANSWER
    assert result["message_id"] == answer["id"]
    assert (result["session_id"], result["attempt"]) == ("일", 1)
    assert result["sources"] == events[1]["sources"]

    summary = (await stack.result(f"summary:{answer['id']}"))["r"]
    assert (summary["message_id"], summary["summary"]) == (answer["id"], SUMMARY)
    assert (await stack.messages(job.job_id))[1]["summary"] == SUMMARY
    [session] = await stack.rows("SELECT * FROM sessions WHERE user_uuid = $1", user)
    assert (str(session["user_uuid"]), session["session_id"]) == (user, "일")


async def test_a_follow_up_is_asked_with_the_summary_in_place_of_the_answer(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": [LONG_ANSWER]}, {"pieces": [SUMMARY]}, {"pieces": ["네."]})
    user = str(uuid4())
    first = await stack.ask("워커가 죽으면?", user=user)
    [_, answer] = [await stack.events(first.job_id), (await stack.messages(first.job_id))[1]]
    await stack.result(f"summary:{answer['id']}")
    second = await stack.ask("그 뒤에는?", user=user)
    await stack.events(second.job_id)
    prompt = json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)
    assert SUMMARY in prompt
    assert "독자는 restart 이벤트를 봅니다" not in prompt
    assert "그 뒤에는?" in prompt


async def test_without_a_summary_the_next_turn_gets_the_answer_itself(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": [LONG_ANSWER]}, {"hold": "summary", "pieces": [SUMMARY]}, {"pieces": ["네."]})
    user = str(uuid4())
    await stack.events((await stack.ask("워커가 죽으면?", user=user)).job_id)
    await stack.model.until_waiting("summary")
    await stack.events((await stack.ask("그 뒤에는?", user=user)).job_id)
    prompt = json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)
    assert "독자는 restart 이벤트를 봅니다" in prompt


async def test_a_short_answer_is_its_own_summary(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["네, ", "그렇습니다."]})
    job = await stack.ask("맞나요?")
    await stack.events(job.job_id)
    [_, answer] = await stack.messages(job.job_id)
    summary = (await stack.result(f"summary:{answer['id']}"))["r"]
    assert (summary["summary"], summary["model"]) == ("네, 그렇습니다.", "")
    assert len(stack.model.requests()) == 1


async def test_page_context_answers_from_the_page_alone(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["요약입니다."]})
    job = await stack.ask(
        "이 글을 요약해 줘. 워커가 죽으면?", mode="page_context", context="노을은 붉다. 바다는 푸르다."
    )
    events = await stack.events(job.job_id)
    assert "sources" not in [event["type"] for event in events]
    prompt = json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)
    assert "노을은 붉다" in prompt
    assert "delivery.md" not in prompt


async def test_a_file_in_the_prompts_folder_is_a_mode(stack: Stack) -> None:
    folder = stack.corpus.parent / "prompts"
    folder.mkdir()
    for name in ("general", "page_context", "summary"):
        (folder / f"{name}.md").write_text(f"rules of {name}")
    (folder / "pirate.md").write_text("You speak like a pirate.")
    await stack.start_worker(PROTOSTAR_PROMPTS_DIR=str(folder))
    stack.model.script({"pieces": ["Arr."]})
    job = await stack.ask("Hello?", mode="pirate")
    assert text_of(await stack.events(job.job_id)) == "Arr."
    assert stack.model.requests()[-1]["body"]["messages"][0]["content"] == "You speak like a pirate."


async def test_the_same_job_id_is_the_same_turn_also_when_redis_has_forgotten_it(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["하나뿐인 답."]})
    user = str(uuid4())
    job = await stack.ask("질문", user=user, job_id="one")
    await stack.events("one")
    first = await job.result(timeout=10)
    await stack.redis.delete("arq:result:one", "chat:events:one")
    again = await stack.ask("질문", user=user, job_id="one")
    events = await stack.events("one")
    check_order(events)
    assert text_of(events) == "하나뿐인 답."
    assert await again.result(timeout=10) == first
    assert len(await stack.messages("one")) == 2
    assert len(stack.model.requests()) == 1


async def test_a_job_id_of_another_users_turn_reveals_nothing(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["비밀."]})
    await stack.ask("질문", job_id="mine")
    await stack.events("mine")
    await stack.result("mine")
    await stack.redis.delete("arq:result:mine", "chat:events:mine")
    await stack.ask("질문", job_id="mine")
    [event] = [e for e in await stack.events("mine") if e["type"] != "restart"]
    assert (event["type"], event["code"]) == ("error", "invalid_request")
    assert len(await stack.messages("mine")) == 2


async def test_turns_of_a_session_run_one_at_a_time_and_in_order(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"contains": "첫째", "hold": "first", "pieces": ["1."]})
    user = str(uuid4())
    jobs = [await stack.ask(word, user=user, job_id=f"{user}-{n}") for n, word in enumerate(["첫째", "둘째", "셋째"])]
    await stack.model.until_waiting("first")
    other = await stack.ask("다른 세션", user=user, session="other")
    await stack.events(other.job_id)
    assert [(await job.status()).value for job in jobs] == ["in_progress", "queued", "queued"]
    stack.model.release("first")
    for job in jobs:
        await stack.events(job.job_id)
    rows = await stack.rows(
        "SELECT m.job_id FROM messages m JOIN sessions s ON s.id = m.session_id "
        "WHERE s.user_uuid = $1 AND s.session_id = 's' AND m.role = 'assistant' ORDER BY m.id",
        user,
    )
    assert [row["job_id"] for row in rows] == [job.job_id for job in jobs]


async def test_ten_lines_with_only_arq_and_json_are_a_producer(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["안녕하세요."]})
    script = f"""
import asyncio, json
from arq import create_pool
from arq.connections import RedisSettings
async def main():
    redis = await create_pool(RedisSettings.from_dsn({stack.redis_url!r}),
        job_serializer=lambda job: json.dumps(job).encode(), job_deserializer=json.loads)
    job = await redis.enqueue_job("generate_chat", user_uuid="{uuid4()}", session_id="s", content="안녕?")
    print((await job.result(timeout=20, poll_delay=0.05))["content"])
asyncio.run(main())
"""
    done = await until_done(script)
    assert done == "안녕하세요.\n"


async def until_done(script: str) -> str:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_cron_indexes_the_corpus_at_start(stack: Stack) -> None:
    await stack.start_worker()

    async def indexed() -> list[dict[str, object]]:
        return await stack.rows("SELECT path FROM documents ORDER BY path")

    assert [row["path"] for row in await until(indexed, "the corpus is indexed")] == ["delivery.md"]


async def test_reindexing_on_demand_reports_the_changes(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_REINDEX_MINUTES="0")
    assert (await reindexed(stack))["added"] == 1
    (stack.corpus / "new.md").write_text("# 새 글\n\n토성에는 고리가 있다.")
    (stack.corpus / "delivery.md").write_text("# 바뀐 글\n\n목성은 크다.")
    result = await reindexed(stack)
    assert {key: result[key] for key in ("added", "changed", "removed", "unchanged", "failed")} == {
        "added": 1,
        "changed": 1,
        "removed": 0,
        "unchanged": 0,
        "failed": 0,
    }


async def reindexed(stack: Stack) -> dict[str, int]:
    job = await stack.redis.enqueue_job("reindex_corpus")
    assert job is not None
    result: dict[str, int] = await job.result(timeout=20, poll_delay=0.05)
    return result


async def test_a_worker_leaves_jobs_of_other_classes_in_the_queue(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_SERVE="chat")
    stack.model.script({"pieces": [LONG_ANSWER]}, {"pieces": [SUMMARY]})
    job = await stack.ask("워커가 죽으면?")
    await stack.events(job.job_id)
    [_, answer] = await stack.messages(job.job_id)

    async def queued() -> object:
        return await stack.redis.zscore("protostar:ready:summary", f"summary:{answer['id']}")

    await until(queued, "the summary waits for a worker of its own")
    await stack.start_worker(PROTOSTAR_SERVE="summary, reindex")
    assert (await stack.result(f"summary:{answer['id']}"))["r"]["summary"] == SUMMARY


async def test_the_events_of_an_answer_that_pauses_outlive_their_ttl(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_EVENT_TTL="1")
    stack.model.script({"pieces": ["앞", "뒤"], "after": 1, "hold": "pause"})
    job = await stack.ask("질문")
    await stack.model.until_waiting("pause")
    key = f"chat:events:{job.job_id}"
    gone_unless_kept = time.monotonic() + 2.5

    async def over() -> bool:
        assert await stack.redis.exists(key)
        return time.monotonic() > gone_unless_kept

    await until(over, "the pause is over")
    stack.model.release("pause")
    events = await stack.events(job.job_id)
    check_order(events)
    assert text_of(events) == "앞뒤"

    async def expired() -> bool:
        return not await stack.redis.exists(key)

    await until(expired, "the events expire after the last one")


async def test_an_answer_uses_only_documents_that_match(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["네."]}, {"pieces": ["네."]})
    for patterns, expected in ((["delivery*"], True), (["elsewhere/**"], False)):
        job = await stack.ask("워커가 죽으면 작업은 어떻게 되나요?", documents=patterns)
        events = await stack.events(job.job_id)
        assert ("sources" in [event["type"] for event in events]) == expected
        prompt = json.dumps(stack.model.requests()[-1]["body"]["messages"], ensure_ascii=False)
        assert ("delivery.md" in prompt) == expected

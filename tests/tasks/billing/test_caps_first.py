"""A user's caps are checked before anything is spent, and count only requests of that user that were sent."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from protostar_client import keys

from tests.support.stack_under_test import Stack, text_of, until
from tests.tasks.billing.test_bill import NO_REINDEX, USAGE, charges, ended, refusal

CAP = {"PROTOSTAR_USER_DAILY_TOKENS": "375"}


async def test_a_refused_question_takes_nothing_from_the_minute_budget_and_embeds_nothing(stack: Stack) -> None:
    stack.environment["PROTOSTAR_EMBEDDING_MODEL"] = "local-embedder"
    assert await stack.protostar("reindex") == 0
    await stack.start_worker(PROTOSTAR_REQUESTS_PER_MINUTE="2", **CAP, **NO_REINDEX)
    stack.model.script({"pieces": ["하나."], "usage": USAGE}, {"pieces": ["둘."], "usage": USAGE})
    user = str(uuid4())
    await ended(stack, "워커가 죽으면?", user=user)
    asked = stack.model.requests()
    for _ in range(3):
        message = (await refusal(stack, user=user))["message"]
        assert "375 of 375" in message
    assert stack.model.requests() == asked  # neither the chat model nor the embedding model
    job = await stack.ask("임대는 몇 초인가요?")
    events = await stack.events(job.job_id)
    assert (text_of(events), events[-1]["attempt"]) == ("둘.", 1)


async def test_a_request_that_was_never_sent_is_not_counted(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_REQUESTS_PER_MINUTE="1", PROTOSTAR_USER_ANSWERS_AT_ONCE="1", **NO_REINDEX)
    user = str(uuid4())
    too_long = await ended(stack, "단어 " * 10_000, user=user, session="other")
    assert (await stack.messages(too_long))[1]["status"] == "failed"
    assert await charges(stack, too_long) == []
    stack.model.script({"pieces": ["하나."], "usage": USAGE})
    await ended(stack)
    waiting = await stack.ask("질문", user=user)

    async def deferred() -> bool:
        score = await stack.redis.zscore(keys.QUEUE, waiting.job_id)
        now_s = (await stack.redis.time())[0]
        return score is not None and score > (now_s + 5) * 1000

    await until(deferred, "the job waits for the next minute", stack.logs)
    assert await charges(stack, waiting.job_id) == []


async def test_a_charge_of_another_user_with_the_same_job_id_lets_nobody_in(stack: Stack) -> None:
    await stack.start_worker(**CAP, **NO_REINDEX)
    stack.model.script({"pieces": ["하나."], "usage": USAGE})
    user, job_id = str(uuid4()), uuid4().hex
    await ended(stack, user=user)
    await stack.rows(
        "INSERT INTO charges (job_id, attempt, user_uuid, provider, model, input_tokens, output_tokens, estimated,"
        " outcome, created_at) VALUES ($1, 1, $2, 'openai', 'm', 1, 1, false, 'done', now())",
        job_id,
        str(uuid4()),
    )
    job = await stack.ask("질문", user=user, job_id=job_id)
    assert (await stack.events(job.job_id))[-1]["code"] == "rate_limited"


async def test_a_malformed_request_is_an_error_event_and_no_dead_letter(shared_stack: Stack) -> None:
    stack = shared_stack
    before = await stack.redis.xlen(keys.DEAD)
    right: dict[str, Any] = {"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"}
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {**right, "content": 7}, "content"),
        ((), {"user_uuid": right["user_uuid"], "session_id": "s"}, "content: is missing"),
        ((), {**right, "wish": 1}, "wish: is unknown; the arguments are user_uuid, session_id, content"),
        (("질문",), right, "name every argument"),
    ]
    for positional, named, problem in calls:
        job = await stack.redis.enqueue_job("generate_chat", *positional, **named)
        assert job is not None
        [event] = await stack.events(job.job_id)
        assert (event["type"], event["code"], problem in event["message"]) == ("error", "invalid_request", True)
        await stack.result(job.job_id)
    assert await stack.redis.xlen(keys.DEAD) == before

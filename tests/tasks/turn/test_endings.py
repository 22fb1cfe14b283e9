"""Every job publishes exactly one ending, and the ending is true."""

from __future__ import annotations

import json
import pickle
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from protostar_client.contract import InvalidRequest, RollUpRequest

from stack.processes import Process
from tests.support.stack_under_test import Stack, check_order, text_of, until

FOREVER: dict[str, Any] = {"times": None}


async def ending(stack: Stack, job_id: str) -> dict[str, Any]:
    events = await stack.events(job_id)
    check_order(events)
    return events[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ({"user_uuid": "nobody"}, "invalid_request", "user_uuid"),
        ({"session_id": ""}, "invalid_request", "session_id"),
        ({"session_id": "x" * 129}, "invalid_request", "session_id"),
        ({"session_id": "a\x00b"}, "invalid_request", "session_id"),
        ({"content": ""}, "invalid_request", "content: is empty"),
        ({"content": " \n"}, "invalid_request", "content: is blank"),
        ({"content": "가" * 32_001}, "invalid_request", "content: is too long; give at most 32,000"),
        ({"content": 7}, "invalid_request", "content"),
        ({"context": "가" * 400_001}, "invalid_request", "context"),
        ({"mode": "page_context"}, "invalid_request", "context"),
        ({"mode": "poet"}, "unknown_mode", "general, page_context"),
        ({"wish": "ice cream"}, "invalid_request", "wish"),
        ({"content": "단어 " * 10_000}, "prompt_too_long", "8192"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_unusable_request_names_its_fault(
    shared_stack: Stack, arguments: dict[str, Any], code: str, named: str
) -> None:
    stack = shared_stack
    request = {"user_uuid": str(uuid4()), "session_id": "s", "content": "질문", **arguments}
    job = await stack.redis.enqueue_job("generate_chat", **request)
    assert job is not None
    told = await ending(stack, job.job_id)
    assert (told["type"], told["code"]) == ("error", code)
    assert named in told["message"]
    result = await stack.result(job.job_id)
    assert result["s"] is False
    assert result["r"] == {"error": {"code": code, "message": told["message"]}}


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        ("reindex_corpus", {"bogus": 1}, "bogus: "),
        ("reindex_corpus", {"full": "yes"}, "full: "),
        ("reindex_corpus", {"full": 1}, "full: "),
        ("summarize_message", {}, "message_id: "),
        ("summarize_message", {"message_id": True}, "message_id: "),
        ("summarize_message", {"message_id": 2**63}, "message_id: "),
        ("summarize_message", {"message_id": 1, "bogus": 1}, "bogus: "),
        ("read_history", {"user_uuid": str(uuid4()), "session_id": "s", "limit": True}, "limit: "),
        ("read_history", {"user_uuid": str(uuid4()), "session_id": "s", "bogus": 1}, "bogus: "),
    ],
)
async def test_other_jobs_name_the_wrong_argument(
    shared_stack: Stack, function: str, arguments: dict[str, Any], named: str
) -> None:
    job = await shared_stack.redis.enqueue_job(function, **arguments)
    assert job is not None
    failure = (await shared_stack.result(job.job_id))["r"]["error"]
    assert (failure["code"], failure["message"].startswith(named)) == ("invalid_request", True)


@pytest.mark.parametrize(
    "wrong", [{"session": True}, {"until": True}, {"until": "0"}, {"bogus": 1}, {"session": 0}], ids=str
)
def test_a_roll_up_names_the_wrong_argument(wrong: dict[str, Any]) -> None:
    # Its job keeps no result that a test could read.
    [name] = wrong
    with pytest.raises(InvalidRequest, match=f"^invalid_request: {name}: "):
        RollUpRequest.parse({"session": 1, "until": 0, **wrong})


@pytest.mark.parametrize(
    "job_id",
    ["x" * 257, "a\x00b", "summary:1", "rollup:1:0", "index:1:0", "cron:reindex_corpus:1", "forget:1", "history:1"],
    ids=lambda job_id: repr(job_id[:10]),
)
async def test_a_job_id_that_cannot_be_stored_or_is_the_workers_own_is_refused(
    shared_stack: Stack, job_id: str
) -> None:
    await shared_stack.ask("질문", job_id=job_id)
    told = await ending(shared_stack, job_id)
    assert (told["code"], "job_id" in told["message"]) == ("invalid_request", True)


async def test_a_pickle_is_refused_and_runs_no_code(shared_stack: Stack, tmp_path: Path) -> None:
    stack, trap = shared_stack, tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    payload = pickle.dumps({"f": "generate_chat", "a": (), "k": {"x": Trap()}, "t": None, "et": 1})
    await stack.redis.set("arq:job:pickled", payload)
    await stack.redis.zadd("arq:queue", {"pickled": 1})
    told = await ending(stack, "pickled")
    assert (told["type"], told["code"]) == ("error", "invalid_request")
    assert "JSON" in told["message"]
    assert not trap.exists()


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"\xff\x00", b'{"f":1,"a":2,"k":3,"t":4,"et":5}'])
async def test_a_payload_of_any_bytes_ends_its_job_alone(shared_stack: Stack, payload: bytes) -> None:
    stack, job_id = shared_stack, uuid4().hex
    await stack.redis.set(f"arq:job:{job_id}", payload)
    await stack.redis.zadd("arq:queue", {job_id: 1})
    assert (await ending(stack, job_id))["code"] == "invalid_request"
    assert (await stack.result(job_id))["s"] is False
    assert await stack.redis.zscore("arq:queue", job_id) is None


async def test_a_job_that_expired_in_the_queue_ends_with_an_error(shared_stack: Stack) -> None:
    job_id = uuid4().hex
    await shared_stack.redis.zadd("arq:queue", {job_id: 1})
    told = await ending(shared_stack, job_id)
    assert (told["code"], "expired" in told["message"]) == ("internal", True)


async def test_an_unknown_function_ends_with_the_list_of_functions(shared_stack: Stack) -> None:
    job = await shared_stack.redis.enqueue_job("make_coffee")
    assert job is not None
    record = await shared_stack.result(job.job_id)
    assert record["r"]["error"]["code"] == "invalid_request"
    assert "generate_chat" in record["r"]["error"]["message"]


async def test_an_id_that_is_not_utf8_ends_alone(shared_stack: Stack) -> None:
    await shared_stack.redis.zadd("arq:queue", {b"\xff\xfe": 1})
    shared_stack.model.script({"pieces": ["네."]})
    assert text_of(await shared_stack.events((await shared_stack.ask("살아 있나요?")).job_id)) == "네."

    async def gone() -> bool:
        return await shared_stack.redis.zscore("arq:queue", b"\xff\xfe") is None

    await until(gone, "the job is out of the queue")


@pytest.mark.parametrize(
    ("behaviour", "code", "requests"),
    [
        ({"status": 500}, "provider_unavailable", 5),
        ({"fault": "refuse"}, "provider_unavailable", 5),
        ({"pieces": ["반"], "fault": "end"}, "provider_unavailable", 5),
        ({"status": 429}, "rate_limited", 5),
        ({"status": 401}, "provider_error", 1),
        ({"status": 404}, "provider_error", 1),
        ({"pieces": ["반"], "finish_reason": "content_filter"}, "content_filtered", 1),
        ({"status": 400, "error": {"code": "context_length_exceeded"}}, "context_length", 1),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
async def test_a_provider_that_fails_for_good_ends_the_answer_with_its_reason(
    shared_stack: Stack, behaviour: dict[str, Any], code: str, requests: int
) -> None:
    stack = shared_stack
    stack.model.script(FOREVER | behaviour)
    job = await stack.ask("질문")
    told = await ending(stack, job.job_id)
    assert (told["type"], told["code"]) == ("error", code)
    assert "sk-test-secret" not in json.dumps(told)
    assert len(stack.model.requests()) == requests
    [question, answer] = await stack.messages(job.job_id)
    assert (question["status"], answer["status"], answer["summary"]) == ("completed", "failed", None)
    assert json.loads(answer["usage"])["estimated"] is True


async def test_a_transient_failure_restarts_the_answer_visibly(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["처음", "부터"], "fault": "drop", "after": 2}, {"pieces": ["온전한 ", "답."]})
    job = await stack.ask("질문")
    events = await stack.events(job.job_id)
    check_order(events)
    assert text_of(events) == "온전한 답."
    restart = next(event for event in events if event["type"] == "restart")
    assert restart["reason"] == "provider_unavailable"
    assert (await stack.messages(job.job_id))[1]["content"] == "온전한 답."


async def test_retry_after_is_waited_for_and_costs_no_attempt(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"status": 429, "headers": {"Retry-After": "1"}, "times": 6}, {"pieces": ["네."]})
    job = await stack.ask("질문")
    events = await stack.events(job.job_id)
    assert events[-1]["type"] == "done"
    arrived = [request["arrived_at"] for request in stack.model.requests()]
    assert len(arrived) == 7
    assert all(later - earlier >= 1 for earlier, later in pairwise(arrived))


async def test_a_model_that_stalls_is_abandoned_and_asked_again(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_STALL_TIMEOUT="0.5", PROTOSTAR_FIRST_TOKEN_TIMEOUT="0.5")
    stack.model.script({"pieces": ["반"], "after": 1, "fault": "keep_alive"}, {"fault": "stall"}, {"pieces": ["네."]})
    job = await stack.ask("질문")
    events = await stack.events(job.job_id)
    check_order(events)
    assert text_of(events) == "네."
    assert [e["reason"] for e in events if e["type"] == "restart"] == ["stalled", "stalled"]


async def test_a_fallback_model_answers_before_the_first_token(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_FALLBACK_MODELS="second, third")
    stack.model.script(
        {"model": "test-model", "status": 503},
        {"model": "second", "status": 500},
        {"model": "third", "pieces": ["셋째입니다."]},
    )
    job = await stack.ask("질문")
    events = await stack.events(job.job_id)
    assert (text_of(events), events[-1]["attempt"]) == ("셋째입니다.", 1)
    assert (await job.result(timeout=10))["model"] == "third"


async def test_a_cancelled_answer_names_the_fallback_model_that_wrote_it(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_FALLBACK_MODELS="second")
    stack.model.script(
        {"model": "test-model", "status": 503},
        {"model": "second", "pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"},
    )
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "반쪽")
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    assert (await ending(stack, job.job_id))["type"] == "cancelled"
    [_, answer] = await stack.messages(job.job_id)
    [charge] = await stack.rows("SELECT model, outcome FROM charges WHERE job_id = $1", job.job_id)
    assert (answer["model"], charge) == ("second", {"model": "second", "outcome": "cancelled"})


async def test_a_job_that_takes_too_long_ends_with_what_it_had(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_JOB_TIMEOUT="2")
    stack.model.script({"pieces": ["반쪽"], "after": 1, "hold": "never"})
    job = await stack.ask("질문")
    told = await ending(stack, job.job_id)
    assert (told["type"], told["code"]) == ("error", "job_timeout")
    [_, answer] = await stack.messages(job.job_id)
    assert (answer["status"], answer["content"]) == ("failed", "반쪽")
    await stack.model.until_idle()


async def test_aborting_a_running_job_keeps_what_it_has_and_closes_upstream(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "반쪽")
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    await stack.model.until_idle()
    told = await ending(stack, job.job_id)
    [_, answer] = await stack.messages(job.job_id)
    assert (told["type"], told["message_id"]) == ("cancelled", answer["id"])
    assert (answer["status"], answer["content"]) == ("cancelled", "반쪽")
    assert stack.model.requests()[-1]["closed_early"] is True


async def test_a_queued_job_that_is_aborted_never_starts(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"hold": "first", "pieces": ["1."]})
    first = await stack.ask("첫째", user=user)
    await stack.model.until_waiting("first")
    second = await stack.ask("둘째", user=user)
    await stack.redis.zadd("arq:abort", {second.job_id: int(time.time() * 1000)})
    told = await ending(stack, second.job_id)
    assert (told["type"], told["message_id"]) == ("cancelled", None)
    stack.model.release("first")
    assert text_of(await stack.events(first.job_id)) == "1."
    assert await stack.messages(second.job_id) == []
    assert len(stack.model.requests()) == 1


async def test_a_worker_that_dies_five_times_over_one_job_gives_it_up_with_an_error(stack: Stack) -> None:
    job = None
    for _ in range(5):
        stack.model.script({"pieces": ["반"], "after": 1, "hold": "crash"})
        worker = await stack.start_worker(PROTOSTAR_LEASE="1", PROTOSTAR_REINDEX_MINUTES="0")
        job = job or await stack.ask("독약")
        await stack.model.until_waiting("crash")
        worker.send(signal.SIGKILL)
        stack.model.reset()
    await stack.start_worker(PROTOSTAR_LEASE="1", PROTOSTAR_REINDEX_MINUTES="0")
    assert job is not None
    told = await ending(stack, job.job_id)
    assert (told["type"], told["code"]) == ("error", "too_many_attempts")
    [_, answer] = await stack.messages(job.job_id)
    assert answer["status"] == "failed"
    [(_, fields)] = await stack.redis.xrange("protostar:dead")
    letter = json.loads(fields[b"data"])
    assert letter["job_id"] == job.job_id
    assert [entry["reason"] for entry in letter["history"]] == ["worker_lost"] * 5
    assert json.loads(letter["payload"])["k"]["content"] == "독약"


async def test_the_key_is_in_no_log(shared_stack: Stack) -> None:
    shared_stack.model.script({"status": 401, "error": {"message": "bad key sk-test-secret"}})
    job = await shared_stack.ask("비밀 질문입니다")
    await shared_stack.events(job.job_id)
    worker: Process = shared_stack.workers[0]
    log = worker.log.read_text()
    assert "sk-test-secret" not in log
    assert "비밀 질문" not in log


async def test_a_dead_job_is_put_back_and_answered_as_the_same_turn(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script(FOREVER | {"status": 401})
    job = await stack.ask("질문")
    assert (await ending(stack, job.job_id))["type"] == "error"
    await stack.result(job.job_id)
    stack.model.reset()
    stack.model.script({"pieces": ["이제 됩니다."]})
    assert await stack.protostar("retry", job.job_id) == 0
    events = await stack.events(job.job_id)
    check_order(events)
    assert (events[0]["type"], text_of(events)) == ("restart", "이제 됩니다.")
    [_, answer] = await stack.messages(job.job_id)
    assert (answer["status"], answer["content"]) == ("completed", "이제 됩니다.")
    assert await stack.protostar("retry", job.job_id) == 1


async def test_keys_of_a_wrong_type_stop_their_own_job_alone(shared_stack: Stack) -> None:
    stack, redis = shared_stack, shared_stack.redis
    await redis.lpush("arq:job:listed", "x")  # type: ignore[misc]
    await redis.zadd("arq:queue", {"listed": 1})
    assert (await ending(stack, "listed"))["code"] == "internal"
    await redis.set("chat:events:taken", "x")
    await redis.set("arq:retry:taken", "x")
    stack.model.script({"pieces": ["들리지 않는 답."]}, {"pieces": ["들리는 답."]})
    await stack.ask("질문", job_id="taken")
    assert (await stack.result("taken"))["r"]["error"]["code"] == "internal"
    assert text_of(await stack.events((await stack.ask("질문")).job_id)) == "들리는 답."


async def test_half_a_surrogate_pair_is_reported_like_any_other_fault(shared_stack: Stack) -> None:
    job_id = uuid4().hex
    payload = r'{"t":null,"f":"generate_chat","a":[],"k":{"user_uuid":"\ud800","session_id":"\ud800"},"et":1}'
    await shared_stack.redis.set(f"arq:job:{job_id}", payload)
    await shared_stack.redis.zadd("arq:queue", {job_id: 1})
    assert (await ending(shared_stack, job_id))["code"] == "invalid_request"
    assert (await shared_stack.result(job_id))["r"]["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("et", ["1e400", "-1", "1795357173204000000", str(2**70), "null", '"now"', "NaN"])
async def test_an_enqueue_time_that_is_not_a_time_is_ignored(shared_stack: Stack, et: str) -> None:
    stack, job_id = shared_stack, uuid4().hex
    stack.model.script({"pieces": ["네."]})
    arguments = json.dumps({"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"})
    payload = f'{{"t":null,"f":"generate_chat","a":[],"k":{arguments},"et":{et}}}'
    await stack.redis.set(f"arq:job:{job_id}", payload)
    await stack.redis.zadd("arq:queue", {job_id: 1})
    assert text_of(await stack.events(job_id)) == "네."


@pytest.mark.parametrize("score", [0, -5, "-inf", "+inf"])
async def test_a_score_that_is_not_a_time_means_now(shared_stack: Stack, score: Any) -> None:
    stack, job_id = shared_stack, uuid4().hex
    stack.model.script({"pieces": ["네."]})
    arguments = json.dumps({"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"})
    payload = f'{{"t":null,"f":"generate_chat","a":[],"k":{arguments},"et":1}}'
    await stack.redis.set(f"arq:job:{job_id}", payload)
    await stack.redis.zadd("arq:queue", {job_id: score})
    assert text_of(await stack.events(job_id)) == "네."

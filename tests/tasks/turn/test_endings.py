"""Whatever happens to a job, its reader hears one ending, and it is true."""

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
from tests.support.house import House, check_order, text_of, until

FOREVER: dict[str, Any] = {"times": None}


async def ending(house: House, job_id: str) -> dict[str, Any]:
    events = await house.events(job_id)
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
async def test_a_request_that_cannot_be_used_says_what_is_wrong_with_it(
    shared_house: House, arguments: dict[str, Any], code: str, named: str
) -> None:
    house = shared_house
    request = {"user_uuid": str(uuid4()), "session_id": "s", "content": "질문", **arguments}
    job = await house.redis.enqueue_job("generate_chat", **request)
    assert job is not None
    told = await ending(house, job.job_id)
    assert (told["type"], told["code"]) == ("error", code)
    assert named in told["message"]
    result = await house.result(job.job_id)
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
async def test_other_jobs_name_the_argument_that_is_wrong_too(
    shared_house: House, function: str, arguments: dict[str, Any], named: str
) -> None:
    job = await shared_house.redis.enqueue_job(function, **arguments)
    assert job is not None
    failure = (await shared_house.result(job.job_id))["r"]["error"]
    assert (failure["code"], failure["message"].startswith(named)) == ("invalid_request", True)


@pytest.mark.parametrize(
    "wrong", [{"session": True}, {"until": True}, {"until": "0"}, {"bogus": 1}, {"session": 0}], ids=str
)
def test_a_roll_up_names_the_argument_that_is_wrong(wrong: dict[str, Any]) -> None:
    # Its job keeps no result that a test could read.
    [name] = wrong
    with pytest.raises(InvalidRequest, match=f"^invalid_request: {name}: "):
        RollUpRequest.parse({"session": 1, "until": 0, **wrong})


@pytest.mark.parametrize("job_id", ["x" * 257, "a\x00b"], ids=["too long", "with a NUL"])
async def test_a_job_id_that_cannot_be_stored_is_refused(shared_house: House, job_id: str) -> None:
    await shared_house.ask("질문", job_id=job_id)
    told = await ending(shared_house, job_id)
    assert (told["code"], "job_id" in told["message"]) == ("invalid_request", True)


async def test_a_pickle_is_refused_and_runs_no_code(shared_house: House, tmp_path: Path) -> None:
    house, trap = shared_house, tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    payload = pickle.dumps({"f": "generate_chat", "a": (), "k": {"x": Trap()}, "t": None, "et": 1})
    await house.redis.set("arq:job:pickled", payload)
    await house.redis.zadd("arq:queue", {"pickled": 1})
    told = await ending(house, "pickled")
    assert (told["type"], told["code"]) == ("error", "invalid_request")
    assert "JSON" in told["message"]
    assert not trap.exists()


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"\xff\x00", b'{"f":1,"a":2,"k":3,"t":4,"et":5}'])
async def test_a_payload_of_any_bytes_ends_its_job_alone(shared_house: House, payload: bytes) -> None:
    house, job_id = shared_house, uuid4().hex
    await house.redis.set(f"arq:job:{job_id}", payload)
    await house.redis.zadd("arq:queue", {job_id: 1})
    assert (await ending(house, job_id))["code"] == "invalid_request"
    assert (await house.result(job_id))["s"] is False
    assert await house.redis.zscore("arq:queue", job_id) is None


async def test_a_job_that_expired_in_the_queue_says_so(shared_house: House) -> None:
    job_id = uuid4().hex
    await shared_house.redis.zadd("arq:queue", {job_id: 1})
    told = await ending(shared_house, job_id)
    assert (told["code"], "expired" in told["message"]) == ("internal", True)


async def test_an_unknown_function_says_which_there_are(shared_house: House) -> None:
    job = await shared_house.redis.enqueue_job("make_coffee")
    assert job is not None
    record = await shared_house.result(job.job_id)
    assert record["r"]["error"]["code"] == "invalid_request"
    assert "generate_chat" in record["r"]["error"]["message"]


async def test_an_id_that_is_not_utf8_harms_nobody(shared_house: House) -> None:
    await shared_house.redis.zadd("arq:queue", {b"\xff\xfe": 1})
    shared_house.model.script({"pieces": ["네."]})
    assert text_of(await shared_house.events((await shared_house.ask("살아 있나요?")).job_id)) == "네."

    async def gone() -> bool:
        return await shared_house.redis.zscore("arq:queue", b"\xff\xfe") is None

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
    shared_house: House, behaviour: dict[str, Any], code: str, requests: int
) -> None:
    house = shared_house
    house.model.script(FOREVER | behaviour)
    job = await house.ask("질문")
    told = await ending(house, job.job_id)
    assert (told["type"], told["code"]) == ("error", code)
    assert "sk-test-secret" not in json.dumps(told)
    assert len(house.model.requests()) == requests
    [question, answer] = await house.messages(job.job_id)
    assert (question["status"], answer["status"], answer["summary"]) == ("completed", "failed", None)
    assert json.loads(answer["usage"])["estimated"] is True


async def test_a_transient_failure_restarts_the_answer_visibly(shared_house: House) -> None:
    house = shared_house
    house.model.script({"pieces": ["처음", "부터"], "fault": "drop", "after": 2}, {"pieces": ["온전한 ", "답."]})
    job = await house.ask("질문")
    events = await house.events(job.job_id)
    check_order(events)
    assert text_of(events) == "온전한 답."
    restart = next(event for event in events if event["type"] == "restart")
    assert restart["reason"] == "provider_unavailable"
    assert (await house.messages(job.job_id))[1]["content"] == "온전한 답."


async def test_retry_after_is_waited_for_and_costs_no_attempt(shared_house: House) -> None:
    house = shared_house
    house.model.script({"status": 429, "headers": {"Retry-After": "1"}, "times": 6}, {"pieces": ["네."]})
    job = await house.ask("질문")
    events = await house.events(job.job_id)
    assert events[-1]["type"] == "done"
    arrived = [request["arrived_at"] for request in house.model.requests()]
    assert len(arrived) == 7
    assert all(later - earlier >= 1 for earlier, later in pairwise(arrived))


async def test_a_model_that_stalls_is_left_and_tried_again(house: House) -> None:
    await house.start_worker(PROTOSTAR_STALL_TIMEOUT="0.5", PROTOSTAR_FIRST_TOKEN_TIMEOUT="0.5")
    house.model.script({"pieces": ["반"], "after": 1, "fault": "keep_alive"}, {"fault": "stall"}, {"pieces": ["네."]})
    job = await house.ask("질문")
    events = await house.events(job.job_id)
    check_order(events)
    assert text_of(events) == "네."
    assert [e["reason"] for e in events if e["type"] == "restart"] == ["stalled", "stalled"]


async def test_a_fallback_model_answers_before_the_first_token(house: House) -> None:
    await house.start_worker(PROTOSTAR_FALLBACK_MODELS="second, third")
    house.model.script(
        {"model": "test-model", "status": 503},
        {"model": "second", "status": 500},
        {"model": "third", "pieces": ["셋째입니다."]},
    )
    job = await house.ask("질문")
    events = await house.events(job.job_id)
    assert (text_of(events), events[-1]["attempt"]) == ("셋째입니다.", 1)
    assert (await job.result(timeout=10))["model"] == "third"


async def test_what_a_fallback_model_has_said_when_it_is_cancelled_is_that_models(house: House) -> None:
    await house.start_worker(PROTOSTAR_FALLBACK_MODELS="second")
    house.model.script(
        {"model": "test-model", "status": 503},
        {"model": "second", "pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"},
    )
    job = await house.ask("질문")
    await house.until_said(job.job_id, "반쪽")
    await house.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    assert (await ending(house, job.job_id))["type"] == "cancelled"
    [_, answer] = await house.messages(job.job_id)
    [charge] = await house.rows("SELECT model, outcome FROM charges WHERE job_id = $1", job.job_id)
    assert (answer["model"], charge) == ("second", {"model": "second", "outcome": "cancelled"})


async def test_a_job_that_takes_too_long_ends_with_what_it_had(house: House) -> None:
    await house.start_worker(PROTOSTAR_JOB_TIMEOUT="2")
    house.model.script({"pieces": ["반쪽"], "after": 1, "hold": "never"})
    job = await house.ask("질문")
    told = await ending(house, job.job_id)
    assert (told["type"], told["code"]) == ("error", "job_timeout")
    [_, answer] = await house.messages(job.job_id)
    assert (answer["status"], answer["content"]) == ("failed", "반쪽")
    await house.model.until_idle()


async def test_aborting_a_running_job_keeps_what_it_has_and_closes_upstream(shared_house: House) -> None:
    house = shared_house
    house.model.script({"pieces": ["반쪽", "뒤"], "after": 1, "hold": "never"})
    job = await house.ask("질문")
    await house.until_said(job.job_id, "반쪽")
    await house.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    await house.model.until_idle()
    told = await ending(house, job.job_id)
    [_, answer] = await house.messages(job.job_id)
    assert (told["type"], told["message_id"]) == ("cancelled", answer["id"])
    assert (answer["status"], answer["content"]) == ("cancelled", "반쪽")
    assert house.model.requests()[-1]["closed_early"] is True


async def test_a_queued_job_that_is_aborted_never_starts(shared_house: House) -> None:
    house, user = shared_house, str(uuid4())
    house.model.script({"hold": "first", "pieces": ["1."]})
    first = await house.ask("첫째", user=user)
    await house.model.until_waiting("first")
    second = await house.ask("둘째", user=user)
    await house.redis.zadd("arq:abort", {second.job_id: int(time.time() * 1000)})
    told = await ending(house, second.job_id)
    assert (told["type"], told["message_id"]) == ("cancelled", None)
    house.model.release("first")
    assert text_of(await house.events(first.job_id)) == "1."
    assert await house.messages(second.job_id) == []
    assert len(house.model.requests()) == 1


async def test_a_worker_that_dies_five_times_over_one_job_gives_it_up_with_an_error(house: House) -> None:
    job = None
    for _ in range(5):
        house.model.script({"pieces": ["반"], "after": 1, "hold": "crash"})
        worker = await house.start_worker(PROTOSTAR_LEASE="1", PROTOSTAR_REINDEX_MINUTES="0")
        job = job or await house.ask("독약")
        await house.model.until_waiting("crash")
        worker.send(signal.SIGKILL)
        house.model.reset()
    await house.start_worker(PROTOSTAR_LEASE="1", PROTOSTAR_REINDEX_MINUTES="0")
    assert job is not None
    told = await ending(house, job.job_id)
    assert (told["type"], told["code"]) == ("error", "too_many_attempts")
    [_, answer] = await house.messages(job.job_id)
    assert answer["status"] == "failed"
    [(_, fields)] = await house.redis.xrange("protostar:dead")
    letter = json.loads(fields[b"data"])
    assert letter["job_id"] == job.job_id
    assert [entry["reason"] for entry in letter["history"]] == ["worker_lost"] * 5
    assert json.loads(letter["payload"])["k"]["content"] == "독약"


async def test_the_key_is_in_no_log(shared_house: House) -> None:
    shared_house.model.script({"status": 401, "error": {"message": "bad key sk-test-secret"}})
    job = await shared_house.ask("비밀 질문입니다")
    await shared_house.events(job.job_id)
    worker: Process = shared_house.workers[0]
    log = worker.log.read_text()
    assert "sk-test-secret" not in log
    assert "비밀 질문" not in log


async def test_a_dead_job_is_put_back_and_answered_as_the_same_turn(shared_house: House) -> None:
    house = shared_house
    house.model.script(FOREVER | {"status": 401})
    job = await house.ask("질문")
    assert (await ending(house, job.job_id))["type"] == "error"
    await house.result(job.job_id)
    house.model.reset()
    house.model.script({"pieces": ["이제 됩니다."]})
    assert await house.protostar("retry", job.job_id) == 0
    events = await house.events(job.job_id)
    check_order(events)
    assert (events[0]["type"], text_of(events)) == ("restart", "이제 됩니다.")
    [_, answer] = await house.messages(job.job_id)
    assert (answer["status"], answer["content"]) == ("completed", "이제 됩니다.")
    assert await house.protostar("retry", job.job_id) == 1


async def test_keys_of_a_wrong_type_stop_their_own_job_alone(shared_house: House) -> None:
    house, redis = shared_house, shared_house.redis
    await redis.lpush("arq:job:listed", "x")  # type: ignore[misc]
    await redis.zadd("arq:queue", {"listed": 1})
    assert (await ending(house, "listed"))["code"] == "internal"
    await redis.set("chat:events:taken", "x")
    await redis.set("arq:retry:taken", "x")
    house.model.script({"pieces": ["들리지 않는 답."]}, {"pieces": ["들리는 답."]})
    await house.ask("질문", job_id="taken")
    assert (await house.result("taken"))["r"]["error"]["code"] == "internal"
    assert text_of(await house.events((await house.ask("질문")).job_id)) == "들리는 답."


async def test_half_a_surrogate_pair_is_told_like_any_other_mistake(shared_house: House) -> None:
    job_id = uuid4().hex
    payload = r'{"t":null,"f":"generate_chat","a":[],"k":{"user_uuid":"\ud800","session_id":"\ud800"},"et":1}'
    await shared_house.redis.set(f"arq:job:{job_id}", payload)
    await shared_house.redis.zadd("arq:queue", {job_id: 1})
    assert (await ending(shared_house, job_id))["code"] == "invalid_request"
    assert (await shared_house.result(job_id))["r"]["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("et", ["1e400", "-1", "1795357173204000000", str(2**70), "null", '"now"', "NaN"])
async def test_a_time_that_is_none_is_not_minded(shared_house: House, et: str) -> None:
    house, job_id = shared_house, uuid4().hex
    house.model.script({"pieces": ["네."]})
    arguments = json.dumps({"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"})
    payload = f'{{"t":null,"f":"generate_chat","a":[],"k":{arguments},"et":{et}}}'
    await house.redis.set(f"arq:job:{job_id}", payload)
    await house.redis.zadd("arq:queue", {job_id: 1})
    assert text_of(await house.events(job_id)) == "네."


@pytest.mark.parametrize("score", [0, -5, "-inf", "+inf"])
async def test_a_score_that_is_no_time_is_now(shared_house: House, score: Any) -> None:
    house, job_id = shared_house, uuid4().hex
    house.model.script({"pieces": ["네."]})
    arguments = json.dumps({"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"})
    payload = f'{{"t":null,"f":"generate_chat","a":[],"k":{arguments},"et":1}}'
    await house.redis.set(f"arq:job:{job_id}", payload)
    await house.redis.zadd("arq:queue", {job_id: score})
    assert text_of(await house.events(job_id)) == "네."

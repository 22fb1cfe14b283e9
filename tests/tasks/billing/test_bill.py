"""The bill: every attempt is billed once, and no user spends more than the caps."""

from __future__ import annotations

import json
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.support.stack_under_test import Stack, text_of, until

LONG_ANSWER = (
    "작업은 잃지 않습니다. 워커가 죽으면 15초 안에 다른 워커가 이어받습니다. "
    "이어받은 워커는 처음부터 다시 답합니다. 독자는 restart 이벤트를 봅니다. 그 뒤의 답이 참입니다."
)
USAGE = {"prompt_tokens": 321, "completion_tokens": 54, "total_tokens": 375, "cost": 0.0021}
NO_REINDEX = {"PROTOSTAR_REINDEX_MINUTES": "0"}


async def charges(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    return await stack.rows("SELECT * FROM charges WHERE job_id = $1 ORDER BY attempt", job_id)


async def ended(stack: Stack, content: str = "질문", **how: Any) -> str:
    """The id of a job that was asked and has ended."""
    job = await stack.ask(content, **how)
    await stack.events(job.job_id)
    return job.job_id


def tokens(charge: dict[str, Any]) -> tuple[int, int, bool]:
    return charge["input_tokens"], charge["output_tokens"], charge["estimated"]


async def test_an_answer_and_its_summary_cost_what_the_provider_reports(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"pieces": [LONG_ANSWER], "usage": USAGE}, {"pieces": ["요약."], "usage": USAGE | {"cost": 0.5}})
    job_id = await ended(stack, user=user)
    [charge] = await charges(stack, job_id)
    assert tokens(charge) == (321, 54, False)
    assert (str(charge["cost"]), charge["outcome"], charge["attempt"]) == ("0.0021000000", "done", 1)
    assert (str(charge["user_uuid"]), charge["provider"], charge["model"]) == (user, "openai", "test-model")
    summary_job = f"summary:{(await stack.messages(job_id))[1]['id']}"
    await stack.result(summary_job)
    [charge] = await charges(stack, summary_job)
    assert tokens(charge) == (321, 54, False)
    assert (str(charge["cost"]), charge["outcome"], str(charge["user_uuid"])) == ("0.5000000000", "done", user)


async def test_a_short_answers_summary_costs_nothing_and_has_no_row(shared_stack: Stack) -> None:
    shared_stack.model.script({"pieces": ["네."]})
    job_id = await ended(shared_stack)
    summary_job = f"summary:{(await shared_stack.messages(job_id))[1]['id']}"
    await shared_stack.result(summary_job)
    assert await charges(shared_stack, summary_job) == []


async def test_a_charge_is_open_with_an_estimate_while_the_model_is_asked(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"hold": "asked", "pieces": ["네."], "usage": USAGE})
    job = await stack.ask("질문")
    await stack.model.until_waiting("asked")
    [charge] = await charges(stack, job.job_id)
    assert (charge["outcome"], charge["estimated"], charge["output_tokens"]) == (None, True, 0)
    assert charge["input_tokens"] > 100
    stack.model.release("asked")
    await stack.events(job.job_id)
    [charge] = await charges(stack, job.job_id)
    assert (charge["outcome"], *tokens(charge)) == ("done", 321, 54, False)


async def test_a_provider_that_gives_no_usage_is_estimated(shared_stack: Stack) -> None:
    shared_stack.model.script({"pieces": ["하나 ", "둘 ", "셋."], "usage": "absent"})
    [charge] = await charges(shared_stack, await ended(shared_stack))
    assert (charge["outcome"], charge["estimated"], charge["cost"]) == ("done", True, None)
    assert charge["input_tokens"] > 100
    assert charge["output_tokens"] >= 3


@pytest.mark.parametrize(
    ("behaviour", "outcome", "is_used"),
    [
        ({"status": 500}, "provider_unavailable", False),
        ({"status": 429}, "rate_limited", False),
        ({"fault": "refuse"}, "provider_unavailable", False),
        ({"pieces": ["반쪽"], "after": 1, "fault": "drop"}, "provider_unavailable", True),
        ({"pieces": ["반쪽"], "fault": "end", "after": 1}, "provider_unavailable", True),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
async def test_every_attempt_that_was_retried_is_on_the_bill(
    shared_stack: Stack, behaviour: dict[str, Any], outcome: str, is_used: bool
) -> None:
    shared_stack.model.script(behaviour, {"pieces": ["네."], "usage": USAGE})
    first, second = await charges(shared_stack, await ended(shared_stack))
    assert (first["attempt"], first["outcome"], first["estimated"]) == (1, outcome, is_used)
    assert (first["input_tokens"] > 100, first["output_tokens"] > 0) == (is_used, is_used)
    assert (second["attempt"], second["outcome"], *tokens(second)) == (2, "done", 321, 54, False)


@pytest.mark.parametrize(
    ("behaviour", "code", "is_used"),
    [
        ({"status": 401}, "provider_error", False),
        ({"status": 400, "error": {"code": "context_length_exceeded"}}, "context_length", False),
        ({"status": 400, "error": {"code": "content_filter"}}, "content_filtered", False),
        ({"pieces": ["반쪽"], "finish_reason": "content_filter"}, "content_filtered", True),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
async def test_an_attempt_that_failed_for_good_is_billed_only_if_text_came(
    shared_stack: Stack, behaviour: dict[str, Any], code: str, is_used: bool
) -> None:
    shared_stack.model.script({**behaviour, "times": None})
    rows = await charges(shared_stack, await ended(shared_stack))
    assert rows[-1]["outcome"] == code
    assert (rows[-1]["estimated"], rows[-1]["input_tokens"] > 0) == (is_used, is_used)


async def test_a_cancelled_answer_is_billed_by_its_text(shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": ["하나 둘 셋", "뒤"], "after": 1, "hold": "never"})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "셋")
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    assert (await stack.events(job.job_id))[-1]["type"] == "cancelled"
    [charge] = await charges(stack, job.job_id)
    assert (charge["outcome"], charge["estimated"], charge["output_tokens"] >= 3) == ("cancelled", True, True)


async def test_stalled_and_timed_out_attempts_are_estimated(stack: Stack) -> None:
    limits = {"PROTOSTAR_STALL_TIMEOUT": "0.5", "PROTOSTAR_FIRST_TOKEN_TIMEOUT": "0.5", "PROTOSTAR_JOB_TIMEOUT": "2"}
    await stack.start_worker(**limits, **NO_REINDEX)
    stack.model.script(
        {"fault": "stall"},
        {"pieces": ["반쪽"], "after": 1, "fault": "stall"},
        {"pieces": list("가나다라마바사아자차카타파하" * 10), "delay_s": 0.1},
    )
    rows = await charges(stack, await ended(stack))
    assert [row["outcome"] for row in rows] == ["stalled", "stalled", "job_timeout"]
    assert all(row["estimated"] and row["input_tokens"] > 50 for row in rows)
    assert rows[0]["output_tokens"] == 0
    assert rows[2]["output_tokens"] > rows[1]["output_tokens"] > 0


async def test_the_row_names_the_model_that_answered(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_FALLBACK_MODELS="second", **NO_REINDEX)
    stack.model.script({"model": "test-model", "status": 503}, {"model": "second", "pieces": ["둘째입니다."]})
    [charge] = await charges(stack, await ended(stack))
    assert (charge["model"], charge["outcome"], charge["attempt"]) == ("second", "done", 1)


async def test_a_kill_in_the_middle_costs_the_published_text(stack: Stack) -> None:
    worker = await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    stack.model.script({"pieces": ["하나 둘 셋 넷", "뒤"], "after": 1, "hold": "crash"}, {"pieces": ["네."]})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "넷")
    worker.send(signal.SIGKILL)
    await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    assert text_of(await stack.events(job.job_id)) == "네."
    first, second = await charges(stack, job.job_id)
    assert (first["outcome"], first["estimated"], first["output_tokens"] >= 4) == ("lost", True, True)
    assert first["input_tokens"] > 50
    assert (second["outcome"], second["attempt"]) == ("done", 2)


async def test_a_job_whose_worker_died_and_that_is_cancelled_then_leaves_no_open_charge(stack: Stack) -> None:
    worker = await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    stack.model.script({"pieces": ["하나 둘", "뒤"], "after": 1, "hold": "crash"})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "둘")
    worker.send(signal.SIGKILL)
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    assert (await stack.events(job.job_id))[-1]["type"] == "cancelled"
    [charge] = await charges(stack, job.job_id)
    assert (charge["outcome"], charge["output_tokens"] > 0) == ("lost", True)


async def test_a_zombie_completes_its_own_row_and_no_other(stack: Stack) -> None:
    zombie = await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    stack.model.script(
        {"pieces": ["하나 둘", "뒤"], "after": 1, "hold": "frozen", "usage": USAGE},
        {"pieces": ["네."], "usage": USAGE | {"completion_tokens": 3}},
    )
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "둘")
    zombie.send(signal.SIGSTOP)
    await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    assert text_of(await stack.events(job.job_id)) == "네."
    before = await charges(stack, job.job_id)
    assert [charge["outcome"] for charge in before] == ["lost", "done"]
    stack.model.release("frozen")
    zombie.send(signal.SIGCONT)

    async def awake() -> bool:
        return f"attempt_ended job_id={job.job_id}" in zombie.log.read_text()

    await until(awake, "the zombie lets go", stack.logs)
    after = await charges(stack, job.job_id)
    assert after[1] == before[1]
    assert (after[0]["outcome"], after[0]["output_tokens"] >= before[0]["output_tokens"]) == ("lost", True)


@pytest.mark.parametrize(
    ("tokens_used", "cost"), [(321, 1e300), (321, -1), (321, "many"), (321, 12_345_678.5), (10**12, 0.5), (1e300, 0.5)]
)
async def test_any_number_of_a_provider_leaves_the_answer_intact(
    shared_stack: Stack, tokens_used: float, cost: Any
) -> None:
    usage = {"prompt_tokens": tokens_used, "completion_tokens": 7, "total_tokens": tokens_used, "cost": cost}
    shared_stack.model.script({"pieces": ["네."], "usage": usage})
    [charge] = await charges(shared_stack, await ended(shared_stack))
    is_credible = tokens_used == 321
    assert (charge["outcome"], charge["estimated"]) == ("done", not is_credible)
    assert charge["input_tokens"] == 321 if is_credible else 0 < charge["input_tokens"] < 8192
    assert charge["cost"] is None or charge["cost"] == cost


async def test_a_finish_reason_of_any_length_leaves_the_answer_intact(shared_stack: Stack) -> None:
    reason = "because\x00" + "x" * 80
    shared_stack.model.script({"pieces": ["네."], "finish_reason": reason})
    job_id = await ended(shared_stack)
    [_, answer] = await shared_stack.messages(job_id)
    assert (answer["status"], answer["content"]) == ("completed", "네.")
    assert answer["finish_reason"].startswith("because")
    assert len(answer["finish_reason"]) <= 64


async def test_postgresql_that_is_away_when_a_charge_is_written_costs_no_answer(stack: Stack) -> None:
    await stack.rows(
        "CREATE FUNCTION fail_twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('failures') <= 2 THEN RAISE EXCEPTION 'away' USING ERRCODE = 'admin_shutdown'; END IF;"
        " RETURN NEW; END $$"
    )
    await stack.rows("CREATE SEQUENCE failures")
    await stack.rows("CREATE TRIGGER away BEFORE INSERT ON charges FOR EACH ROW EXECUTE FUNCTION fail_twice()")
    await stack.start_worker(**NO_REINDEX)
    stack.model.script({"pieces": ["네."], "usage": USAGE})
    job_id = await ended(stack)
    [*_, charge] = await charges(stack, job_id)
    assert (charge["outcome"], len(stack.model.requests())) == ("done", 1)


# Caps


async def refusal(stack: Stack, **how: Any) -> dict[str, Any]:
    """The ending of a turn that is refused: it ends once, is not retried and leaves no dead letter."""
    asked = len(stack.model.requests())
    job = await stack.ask("하나 더", **how)
    events = await stack.events(job.job_id)
    assert (events[-1]["type"], events[-1].get("code"), events[-1]["attempt"]) == ("error", "rate_limited", 1)
    result = await stack.result(job.job_id)
    assert result["r"]["error"]["code"] == "rate_limited"
    assert len(stack.model.requests()) == asked
    assert await stack.redis.xlen("protostar:dead") == 0
    assert await charges(stack, job.job_id) == []
    return events[-1]


def next_midnight() -> str:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
    return f"{tomorrow.isoformat()}T00:00:00Z"


@pytest.mark.parametrize(
    ("variable", "cap", "used"),
    [("PROTOSTAR_USER_DAILY_TOKENS", "375", "375 of 375"), ("PROTOSTAR_USER_DAILY_COST", "0.002", "0.0021 of 0.002")],
)
async def test_a_daily_cap_refuses_until_midnight(stack: Stack, variable: str, cap: str, used: str) -> None:
    await stack.start_worker(**{variable: cap}, **NO_REINDEX)
    stack.model.script({"pieces": ["네."], "usage": USAGE})
    user = str(uuid4())
    await ended(stack, user=user)
    before = next_midnight()
    message = (await refusal(stack, user=user))["message"]
    assert used in message
    assert "new job id" in message
    assert before in message or next_midnight() in message
    stack.model.script({"pieces": ["남의 답."]})
    assert text_of(await stack.events(await ended(stack))) == "남의 답."  # another user's day is another user's
    await stack.rows("UPDATE charges SET created_at = created_at - interval '1 day'")
    stack.model.script({"pieces": ["새 날입니다."]})
    assert text_of(await stack.events(await ended(stack, user=user))) == "새 날입니다."


async def test_answers_at_once_are_counted_over_all_sessions_and_let_go(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_USER_ANSWERS_AT_ONCE="2", **NO_REINDEX)
    user = str(uuid4())
    stack.model.script({"contains": "느린", "hold": "slow", "pieces": ["느린 답."], "times": 2})
    slow = [await stack.ask("느린 질문", user=user, session=session) for session in ("a", "b")]
    await stack.model.until_waiting("slow", 2)
    message = (await refusal(stack, user=user, session="c"))["message"]
    assert re.search(r"2 of 2 .*when one of them ends, with a new job id", message)
    stack.model.release("slow")
    for job in slow:
        assert text_of(await stack.events(job.job_id)) == "느린 답."
    assert (await stack.events(await ended(stack, user=user, session="c")))[-1]["type"] == "done"


async def test_two_answers_cannot_both_take_the_last_place(stack: Stack) -> None:
    for _ in range(2):
        await stack.start_worker(PROTOSTAR_USER_ANSWERS_AT_ONCE="1", **NO_REINDEX)
    for number in range(10):
        user = str(uuid4())
        stack.model.script({"contains": f"질문 {number}.", "hold": f"both-{number}", "pieces": ["네."], "times": 8})
        jobs = [await stack.ask(f"질문 {number}.", user=user, session=str(session)) for session in range(8)]

        async def all_but_one_refused(jobs: list[Any] = jobs) -> bool:
            ended = [await stack.redis.exists(f"arq:result:{job.job_id}") for job in jobs]
            return sum(map(bool, ended)) >= 7

        await until(all_but_one_refused, "all but one are refused", stack.logs)
        await stack.model.until_waiting(f"both-{number}")
        stack.model.release(f"both-{number}")
        endings = [(await stack.events(job.job_id))[-1]["type"] for job in jobs]
        assert sorted(endings) == ["done"] + ["error"] * 7


async def test_an_answer_that_was_let_in_is_finished_whatever_its_retries_cost(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_USER_DAILY_TOKENS="50", PROTOSTAR_USER_ANSWERS_AT_ONCE="1", **NO_REINDEX)
    stack.model.script({"pieces": ["반쪽"], "after": 1, "fault": "drop"}, {"pieces": ["온전한 답."]})
    assert text_of(await stack.events(await ended(stack))) == "온전한 답."


async def test_a_dead_workers_row_does_not_block_once_its_job_is_taken_over(stack: Stack) -> None:
    caps = {"PROTOSTAR_USER_ANSWERS_AT_ONCE": "1", "PROTOSTAR_LEASE": "1"}
    worker = await stack.start_worker(**caps, **NO_REINDEX)
    user = str(uuid4())
    stack.model.script({"pieces": ["반", "뒤"], "after": 1, "hold": "crash"}, {"pieces": ["이어받은 답."]})
    job = await stack.ask("질문", user=user)
    await stack.until_said(job.job_id, "반")
    worker.send(signal.SIGKILL)
    await stack.start_worker(**caps, **NO_REINDEX)
    assert text_of(await stack.events(job.job_id)) == "이어받은 답."
    stack.model.script({"pieces": ["다음 답."]})
    assert text_of(await stack.events(await ended(stack, user=user, session="other"))) == "다음 답."


async def test_an_open_row_without_a_worker_blocks_no_longer_than_a_job_may_take(stack: Stack) -> None:
    await stack.start_worker(PROTOSTAR_USER_ANSWERS_AT_ONCE="1", PROTOSTAR_JOB_TIMEOUT="60", **NO_REINDEX)
    user = str(uuid4())
    stack.model.script({"pieces": ["하나."]}, {"pieces": ["둘."]})
    job_id = await ended(stack, user=user)
    await stack.rows("UPDATE charges SET outcome = NULL WHERE job_id = $1", job_id)
    await refusal(stack, user=user)
    await stack.rows("UPDATE charges SET created_at = now() - interval '71 s' WHERE job_id = $1", job_id)
    assert text_of(await stack.events(await ended(stack, user=user))) == "둘."


# protostar usage


async def usage_lines(stack: Stack, *options: str) -> list[str]:
    return (await stack.output("usage", *options)).splitlines()


async def test_usage_sums_by_user_and_day(shared_stack: Stack) -> None:
    stack, user = shared_stack, str(uuid4())
    stack.model.script({"status": 500}, {"pieces": ["네."], "usage": USAGE}, {"pieces": ["네."], "usage": "absent"})
    first = await ended(stack, user=user)
    second = await ended(stack, user=user)
    [estimate] = await charges(stack, second)
    await stack.rows("UPDATE charges SET created_at = created_at - interval '1 day' WHERE job_id = $1", first)
    today, yesterday = [json.loads(line) for line in await usage_lines(stack, "--user", user, "--json")]
    assert (today["user_uuid"], today["attempts"], today["estimated_attempts"]) == (user, 1, 1)
    assert (today["input_tokens"], today["cost"]) == (estimate["input_tokens"], None)
    assert (yesterday["attempts"], yesterday["estimated_attempts"]) == (2, 0)
    assert (yesterday["input_tokens"], yesterday["output_tokens"], yesterday["cost"]) == (321, 54, 0.0021)
    assert yesterday["day"] < today["day"]
    assert len(await usage_lines(stack, "--user", user, "--json", "--days", "1")) == 1
    heads, *rows = await usage_lines(stack, "--user", user)
    assert heads.split()[:3] == ["day", "(UTC)", "user"]
    assert rows[1].split() == [yesterday["day"], user, "2", "321", "54", "0.002100"]
    assert any(user in line for line in await usage_lines(stack, "--days", "2"))
    assert await usage_lines(stack, "--user", str(uuid4())) == []

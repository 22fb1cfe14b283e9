"""A session of a thousand turns: what a prompt holds of it, what it costs to read, and how it is rolled up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.database import connect
from protostar.settings import SHIPPED_PROMPTS_DIR
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import TOKENS_PER_MESSAGE, TOKENS_PER_REPLY, PromptTooLongError, Turn
from rag.prompt.modes import load_prompts
from rag.prompt.roll_up import NOTE_TOKENS, Shares, build_roll_up, newest_that_stay
from stack.model_server import voice
from tasks.turn.history import (
    NEWEST,
    OLDEST,
    TAIL_MESSAGES,
    StoredTurn,
    newest_messages,
    oldest_messages,
    stored_turns,
)
from tests.support.stack_under_test import Stack, until

SUMMARY_MODEL: Final = "summary-model"
WINDOW, MAX_OUTPUT = 8192, 1024
FACT: Final = "사용자의 자전거 번개는 하늘색이다."
OTHER: Final = "사용자는 날씨를 물었다."

texts = st.text(st.sampled_from("가다요. \n!?…'<>/-1a,"), max_size=300)
turns_of_any_kind = st.lists(st.builds(Turn, texts, texts, st.none() | texts), min_size=1, max_size=12)


@settings(deadline=None)
@given(turns_of_any_kind, st.none() | texts, st.integers(500, 4_000))
def test_a_roll_ups_prompt_fits_whatever_the_texts(turns: list[Turn], summary: str | None, window: int) -> None:
    try:
        prompt = build_roll_up("rules", summary, turns, context_window=window, max_output_tokens=50, count=len)
    except PromptTooLongError:
        assert window < 2_000
        return
    messages = prompt.messages("n" * NOTE_TOKENS)
    sent = sum(len(message["content"]) + TOKENS_PER_MESSAGE for message in messages)
    assert sent + TOKENS_PER_REPLY <= window - 50
    assert 1 <= prompt.turns <= len(turns)


def test_a_roll_up_takes_the_oldest_turns_and_cuts_what_alone_is_too_long_at_a_sentence_end() -> None:
    turns = [Turn("첫 질문 7", "문장이다. " * 5_000), Turn("둘째", "답 8", "요약 9"), Turn("셋째", "긴 답 " * 5_000)]
    prompt = build_roll_up("rules", "앞선 요약 6", turns, context_window=2_200, max_output_tokens=100, count=len)
    assert prompt.turns == 2
    [_, user] = prompt.messages()
    assert user["content"].index("앞선 요약 6") < user["content"].index("첫 질문") < user["content"].index("요약 9")
    assert "문장이다.\n</answer-" in user["content"]
    assert "답 8" not in user["content"]
    assert all(number in prompt.source for number in "679")


def test_shares_leave_room_for_turns_between_two_roll_ups() -> None:
    shares = Shares.of_window(WINDOW, max_output_tokens=MAX_OUTPUT, persona_tokens=500)
    assert 0 < shares.summary <= shares.history / 3
    tail = shares.history - shares.summary
    assert tail - shares.kept(tail) >= shares.history / 3
    assert shares.kept(100_000) == tail
    assert not Shares.of_window(1024, max_output_tokens=512, persona_tokens=400).can_hold_summary


def test_the_newest_turn_stays_out_of_a_roll_up_however_long() -> None:
    turns = [Turn("a", "b", "c"), Turn("q", "long " * 1_000)]
    assert newest_that_stay(Shares(150), turns, len) == 1
    assert newest_that_stay(Shares(100_000), [*turns, *turns], len) == 2


def test_the_rules_of_a_sessions_summary_are_the_folders_own_or_the_shipped_ones_and_no_mode(tmp_path: Path) -> None:
    for name in ("general", "page_context", "summary"):
        (tmp_path / f"{name}.md").write_text(f"rules of {name}\n", "utf-8")
    shipped = (SHIPPED_PROMPTS_DIR / "session_summary.md").read_text("utf-8").strip()
    assert load_prompts(tmp_path).session_summary == shipped == load_prompts(SHIPPED_PROMPTS_DIR).session_summary
    (tmp_path / "session_summary.md").write_text("my rules", "utf-8")
    prompts = load_prompts(tmp_path)
    assert prompts.session_summary == "my rules"
    assert prompts.modes == ("general", "page_context")


def test_the_demos_model_rolls_a_session_up_by_quoting_it() -> None:
    turns = [Turn("이름은?", "번개라고 합니다.", "자전거는 번개입니다."), Turn("색은?", "하늘색입니다.")]
    prompt = build_roll_up(
        "rules", "사용자는 서울에 삽니다.", turns, context_window=8_192, max_output_tokens=500, count=len
    )
    assert voice.answer(prompt.messages()) == "사용자는 서울에 삽니다. 자전거는 번개입니다. 하늘색입니다."


# --- in the database


async def fill(database_url: str, *, turns: int, sessions: int = 1) -> list[int]:
    """Sessions of so many turns, each summed up in a sentence; the third turn of each tells the fact."""
    connection = await asyncpg.connect(database_url)
    try:
        ids: list[int] = []
        for _ in range(sessions):
            row = await connection.fetchrow(
                "INSERT INTO sessions (user_uuid, session_id, created_at, updated_at) "
                "VALUES ($1, 's', now(), now()) RETURNING id",
                uuid4(),
            )
            ids.append(row["id"])
            await connection.execute(_TURNS, row["id"], turns, FACT)
        await connection.execute("ANALYZE messages")
        return ids
    finally:
        await connection.close()


_TURNS: Final = """
INSERT INTO messages (session_id, job_id, role, content, summary, status, attempt, created_at, updated_at)
SELECT $1::bigint, $1::bigint || '-' || n, role,
  CASE role WHEN 'user' THEN '질문 ' || n || '번: 오늘은 무엇을 할까?' ELSE repeat('길게 답한다. ', 40) END,
  CASE WHEN role = 'user' THEN NULL WHEN n = 3 THEN $3::text ELSE n || '번째 날에는 산책을 하라고 답했다.' END,
  'completed', 1, now(), now()
FROM generate_series(1, $2::int) AS n CROSS JOIN (VALUES ('user', 1), ('assistant', 2)) AS roles (role, place)
ORDER BY n, place
"""


async def plan_of(database_url: str, query: str, *arguments: int) -> list[dict[str, Any]]:
    """The nodes of a query's plan, as it ran."""
    connection = await asyncpg.connect(database_url)
    try:
        explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)
    finally:
        await connection.close()
    nodes = [json.loads(explained)[0]["Plan"]]
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    return nodes


@pytest.mark.parametrize("rolled_up", [0, 400, 990])
@pytest.mark.parametrize("query", [NEWEST, OLDEST])
async def test_the_tail_is_one_read_of_an_index_however_long_the_session(
    database_url: str, query: str, rolled_up: int
) -> None:
    await fill(database_url, turns=50, sessions=50)
    [session] = await fill(database_url, turns=1_000)
    await fill(database_url, turns=50, sessions=50)
    first = 50 * 50 * 2 + 1
    after, before = first + 2 * rolled_up - 1, first + 2_000
    nodes = await plan_of(database_url, query, session, after, before, TAIL_MESSAGES)
    assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"]
    assert nodes[1]["Index Name"].startswith("idx_messages_session")
    assert nodes[1]["Actual Rows"] == min(TAIL_MESSAGES, 2 * (1_000 - rolled_up))
    assert "Filter" not in nodes[1]


async def test_the_tail_holds_the_newest_turns_of_its_session_alone(database_url: str) -> None:
    await fill(database_url, turns=50, sessions=2)
    [session] = await fill(database_url, turns=1_000)
    await fill(database_url, turns=50)
    async with connect(database_url) as database:
        newest = stored_turns(await newest_messages(database, session, after=None))
        oldest = stored_turns(await oldest_messages(database, session, after=None, before=newest[0].question_id))
        rest = stored_turns(
            await newest_messages(database, session, after=newest[-4].answer_id, before=newest[-1].question_id)
        )
    assert [numbers(each) for each in (newest, oldest, rest)] == [(901, 1_000), (1, 100), (998, 999)]


def numbers(turns: list[StoredTurn]) -> tuple[int, int]:
    """The first and the last of the turns that `fill` has numbered; the test fails if one between is missing."""
    found = [int(re.findall(r"\d+", stored.turn.question)[0]) for stored in turns]
    assert found == list(range(found[0], found[-1] + 1))
    return found[0], found[-1]


# --- on a worker

LOGGED: Final = """
CREATE TABLE moves (summary_until bigint, summary text);
CREATE FUNCTION log_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO moves VALUES (NEW.summary_until, NEW.summary); RETURN NEW; END $$;
CREATE TRIGGER moved AFTER UPDATE OF summary_until ON sessions FOR EACH ROW EXECUTE FUNCTION log_move();
"""
NO_REINDEX: Final = {"PROTOSTAR_REINDEX_MINUTES": "0", "PROTOSTAR_SUMMARY_MODEL": SUMMARY_MODEL}


async def logged_session(stack: Stack, *, turns: int) -> tuple[int, str]:
    """A session whose roll-ups are written down in `moves`; its number and its user."""
    connection = await asyncpg.connect(stack.database_url)
    await connection.execute(LOGGED)
    await connection.close()
    [session] = await fill(stack.database_url, turns=turns)
    [row] = await stack.rows("SELECT user_uuid FROM sessions WHERE id = $1", session)
    return session, str(row["user_uuid"])


def script_roll_ups(stack: Stack, **more: Any) -> None:
    """A model that keeps the fact where it is told it, and only there."""
    stack.model.script(
        {"model": "test-model", "pieces": ["네."], "times": None},
        {"model": SUMMARY_MODEL, "contains": "번개", "pieces": [FACT, " 4747번 물었다."], "times": None, **more},
        {"model": SUMMARY_MODEL, "pieces": [OTHER], "times": None},
    )


async def turn(stack: Stack, user: str, content: str = "그리고?", **more: str) -> None:
    """One more turn, with its summary."""
    job = await stack.ask(content, user=user, **more)
    await stack.events(job.job_id)
    [_, answer] = await stack.messages(job.job_id)
    await stack.result(f"summary:{answer['id']}")


async def moves(stack: Stack) -> list[dict[str, Any]]:
    return await stack.rows("SELECT * FROM moves")


async def until_at_rest(stack: Stack) -> None:
    """Wait until no job is left that would roll up."""

    async def at_rest() -> bool:
        left = await stack.rows("SELECT 1 FROM outbox_jobs")
        return not left and not [key async for key in stack.redis.scan_iter("arq:job:rollup:*")]

    await until(at_rest, "nothing is left to roll up", stack.logs)


def asked(stack: Stack, model: str) -> list[str]:
    """The prompts a model was asked with."""
    requests = stack.model.requests(1_000)
    return ["\n".join(m["content"] for m in r["body"]["messages"]) for r in requests if r["body"]["model"] == model]


async def test_a_session_of_a_thousand_turns_keeps_its_budget_and_its_facts(stack: Stack) -> None:
    _, user = await logged_session(stack, turns=990)
    await stack.start_worker(**NO_REINDEX)
    script_roll_ups(stack)
    for number in range(991, 1_001):
        await turn(stack, user, f"질문 {number}번: 그리고?")
        await until_at_rest(stack)
    made = await moves(stack)
    tokens = TokenCounter("test-model").count

    steps = [move["summary_until"] for move in made]
    assert steps == sorted(set(steps))
    assert all("번개" in move["summary"] for move in made)
    for prompt in asked(stack, SUMMARY_MODEL):
        assert tokens(prompt) < WINDOW
    rolled_up = 1_000 - len(await stack.rows("SELECT 1 FROM messages WHERE id > $1 AND role = 'user'", steps[-1]))
    assert rolled_up > 970

    [last] = asked(stack, "test-model")[-1:]
    assert tokens(last) + MAX_OUTPUT < WINDOW
    assert FACT in last
    assert "질문 1000번" in last
    assert "질문 999번" in last
    assert "질문 995번" in last
    assert "질문 4번" not in last


async def test_a_roll_up_comes_once_in_a_while(stack: Stack) -> None:
    _, user = await logged_session(stack, turns=1)
    await stack.start_worker(**NO_REINDEX)
    script_roll_ups(stack)
    for number in range(60):
        await turn(stack, user, f"질문 {number}번: " + "그리고 " * 80)
    await until_at_rest(stack)
    assert 1 <= len(await moves(stack)) <= 10


async def test_in_a_small_window_a_roll_up_waits_until_prompts_are_full(stack: Stack) -> None:
    window, max_output = 1_500, 200
    await logged_session(stack, turns=1)
    sizes = {"PROTOSTAR_CONTEXT_WINDOW": str(window), "PROTOSTAR_MAX_OUTPUT_TOKENS": str(max_output)}
    await stack.start_worker(**NO_REINDEX, **sizes)
    script_roll_ups(stack)
    user = str(uuid4())
    for number in range(40):
        await turn(stack, user, f"{number}번째 질문: 임대 {number * 7}초는 무엇인가요?")
        await until_at_rest(stack)
    assert 1 <= len(await moves(stack)) <= 5
    fullest = max(map(TokenCounter("test-model").count, asked(stack, "test-model")))
    assert fullest > 0.75 * (window - max_output)
    held = [len(json.loads(row["prompt"])["turns"]) for row in await stack.rows(_ANSWERS_PROMPTS, UUID(user))]
    assert held[:8] == list(range(8))  # about ten fit: how many tokens the tags' random code takes differs
    assert sum(held[8:]) / len(held[8:]) >= 5


_ANSWERS_PROMPTS: Final = """
SELECT prompt FROM messages JOIN sessions ON sessions.id = messages.session_id
WHERE user_uuid = $1 AND role = 'assistant' ORDER BY messages.id
"""


async def test_turns_that_a_page_displaces_are_rolled_up_and_others_are_not(stack: Stack) -> None:
    _, user = await logged_session(stack, turns=60)
    await stack.start_worker(**NO_REINDEX)
    script_roll_ups(stack)
    await turn(stack, user)
    await until_at_rest(stack)
    assert await moves(stack) == []
    assert "질문 1번" in asked(stack, "test-model")[-1]
    await turn(stack, user, mode="page_context", context="쪽의 본문이다. " * 3_000)
    await until_at_rest(stack)
    [move] = await moves(stack)
    assert "번개" in move["summary"]


async def test_a_roll_up_takes_effect_once_where_its_worker_is_killed(stack: Stack) -> None:
    _, user = await logged_session(stack, turns=80)
    worker = await stack.start_worker(**NO_REINDEX, PROTOSTAR_LEASE="2")
    script_roll_ups(stack, hold="roll-up")
    await turn(stack, user)
    await stack.model.until_waiting("roll-up")
    worker.kill()
    await stack.start_worker(**NO_REINDEX, PROTOSTAR_LEASE="2")
    stack.model.release("roll-up")
    await until_at_rest(stack)
    [move] = await moves(stack)
    assert "번개" in move["summary"]
    assert len(asked(stack, SUMMARY_MODEL)) == 3  # of the second attempt one is a repair


@pytest.mark.parametrize("rolled_up", [0, 5])
async def test_of_two_roll_ups_at_once_one_takes_effect_and_a_later_one_does_not(stack: Stack, rolled_up: int) -> None:
    session, _ = await logged_session(stack, turns=30)
    if rolled_up:
        await stack.rows("UPDATE sessions SET summary = $1, summary_until = $2", OTHER, 2 * rolled_up)
        await stack.rows("DELETE FROM moves")
    await stack.start_worker(**NO_REINDEX)
    stack.model.script({"model": SUMMARY_MODEL, "hold": "both", "pieces": [FACT], "times": 2})
    arguments: dict[str, Any] = {"session": session, "until": 2 * rolled_up}
    for job_id in ("one", "two"):
        await stack.redis.enqueue_job("roll_up_session", _job_id=job_id, **arguments)
    await stack.model.until_waiting("both", 2)
    stack.model.release("both")
    await until_gone(stack, "one", "two")
    assert len(await moves(stack)) == 1
    await stack.redis.enqueue_job("roll_up_session", _job_id="three", **arguments)
    await until_gone(stack, "three")
    assert len(await moves(stack)) == 1
    assert len(asked(stack, SUMMARY_MODEL)) == 2


async def until_gone(stack: Stack, *job_ids: str) -> None:
    async def gone() -> bool:
        return not await stack.redis.exists(*(f"arq:job:{job_id}" for job_id in job_ids))

    await until(gone, "the jobs have ended", stack.logs)


@pytest.mark.parametrize("failure", [{"status": 401}, {"pieces": ["12345번."]}])
async def test_a_roll_up_that_fails_leaves_everything_and_a_later_turn_tries_again(
    stack: Stack, failure: dict[str, Any]
) -> None:
    _, user = await logged_session(stack, turns=80)
    await stack.start_worker(**NO_REINDEX)
    stack.model.script({"model": "test-model", "pieces": ["네."]}, {"model": SUMMARY_MODEL, **failure, "times": None})
    await turn(stack, user)
    await until_at_rest(stack)
    assert asked(stack, SUMMARY_MODEL)
    assert await moves(stack) == []
    stack.model.reset()
    script_roll_ups(stack)
    await turn(stack, user, "다시?")
    await until_at_rest(stack)
    [move] = await moves(stack)
    assert move["summary"] == FACT
    assert "질문 80번" in asked(stack, "test-model")[-1]


async def test_a_turn_without_a_summary_is_rolled_up_by_its_text(stack: Stack) -> None:
    session, user = await logged_session(stack, turns=80)
    await stack.rows(
        "UPDATE messages SET summary = NULL, content = $1 WHERE job_id = $2 AND role = 'assistant'",
        "자전거는 번개라고 한다. " * 40,
        f"{session}-2",
    )
    await stack.start_worker(**NO_REINDEX)
    script_roll_ups(stack)
    await turn(stack, user)
    await until_at_rest(stack)
    assert "자전거는 번개라고 한다." in asked(stack, SUMMARY_MODEL)[0]


async def test_turns_that_all_failed_are_passed_over_without_asking_a_model(stack: Stack) -> None:
    _, user = await logged_session(stack, turns=180)
    await stack.rows("UPDATE messages SET content = '', status = 'failed' WHERE role = 'assistant'")
    await stack.start_worker(**NO_REINDEX)
    script_roll_ups(stack)
    await turn(stack, user)
    await until_at_rest(stack)
    [move, *_] = await moves(stack)
    assert move["summary"] is None
    assert asked(stack, SUMMARY_MODEL) == []
    assert (
        len(await stack.rows("SELECT 1 FROM messages WHERE id > $1", (await moves(stack))[-1]["summary_until"]))
        < TAIL_MESSAGES
    )

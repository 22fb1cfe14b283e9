"""PostgreSQL that is there and refuses counts as away: the job waits, and its answer is not asked for twice."""

from __future__ import annotations

import signal
import time
from typing import Any

import asyncpg
import pytest
from tortoise.exceptions import OperationalError, TransactionManagementError

from models.transaction import is_transient
from stack.processes import Process
from tests.support.stack_under_test import Stack, check_order, text_of, until
from tests.tasks.billing.test_bill import NO_REINDEX, USAGE, charges, tokens

ANSWER = "하나뿐인 답입니다."


async def write(stack: Stack, *statements: str) -> None:
    """Execute statements, also where the database is read-only."""
    connection = await asyncpg.connect(stack.database_url, server_settings={"default_transaction_read_only": "off"})
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def until_logged(worker: Process, event: str, stack: Stack) -> None:
    async def logged() -> bool:
        return event in worker.log.read_text()

    await until(logged, f"the worker logs {event}", stack.logs)


async def refuse_answers(stack: Stack, sqlstate: str) -> None:
    await write(
        stack,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW"
        " WHEN (NEW.role = 'assistant') EXECUTE FUNCTION refuse()",
    )


async def check_stored_once(stack: Stack, job_id: str, *, attempt: int) -> None:
    """The answer is whole and stored once; one request was made, and it is billed."""
    [_, answer] = await stack.messages(job_id)
    assert (answer["status"], answer["content"], answer["attempt"]) == ("completed", ANSWER, attempt)
    [charge] = await charges(stack, job_id)
    assert (charge["outcome"], charge["attempt"], *tokens(charge)) == ("done", 1, 321, 54, False)
    assert len(stack.model.requests()) == 1
    assert await stack.redis.keys("protostar:kept-answer:*") == []


async def test_an_answer_waits_for_a_database_that_is_read_only(stack: Stack) -> None:
    worker = await stack.start_worker(**NO_REINDEX)
    stack.model.script({"pieces": ["하나뿐인 ", "답입니다."], "after": 1, "hold": "middle", "usage": USAGE})
    job = await stack.ask("질문")
    await stack.until_said(job.job_id, "하나뿐인")
    [row] = await stack.rows("SELECT current_database() AS name")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await write(
        stack,
        f'ALTER DATABASE "{row["name"]}" SET default_transaction_read_only = on',
        f"SELECT pg_terminate_backend(pid) {others}",
    )
    stack.model.release("middle")
    await until_logged(worker, "answer_kept", stack)
    assert await stack.rows("SELECT 1 FROM messages WHERE role = 'assistant'") == []
    await write(stack, f'ALTER DATABASE "{row["name"]}" RESET default_transaction_read_only')
    events = await stack.events(job.job_id)
    check_order(events)
    assert (text_of(events), events[-1]["type"], events[-1]["attempt"]) == (ANSWER, "done", 1)
    await check_stored_once(stack, job.job_id, attempt=1)


@pytest.mark.parametrize("sqlstate", ["53100", "25006"])
async def test_an_answer_is_committed_by_another_worker_where_its_own_dies(stack: Stack, sqlstate: str) -> None:
    await refuse_answers(stack, sqlstate)
    worker = await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    stack.model.script({"pieces": [ANSWER], "usage": USAGE})
    job = await stack.ask("질문")
    await until_logged(worker, "answer_kept", stack)
    worker.send(signal.SIGKILL)
    await write(stack, "DROP TRIGGER refuse ON messages")
    await stack.start_worker(PROTOSTAR_LEASE="1", **NO_REINDEX)
    events = await stack.events(job.job_id)
    check_order(events)
    assert (text_of(events), events[-1]["type"]) == (ANSWER, "done")
    await check_stored_once(stack, job.job_id, attempt=events[-1]["attempt"])
    assert (await stack.result(job.job_id))["r"]["content"] == ANSWER


async def test_a_job_that_times_out_while_its_answer_is_refused_is_done_once_it_is_committed(stack: Stack) -> None:
    await refuse_answers(stack, "53100")
    worker = await stack.start_worker(PROTOSTAR_JOB_TIMEOUT="1", **NO_REINDEX)
    stack.model.script({"pieces": [ANSWER], "usage": USAGE})
    job = await stack.ask("질문")
    await until_logged(worker, "answer_kept", stack)
    timed_out_s = time.monotonic() + 1.5

    async def timed_out() -> bool:
        return time.monotonic() > timed_out_s

    await until(timed_out, "the job has timed out")
    await write(stack, "DROP TRIGGER refuse ON messages")
    events = await stack.events(job.job_id)
    check_order(events)
    assert (text_of(events), events[-1]["type"]) == (ANSWER, "done")
    await check_stored_once(stack, job.job_id, attempt=events[-1]["attempt"])
    record = await stack.result(job.job_id)
    assert (record["s"], record["r"]["content"]) == (True, ANSWER)


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (asyncpg.ReadOnlySQLTransactionError(), True),
        (TransactionManagementError(asyncpg.ReadOnlySQLTransactionError()), True),
        (asyncpg.DiskFullError(), True),
        (asyncpg.OutOfMemoryError(), True),
        (asyncpg.PostgresIOError(), True),
        (asyncpg.LockNotAvailableError(), True),
        (asyncpg.AdminShutdownError(), True),
        (OperationalError(asyncpg.QueryCanceledError()), True),
        (asyncpg.UniqueViolationError(), False),
        (asyncpg.UndefinedTableError(), False),
        (OperationalError(asyncpg.UndefinedColumnError()), False),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_counts_as_away(error: Any, is_away: bool) -> None:
    assert is_transient(error) is is_away

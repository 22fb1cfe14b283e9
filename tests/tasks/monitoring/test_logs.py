"""Log lines: text or JSON, each about a job with its id, session and attempt, and no word of what was said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog

from protostar.log import Event
from tasks.engine.claim import Claim
from tasks.monitoring.logs import JobLabels, JsonFormatter, TextFormatter, configure, label_session
from tests.support.stack_under_test import Stack, until

LONG = (
    "작업은 잃지 않습니다. 워커가 죽으면 다른 워커가 이어받습니다. 처음부터 다시 답합니다. 독자는 끝을 한 번 봅니다. "
    * 3
)


def line_of(formatter: logging.Formatter, event: str | Event, *args: Any) -> str:
    return formatter.format(logging.LogRecord("protostar.x", logging.WARNING, __file__, 1, event, args, None))


def labels(job_id: bytes = b"j1", session: str = "s1", attempt: int = 3) -> JobLabels:
    return JobLabels(Claim(job_id, attempt, 0, 0, None, False), session)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the logger `protostar.x` hands on."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("protostar.x")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def logged(records: list[logging.LogRecord], formatter: logging.Formatter, event: str, **fields: Any) -> str:
    structlog.stdlib.get_logger("protostar.x").warning(event, **fields)
    return formatter.format(records[-1])


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({"owner": "a", "jobs": 3}, {"owner": "a", "jobs": 3}),
        ({"seconds": 1.25, "error": OSError("x")}, {"seconds": 1.25, "error": "x"}),
        ({}, {}),
        ({"path": Path("c"), "hint": "put files into it"}, {"path": "c", "hint": "put files into it"}),
    ],
)
def test_a_json_line_has_the_event_and_its_fields(
    records: list[logging.LogRecord], fields: dict[str, Any], written: dict[str, Any]
) -> None:
    line = json.loads(logged(records, JsonFormatter(), "x_happened", **fields))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "protostar.x", "event": "x_happened", **written}


@pytest.mark.parametrize(("template", "args", "message"), [("100% sure", (), "100% sure"), ("In %s", (3,), "In 3")])
def test_a_json_line_of_another_library_has_its_message(template: str, args: tuple[Any, ...], message: str) -> None:
    line = json.loads(line_of(JsonFormatter(), template, *args))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "protostar.x", "message": message}


@pytest.mark.parametrize("of_ours", [True, False])
def test_a_line_carries_the_job_of_its_task(records: list[logging.LogRecord], of_ours: bool) -> None:
    def write() -> str:
        formatter = JsonFormatter()
        return logged(records, formatter, "x_happened") if of_ours else line_of(formatter, "a line of another library")

    async def job() -> str:
        labels().bind()
        label_session("named later")
        return await asyncio.create_task(in_a_task_of_its_own())

    async def in_a_task_of_its_own() -> str:
        return write()

    line = json.loads(asyncio.run(job()))
    assert (line["job_id"], line["session"], line["attempt"]) == ("j1", "named later", 3)
    assert "job_id" not in json.loads(write())


def test_an_exception_is_written_with_its_traceback(records: list[logging.LogRecord]) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        structlog.stdlib.get_logger("protostar.x").exception("x_failed")
    assert "Traceback" in json.loads(JsonFormatter().format(records[-1]))["exception"]
    assert TextFormatter().format(records[-1]).splitlines()[-1] == "ValueError: x"


def test_a_text_line_is_one_line_and_names_each_label_once(records: list[logging.LogRecord]) -> None:
    def write() -> str:
        labels(b"j1\nforged", 'a b" attempt=9').bind()
        return logged(records, TextFormatter(), "ended", job_id="j1\nforged")

    line = copy_context().run(write)
    assert line.partition(": ")[2] == r'ended job_id="j1\nforged" session="a b\" attempt=9" attempt=3'


@pytest.fixture
def loggers() -> Iterator[tuple[logging.Logger, logging.Logger, logging.Logger]]:
    """The root's, ARQ's and ours as ARQ's command leaves them; put back as they were."""
    named = (logging.root, logging.getLogger("arq"), logging.getLogger("protostar"))
    before = [(logger, logger.handlers, logger.level) for logger in named]
    for logger in named:
        logger.handlers = []
    handler = logging.StreamHandler()
    handler.name = "arq.standard"
    named[1].handlers = [handler]
    named[1].setLevel("INFO")
    yield named
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.setLevel(level)
    logging.captureWarnings(False)


def test_a_level_that_is_set_holds_for_both(loggers: tuple[logging.Logger, ...]) -> None:
    root, arqs, ours = loggers
    configure("text", None)
    assert (arqs.level, ours.level, ours.handlers) == (logging.INFO, logging.INFO, arqs.handlers)
    configure("text", "debug")
    assert (arqs.level, ours.level, arqs.handlers[0].level) == (logging.DEBUG,) * 3
    assert arqs.handlers[0] not in root.handlers


def test_a_log_configuration_of_the_users_is_left_alone(loggers: tuple[logging.Logger, ...]) -> None:
    _, arqs, ours = loggers
    own = logging.StreamHandler()
    ours.handlers, arqs.handlers = [own], [own]
    configure("json", None)
    assert (ours.handlers, own.formatter) == ([own], None)


async def test_every_line_of_a_worker_is_json_and_names_its_job(stack: Stack) -> None:
    worker = await stack.start_worker(PROTOSTAR_LOG_FORMAT="json", PROTOSTAR_LOG_LEVEL="debug")
    stack.model.script({"status": 500}, {"pieces": [LONG]}, {"pieces": ["요약이다."]})
    job = await stack.ask("비밀스러운 질문", user=str(uuid4()), session="대화 1")
    await stack.result(job.job_id)
    summary = f"summary:{(await stack.messages(job.job_id))[1]['id']}"
    await stack.result(summary)
    await stack.rows("ALTER TABLE messages ADD CONSTRAINT broken CHECK (role <> 'user') NOT VALID")
    broken = await stack.ask("또 하나 비밀", user=str(uuid4()), session="대화 2")
    await stack.result(broken.job_id)

    async def written() -> bool:
        return f'"job_id":"{broken.job_id}"' in worker.log.read_text().replace('": "', '":"')

    await until(written, "the last job is in the log", stack.logs)
    worker.stop()
    text = worker.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    def about(job_id: str) -> list[dict[str, Any]]:
        return [line for line in lines if line.get("job_id") == job_id]

    ends = [line for line in about(job.job_id) if line.get("event") == "attempt_ended"]
    assert [(line["attempt"], line["outcome"]) for line in ends] == [(1, "again:provider_unavailable"), (2, "done")]
    assert {line["event"] for line in about(job.job_id)} >= {"attempt_failed", "attempt_ended"}
    assert {line["session"] for line in about(job.job_id) + about(summary)} == {"대화 1"}
    assert {line["session"] for line in about(broken.job_id)} == {"대화 2"}
    assert all({"job_id", "attempt"} <= line.keys() for line in lines if "job_id" in line)
    assert any("Traceback" in line.get("exception", "") for line in about(broken.job_id))
    assert {"arq.worker", "protostar.worker"} & {line["logger"] for line in lines}
    assert "비밀" not in text
    assert "이어받습니다" not in text


async def test_a_text_line_about_a_job_names_its_session_and_attempt(shared_stack: Stack) -> None:
    session = f"s-{uuid4().hex}"
    job = await shared_stack.ask("질문", session=session)
    await shared_stack.result(job.job_id)

    async def line() -> str:
        lines = shared_stack.workers[0].log.read_text().splitlines()
        return next((line for line in lines if "attempt_ended" in line and job.job_id in line), "")

    assert f" session={session}" in await until(line, "the attempt is in the log")

"""Log lines: text or JSON, each about a job with its id, session and attempt, and no word of what was said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tasks.engine.claim import Claim
from tasks.monitoring.logs import JobLabels, JsonFormatter, TextFormatter, configure, label_session
from tests.support.house import House, until

LONG = (
    "작업은 잃지 않습니다. 워커가 죽으면 다른 워커가 이어받습니다. 처음부터 다시 답합니다. 독자는 끝을 한 번 봅니다. "
    * 3
)


def line_of(formatter: logging.Formatter, template: str, *args: Any, **more: Any) -> str:
    record = logging.LogRecord("protostar.x", logging.WARNING, __file__, 1, template, args, None)
    vars(record).update(more)
    return formatter.format(record)


def labels(job_id: bytes = b"j1", session: str = "s1", attempt: int = 3) -> JobLabels:
    return JobLabels(Claim(job_id, attempt, 0, 0, None, False), session)


@pytest.mark.parametrize(
    ("template", "args", "said"),
    [
        ("worker_starting owner=%s jobs=%d", ("a", 3), {"event": "worker_starting", "owner": "a", "jobs": 3}),
        (
            "model_paused seconds=%.1f error=%s",
            (1.25, OSError("x")),
            {"event": "model_paused", "seconds": 1.25, "error": "x"},
        ),
        ("flush_failed", (), {"event": "flush_failed"}),
        (
            "corpus_empty folder=%s put files into it",
            ("c",),
            {"event": "corpus_empty", "folder": "c", "message": "corpus_empty folder=c put files into it"},
        ),
        ("not_embedded error=%s: %s", ("A", "b"), {"event": "not_embedded", "message": "not_embedded error=A: b"}),
        ("100% sure", (), {"message": "100% sure"}),
        ("Retrying in %s", (3,), {"message": "Retrying in 3"}),
    ],
)
def test_a_json_line_has_the_event_and_its_fields(template: str, args: tuple[Any, ...], said: dict[str, Any]) -> None:
    line = json.loads(line_of(JsonFormatter(), template, *args))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "protostar.x", **said}


def test_a_line_carries_the_job_of_its_task_or_the_one_it_is_given() -> None:
    async def job() -> str:
        labels().bind()
        label_session("named later")
        return await asyncio.create_task(in_a_task_of_its_own())

    async def in_a_task_of_its_own() -> str:
        return line_of(JsonFormatter(), "x_happened")

    line = json.loads(asyncio.run(job()))
    assert (line["job_id"], line["session"], line["attempt"]) == ("j1", "named later", 3)
    assert "job_id" not in json.loads(line_of(JsonFormatter(), "x_happened"))
    given = json.loads(line_of(JsonFormatter(), "lost job_id=%s", "j1", **labels().extra))
    assert (given["job_id"], given["session"], given["attempt"]) == ("j1", "s1", 3)


def test_a_text_line_is_one_line_and_names_each_label_once() -> None:
    line = line_of(TextFormatter(), "ended job_id=%s", "j1\nforged", **labels(b"j1\nforged", 'a b" attempt=9').extra)
    assert line.partition(": ")[2] == 'ended job_id=j1\\nforged session="a b\\" attempt=9" attempt=3'


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


async def test_every_line_of_a_worker_is_json_and_names_its_job(house: House) -> None:
    worker = await house.start_worker(PROTOSTAR_LOG_FORMAT="json", PROTOSTAR_LOG_LEVEL="debug")
    house.model.script({"status": 500}, {"pieces": [LONG]}, {"pieces": ["요약이다."]})
    job = await house.ask("비밀스러운 질문", user=str(uuid4()), session="대화 1")
    await house.result(job.job_id)
    summary = f"summary:{(await house.messages(job.job_id))[1]['id']}"
    await house.result(summary)
    await house.rows("ALTER TABLE messages ADD CONSTRAINT broken CHECK (role <> 'user') NOT VALID")
    broken = await house.ask("또 하나 비밀", user=str(uuid4()), session="대화 2")
    await house.result(broken.job_id)

    async def written() -> bool:
        return f'"job_id":"{broken.job_id}"' in worker.log.read_text().replace('": "', '":"')

    await until(written, "the last job is in the log", house.logs)
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


async def test_a_text_line_about_a_job_names_its_session_and_attempt(shared_house: House) -> None:
    session = f"s-{uuid4().hex}"
    job = await shared_house.ask("질문", session=session)
    await shared_house.result(job.job_id)

    async def line() -> str:
        lines = shared_house.workers[0].log.read_text().splitlines()
        return next((line for line in lines if "attempt_ended" in line and job.job_id in line), "")

    assert f" session={session}" in await until(line, "the attempt is in the log")

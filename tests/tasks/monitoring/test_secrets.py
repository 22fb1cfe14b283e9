"""No key, no password and, in logs, no word of a conversation: all that a run puts out is searched for them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis as RedisClient

from protostar.settings import Settings
from rag.providers import ProviderName, make_provider
from tests.support.model_control import ModelControl
from tests.support.stack_under_test import ROOT, Stack, clean_environment, text_of, until

KEY = "sk-live-4242424242abcdef"
DATABASE_PASSWORD = "db-pass-7771"
REDIS_PASSWORD = "redis-pass-8882"
SECRETS = (KEY, DATABASE_PASSWORD, REDIS_PASSWORD)
QUESTION, ANSWER, PAGE = "극비질문 내일 발표합니다", "극비답변 아무도 모릅니다", "극비문맥 사내 문서입니다"
CONTENTS = ("극비질문", "극비답변", "극비문맥")


@pytest.fixture
async def stack(redis_url: str, database_url: str, model_server: ModelControl, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose every door has a password."""
    model_server.reset()
    async with RedisClient.from_url(redis_url) as redis:
        await redis.execute_command("ACL", "SETUSER", "worker", "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all")
        redis_url = f"{redis_url.replace('unix://', 'unix://worker@')}?password={REDIS_PASSWORD}"
        database_url = database_url.replace("@/", f":{DATABASE_PASSWORD}@/")
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        (corpus / "a.md").write_text("# 발표\n\n발표는 내일이다.\n")
        stack = Stack(redis_url, database_url, model_server, tmp_path, corpus)
        stack.environment |= {"OPENAI_API_KEY": KEY}
        yield stack
        await stack.close()
        await redis.execute_command("ACL", "DELUSER", "worker")


async def asked(stack: Stack, *, mode: str = "general") -> list[dict[str, Any]]:
    """A question, to its end."""
    more = {"mode": mode, "context": PAGE} if mode == "page_context" else {}
    job = await stack.ask(QUESTION, user=str(uuid4()), **more)
    events = await stack.events(job.job_id)
    await stack.result(job.job_id)
    return events


async def stopped(stack: Stack) -> None:
    for worker in stack.workers:
        worker.stop()


async def all_of_redis(stack: Stack) -> str:
    """Every event, result, dead letter and mark of the run."""
    found = []
    async for key in stack.redis.scan_iter():
        found += [key, await stack.redis.dump(key) if await stack.redis.type(key) != b"stream" else b""]
        if await stack.redis.type(key) == b"stream":
            found += [fields[b"data"] for _, fields in await stack.redis.xrange(key)]
        elif await stack.redis.type(key) == b"string":
            found.append(await stack.redis.get(key))
    return b"\n".join(found).decode(errors="replace")


def protostar(stack: Stack, *arguments: str, **environment: str) -> str:
    """Both outputs of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "protostar", *arguments],
        cwd=ROOT,
        env=clean_environment() | stack.environment | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def assert_secret(text: str, *words: str) -> None:
    for word in words:
        at = text.find(word)
        assert at < 0, f"{word} is shown: {text[max(0, at - 300) : at + 100]}"


async def test_a_run_with_every_kind_of_trouble_shows_no_secret(stack: Stack) -> None:
    said = {"message": f"Incorrect API key provided: {KEY}. You asked: {QUESTION}"}
    worker = stack.launch("--verbose")
    await until(stack.owners, "the worker serves", stack.logs)

    stack.model.script({"pieces": [ANSWER]}, {"pieces": [ANSWER]})
    assert text_of(await asked(stack)) == ANSWER
    assert text_of(await asked(stack, mode="page_context")) == ANSWER

    stack.model.script({"status": 401, "error": said}, {"status": 500, "error": said}, {"pieces": [ANSWER]})
    assert (await asked(stack))[-1]["code"] == "provider_error"
    assert text_of(await asked(stack)) == ANSWER

    # PostgreSQL's own words about a broken rule quote the whole row.
    await stack.rows("ALTER TABLE messages ADD CONSTRAINT broken CHECK (role <> 'user') NOT VALID")
    assert (await asked(stack))[-1]["code"] == "internal"
    await stack.rows("ALTER TABLE messages DROP CONSTRAINT broken")
    assert "Traceback" in worker.log.read_text()
    await stopped(stack)

    await stack.start_worker(OPENAI_BASE_URL=f"http://127.0.0.1:1/{KEY}", PROTOSTAR_JOB_TIMEOUT="5")
    assert (await asked(stack))[-1]["type"] == "error"
    await stopped(stack)

    logs = "".join(worker.log.read_text() for worker in stack.workers)
    assert_secret(logs, *SECRETS, *CONTENTS)
    assert_secret(await all_of_redis(stack), *SECRETS)


WRONG: list[dict[str, str]] = [
    {"DATABASE_URL": f"mysql://u:{DATABASE_PASSWORD}@127.0.0.1/x"},
    {"DATABASE_URL": f"postgres://u:{DATABASE_PASSWORD}@127.0.0.1:1/x"},
    {"DATABASE_URL": f"postgres://u:a/{DATABASE_PASSWORD}@127.0.0.1:1/x"},
    {"REDIS_URL": f"http://:{REDIS_PASSWORD}@127.0.0.1"},
    {"REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0"},
    {"REDIS_URL": f"redis://:1/{REDIS_PASSWORD}@127.0.0.1:1/0"},
    {"OPENAI_BASE_URL": f"http://user:{KEY}@127.0.0.1:1/v1"},
    {"OPENAI_API_KEY": f"{KEY}\n"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(wrong))
async def test_a_worker_that_cannot_start_says_why_without_a_secret(stack: Stack, wrong: dict[str, str]) -> None:
    worker = stack.launch(**wrong)

    async def over() -> bool:
        return not worker.running

    await until(over, "the worker gives up", stack.logs)
    said = worker.log.read_text()
    assert worker.exit_code == 1
    assert len(said.splitlines()) == 1
    assert_secret(said, *SECRETS)


def test_commands_show_no_secret(stack: Stack) -> None:
    shown = [protostar(stack, *arguments) for arguments in (("jobs",), ("status",), ("search", "질문"))]
    shown += [protostar(stack, "jobs" if "REDIS_URL" in wrong else "migrate", **wrong) for wrong in WRONG]
    assert_secret("\n".join(shown), *SECRETS)


def test_what_holds_a_secret_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "REDIS_URL": f"redis://:{REDIS_PASSWORD}@localhost/0",
        "DATABASE_URL": f"postgres://u:{DATABASE_PASSWORD}@localhost/x",
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"http://localhost/{KEY}/v1",
        "OPENROUTER_API_KEY": KEY,
        "OPENROUTER_BASE_URL": f"http://localhost/{KEY}/v1",
        "PROTOSTAR_CHAT_MODEL": "m",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()  # type: ignore[call-arg]  # the environment gives the rest
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert_secret(shown, *SECRETS)


@pytest.mark.parametrize("name", ["openai", "openrouter"])
async def test_a_provider_does_not_show_its_key(name: ProviderName) -> None:
    url = "http://127.0.0.1:1/v1"
    provider = make_provider(name, api_key=KEY, base_url=url, first_token_timeout_s=1, stall_timeout_s=1)
    shown = f"{provider!r} {provider} {vars(provider)!r} {json.dumps(vars(provider), default=repr)}"
    assert_secret(shown, KEY)
    await provider.close()

"""A worker that can't start says in one line why, and what to do."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from protostar.settings import CorpusSettings, Settings, SettingsError, load
from stack.postgres import Postgres
from stack.processes import wait_until
from tests.support.stack_under_test import ROOT, Stack, until


async def refusal(stack: Stack, **environment: str) -> str:
    worker = stack.launch(**environment)
    wait_until(lambda: not worker.running, timeout_s=30, what="the worker gives up")
    lines = worker.log.read_text().splitlines()
    assert len(lines) == 1, lines
    assert worker.exit_code == 1
    return lines[0]


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"PROTOSTAR_CHAT_MODEL": ""}, "PROTOSTAR_CHAT_MODEL"),
        ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY"),
        ({"PROTOSTAR_PROVIDER": "openrouter"}, "OPENROUTER_API_KEY"),
        ({"PROTOSTAR_PROVIDER": "nobody"}, "PROTOSTAR_PROVIDER"),
        ({"PROTOSTAR_MAX_JOBS": "many"}, "PROTOSTAR_MAX_JOBS"),
        ({"PROTOSTAR_CHUNK_OVERLAP": "300"}, "PROTOSTAR_CHUNK_OVERLAP"),
        ({"PROTOSTAR_MAX_OUTPUT_TOKENS": "9000"}, "PROTOSTAR_CONTEXT_WINDOW"),
        ({"PROTOSTAR_LEASE": "inf"}, "PROTOSTAR_LEASE"),
        ({"PROTOSTAR_CONTEXT_WINDOW": "300", "PROTOSTAR_MAX_OUTPUT_TOKENS": "30"}, "PROTOSTAR_CONTEXT_WINDOW"),
        ({"REDIS_URL": "http://localhost"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://localhost/abc"}, "REDIS_URL"),
        ({"DATABASE_URL": "mysql://localhost/x"}, "DATABASE_URL"),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "REDIS_URL"),
        ({"DATABASE_URL": "postgres://127.0.0.1:1/x"}, "DATABASE_URL"),
        ({"PROTOSTAR_CORPUS_DIR": "nowhere"}, "PROTOSTAR_CORPUS_DIR"),
        ({"PROTOSTAR_PROMPTS_DIR": "nowhere"}, "PROTOSTAR_PROMPTS_DIR"),
        ({"PROTOSTAR_SERVE": ","}, "PROTOSTAR_SERVE"),
        ({"OPENAI_BASE_URL": "ftp://secret.example/"}, "OPENAI_BASE_URL"),
        ({"OPENAI_API_KEY": "sk-secret\nx"}, "OPENAI_API_KEY"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_wrong_setting_is_named(stack: Stack, environment: dict[str, str], named: str) -> None:
    line = await refusal(stack, **environment)
    assert named in line
    assert "secret" not in line


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENROUTER_BASE_URL"])
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("not a secret", "space"),
        ("secret.example/v1", "http"),
        ("secret:8000/v1", "http"),
        ("ftp://secret.example/", "http"),
        ("http:///v1?secret", "names no host"),
        ("http://secret:secret@127.0.0.1:1/v1", "password"),
        ("http://secret@127.0.0.1:1/v1", "password"),
        ("http://secret.example:secret/v1", "port"),
        ("http://secret.example:99999/v1", "port"),
        ("http://[secret]/v1", "is not a URL"),
        ("http://secret\u2100.example/v1", "is not a URL"),
        ("http://secret.example/v 1", "space"),
        ("http://secret.example/v1\n", "space"),
    ],
)
def test_a_wrong_base_url_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, problem: str
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(SettingsError, match=f"^{variable} is wrong: .*{problem}") as raised:
        load(CorpusSettings)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://host.example/a/path/", "http://[::1]:8000", "HTTPS://host/v1"]
)
def test_a_base_url_may_have_a_port_and_a_path(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    given = load(CorpusSettings).openai_base_url
    assert given is not None
    assert given.get_secret_value() == url


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENROUTER_API_KEY"])
@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-secret\n", "sk-secret한글", " sk-secret", "sk-\x7fsecret"])
def test_a_key_that_no_header_can_hold_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, key: str
) -> None:
    monkeypatch.setenv(variable, key)
    with pytest.raises(SettingsError, match=f"^{variable} is wrong: .*header") as raised:
        load(CorpusSettings)
    assert "secret" not in str(raised.value)


async def test_a_database_that_is_not_migrated_says_so(stack: Stack, postgres_server: Postgres) -> None:
    postgres_server.create_database("bare")
    assert "protostar migrate" in await refusal(stack, DATABASE_URL=postgres_server.url("bare"))
    assert "protostar migrate" in await refusal(stack, DATABASE_URL=postgres_server.url("missing"))


async def test_an_empty_corpus_is_said_and_served_all_the_same(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    worker = await stack.start_worker(PROTOSTAR_CORPUS_DIR=str(tmp_path / "empty"))
    assert re.search(r"corpus_empty folder=.*put Markdown files", worker.log.read_text())
    stack.model.script({"pieces": ["네."]})
    events = await stack.events((await stack.ask("있나요?")).job_id)
    assert [event["type"] for event in events] == ["start", "delta", "done"]


async def test_a_worker_that_is_asked_to_stop_ends_well_and_leaves_nothing(stack: Stack) -> None:
    worker = await stack.start_worker()
    worker.send(signal.SIGTERM)
    wait_until(lambda: not worker.running, timeout_s=20, what="the worker stops")
    assert worker.exit_code == 0

    async def left() -> bool:
        return await stack.owners() == set()

    await until(left, "the worker has signed off")


def test_the_configuration_page_lists_every_variable() -> None:
    """The table of docs/configuration.md and the settings agree, name by name and default by default."""
    rows = re.findall(
        r"^\| (`[A-Z_`, ]+`) \| ([^|]*) \|", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE
    )
    table: dict[str, str] = {}
    for names, defaults in rows:
        variables = re.findall(r"[A-Z_]+", names)
        values = [value.strip(" `") for value in defaults.split(",")]
        table |= dict(zip(variables, values if len(values) == len(variables) else values * 9, strict=False))
    assert table.keys() == set(variables_of_settings())
    for variable, default in variables_of_settings().items():
        if default is not None:
            assert table[variable] == default, variable


def variables_of_settings() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"PROTOSTAR_{name.upper()}"
        default = field.default
        known = isinstance(default, int | float) or (isinstance(default, str) and bool(default))
        default = str(default).lower() if isinstance(default, bool) else default
        found[str(variable)] = f"{default:g}" if isinstance(default, float) else str(default) if known else None
    return found

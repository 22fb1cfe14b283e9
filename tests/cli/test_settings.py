"""Messages about settings name the variable, its value unless it is a secret, and the remedy."""

from __future__ import annotations

import pytest

from protostar.cli.checks.environment import examine
from protostar.settings import REINDEX_MINUTES, Settings, SettingsError, load_settings, unknown_variables
from tests.support.stack_under_test import Stack, until


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with all that is required."""
    monkeypatch.setenv("PROTOSTAR_CHAT_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "k")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "PROTOSTAR_MAX_JOBS",
            "many",
            "PROTOSTAR_MAX_JOBS is wrong: 'many' is not accepted; it should be a valid integer",
        ),
        ("PROTOSTAR_MAX_JOBS", "0", "'0' is not accepted; it should be greater than or equal to 1"),
        ("PROTOSTAR_PROVIDER", "nobody", "'nobody' is not accepted; it should be 'openai' or 'openrouter'"),
        ("PROTOSTAR_SERVE", ",", "',' does not name a class of jobs; name one or more of chat, summary, reindex"),
        (
            "PROTOSTAR_REINDEX_MINUTES",
            "45",
            "'45' does not divide an hour or a day evenly; use one of 0, 1, 2, 3, 4, 5, 6, 10",
        ),
        ("PROTOSTAR_REINDEX_MINUTES", "-10", "'-10' does not divide an hour or a day evenly"),
        ("PROTOSTAR_CORPUS_IGNORE", "", ""),
        ("PROTOSTAR_LOG_LEVEL", "x" * 1000, f"'{'x' * 60}' is not accepted"),
        (
            "OPENAI_BASE_URL",
            "ftp://secret",
            "OPENAI_BASE_URL is wrong: starts with neither http:// nor https://; write it as",
        ),
    ],
)
def test_a_message_names_variable_value_and_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    if not message:
        load_settings()
        return
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{variable} is wrong: ")
    assert "secret" not in str(raised.value)


def test_all_that_is_wrong_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSTAR_MAX_JOBS", "many")
    monkeypatch.setenv("PROTOSTAR_LEASE", "0")
    monkeypatch.setenv("PROTOSTAR_MAX_OUTPUT_TOKENS", "9000")
    found = examine()
    assert found.wrong == {"PROTOSTAR_MAX_JOBS", "PROTOSTAR_LEASE"}
    assert found.settings.max_jobs == Settings.model_fields["max_jobs"].default
    assert [problem.split(" ", 1)[0] for problem in found.problems] == [
        "PROTOSTAR_MAX_JOBS",
        "PROTOSTAR_LEASE",
        "PROTOSTAR_MAX_OUTPUT_TOKENS",
    ]


def test_every_allowed_interval_comes_as_often_as_it_says() -> None:
    assert 10 in REINDEX_MINUTES
    for minutes in REINDEX_MINUTES[1:]:
        times = set(range(0, 1440, minutes))
        assert {(time + minutes) % 1440 for time in times} == times


@pytest.mark.parametrize(
    ("variable", "value", "nearest"),
    [
        ("PROTOSTAR_LAESE", "3", "PROTOSTAR_LEASE"),
        ("protostar_max_job", "3", "PROTOSTAR_MAX_JOBS"),
        ("PROTOSTAR_XYZZY", "3", ""),
    ],
)
def test_an_unknown_variable_is_found_with_the_nearest_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert [(found.name, found.nearest) for found in unknown_variables()] == [(variable, nearest)]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROTOSTAR_LEASE", "3"),
        ("protostar_lease", "3"),
        ("PROTOSTAR_SERVICE_HOST", "10.0.0.1"),
        ("PROTOSTAR_SERVICE_PORT_HTTP", "80"),
        ("PROTOSTAR_PORT", "tcp://10.0.0.1:80"),
        ("PROTOSTAR_PORT_80_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_settings_and_the_variables_of_kubernetes_are_not_unknown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert unknown_variables() == []


async def test_a_worker_reports_an_unknown_variable_when_it_starts(stack: Stack) -> None:
    worker = await stack.start_worker(PROTOSTAR_LAESE="3")

    async def reported() -> bool:
        return "setting_unknown variable=PROTOSTAR_LAESE" in worker.log.read_text()

    await until(reported, "the variable is in the log", stack.logs)
    assert 'hint="did you mean PROTOSTAR_LEASE?"' in worker.log.read_text()

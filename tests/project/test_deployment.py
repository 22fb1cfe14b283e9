"""What is shipped to run Protostar: every variable, command and file that it names is there, and the times agree.

No container engine is needed: the servers are started with the very arguments of compose.yaml.
"""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import yaml

from examples.gateway.config import Config
from protostar.settings import Settings, load
from stack.places import Account, temporary_base_folder
from stack.postgres import Postgres
from stack.redis import Redis
from tasks.engine.loop import DRAIN_S
from tests.project.test_image import image
from tests.support.doc_commands import CLUSTER, COMPOSE, MIGRATE, UNITS, VARIABLES, WORKER, check_usage
from tests.support.stack_under_test import ROOT

GIVEN: Final = {
    "POSTGRES_PASSWORD": "secret",
    "OPENAI_API_KEY": "key",
    "PROTOSTAR_CHAT_MODEL": "model",
    "CORPUS": ".",
    "GATEWAY_SECRET": "0123456789abcdef",
}
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]


def interpolated(value: object, given: dict[str, str]) -> str:
    """A value as Compose reads it: `${NAME:?why}` has to be given, `${NAME:-default}` may be."""

    def fill(match: re.Match[str]) -> str:
        name, mark, rest = match["name"], match["mark"], match["rest"]
        if name in given:
            return given[name]
        assert mark == ":-", f"{name} is not given: {rest}"
        return str(rest)

    return re.sub(r"\$\{(?P<name>\w+)(?P<mark>:[-?])(?P<rest>[^}]*)\}", fill, str(value))


def environment(service: str) -> dict[str, str]:
    return {name: interpolated(value, GIVEN) for name, value in SERVICES[service].get("environment", {}).items()}


def seconds(text: str) -> int:
    count, unit = int(text[:-1]), text[-1]
    return count * {"s": 1, "m": 60}[unit]


def settings_of(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(Settings)


def assert_outlasts(waits_s: float, settings: Settings) -> None:
    """Who stops a worker waits for its grace, for the hand-over, and a moment longer."""
    assert waits_s >= settings.shutdown_grace + DRAIN_S + 5


# Compose


def test_the_worker_of_compose_has_settings_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment("worker")
    assert variables.keys() <= VARIABLES
    settings = settings_of(variables, monkeypatch)
    assert_outlasts(seconds(SERVICES["worker"]["stop_grace_period"]), settings)
    [volume] = SERVICES["worker"]["volumes"]
    assert interpolated(volume, GIVEN) == f".:{settings.corpus_dir}:ro"
    assert settings.redis_url.get_secret_value().startswith("redis://redis:")
    assert "@postgres:" in settings.database_url.get_secret_value()
    assert environment("migrate").keys() <= VARIABLES


def test_the_gateway_of_compose_has_settings_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("gateway").items():
        monkeypatch.setenv(name, value)
    config = Config()  # type: ignore[call-arg]  # the environment gives the secret
    assert config.redis_url.get_secret_value() == environment("gateway")["REDIS_URL"]
    known = {str(field.validation_alias or f"GATEWAY_{name.upper()}") for name, field in Config.model_fields.items()}
    assert environment("gateway").keys() <= known
    [port] = SERVICES["gateway"]["ports"]
    assert re.fullmatch(r"127\.0\.0\.1:\$\{PORT:-\d+\}:8000", port)
    assert image(SERVICES["gateway"]["build"]["target"])


def test_compose_says_what_it_misses() -> None:
    for name in ("POSTGRES_PASSWORD", "OPENAI_API_KEY", "PROTOSTAR_CHAT_MODEL", "GATEWAY_SECRET"):
        assert f"${{{name}:?" in (ROOT / "compose.yaml").read_text()


def test_the_services_start_in_order_and_run_what_there_is() -> None:
    assert SERVICES["worker"]["command"] == WORKER
    assert SERVICES["migrate"]["command"] == MIGRATE
    check_usage(MIGRATE)
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert needed in SERVICES, f"{name} waits for {needed}"
            if condition == "service_healthy":
                assert "test" in SERVICES[needed]["healthcheck"], needed
            else:
                assert (condition, SERVICES[needed]["restart"]) == ("service_completed_successfully", "no")
    assert SERVICES["worker"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in named if volume.isalpha()} == COMPOSE["volumes"].keys()


class ComposedRedis(Redis):
    """A Redis that is started with the arguments of compose.yaml; where it listens and writes is the test's."""

    def _command(self) -> list[str | Path]:
        program, *_ours = super()._command()
        places = ["--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700", "--dir", self._folder]
        return [program, *SERVICES["redis"]["command"][1:], *places]


def test_the_redis_of_compose_keeps_what_it_accepted(account: Account | None) -> None:
    with temporary_base_folder(account) as base, ComposedRedis(base, account) as server:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            config: Any = client.config_get("*")
            client.set("accepted", "1")
        assert (config["appendonly"], config["maxmemory-policy"]) == ("yes", "noeviction")
        assert int(config["maxmemory"]) > 0
        server.restart()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            assert client.get("accepted") == "1"


def test_the_postgres_of_compose_knows_hangul(account: Account | None, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
    monkeypatch.setattr("stack.postgres._INITDB", ("--username=protostar", "--auth=trust", "--no-sync", *composed))
    with temporary_base_folder(account) as base, Postgres(base, account, durable=False) as server:
        [found] = server.query(
            "postgres",
            "SELECT '한글' ~ '^[[:alpha:]]+$', pg_encoding_to_char(encoding) "
            "FROM pg_database WHERE datname = 'postgres'",
        )
    assert found == "t|UTF8"
    limit = next(word for word in SERVICES["postgres"]["command"] if word.startswith("max_connections="))
    assert int(limit.partition("=")[2]) >= 100


# systemd


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy/systemd" / name)
    return parser


@pytest.mark.parametrize("name", sorted(UNITS))
def test_a_unit_runs_what_there_is_without_root(name: str) -> None:
    service = unit(name)["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert [Path(program).name, *arguments] == (WORKER if "worker" in name else MIGRATE)
    assert service["User"] not in ("", "root")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")


def test_the_workers_unit_migrates_first_and_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = unit("protostar-worker.service")
    assert worker["Unit"]["Requires"] in UNITS
    assert worker["Unit"]["Requires"] in worker["Unit"]["After"].split()
    assert worker["Service"]["Restart"] == "always"
    settings = settings_of({"OPENAI_API_KEY": "key", "PROTOSTAR_CHAT_MODEL": "model"}, monkeypatch)
    assert_outlasts(int(worker["Service"]["TimeoutStopSec"]), settings)


# Kubernetes


def pod(name: str) -> dict[str, Any]:
    found: dict[str, Any] = CLUSTER[name]["spec"]["template"]["spec"]
    return found


def test_the_manifests_set_what_the_settings_know(monkeypatch: pytest.MonkeyPatch) -> None:
    data = CLUSTER["configmap/protostar"]["data"]
    assert data.keys() <= VARIABLES
    assert all(isinstance(value, str) for value in data.values())
    settings = settings_of({**data, "OPENAI_API_KEY": "key"}, monkeypatch)
    assert_outlasts(pod("deployment/protostar-worker")["terminationGracePeriodSeconds"], settings)
    [container] = pod("deployment/protostar-worker")["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": settings.metrics_port}]
    assert settings.metrics_host == "0.0.0.0"
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}


@pytest.mark.parametrize("name", ["deployment/protostar-worker", "job/protostar-migrate"])
def test_the_pods_run_what_there_is_without_root(name: str) -> None:
    [container] = pod(name)["containers"]
    assert container["command"] == (WORKER if "worker" in name else MIGRATE)
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["securityContext"]["runAsUser"] == int(dict(image())["USER"])
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    for source in container["envFrom"]:
        assert [reference["name"] for reference in source.values()] == ["protostar"]


def test_what_watches_the_workers_finds_them() -> None:
    labels = CLUSTER["deployment/protostar-worker"]["spec"]["template"]["metadata"]["labels"]
    assert CLUSTER["deployment/protostar-worker"]["spec"]["selector"]["matchLabels"] == labels
    assert CLUSTER["poddisruptionbudget/protostar-worker"]["spec"]["selector"]["matchLabels"] == labels
    scaled = CLUSTER["scaledobject/protostar-worker"]["spec"]
    assert f"deployment/{scaled['scaleTargetRef']['name']}" in CLUSTER


def test_the_workers_are_scaled_by_metrics_that_they_tell() -> None:
    told = "".join((ROOT / "tasks" / "monitoring" / name).read_text() for name in ("metrics.py", "metrics_server.py"))
    queries = [trigger["metadata"]["query"] for trigger in CLUSTER["scaledobject/protostar-worker"]["spec"]["triggers"]]
    assert queries
    for query in queries:
        for name in re.findall(r"\bprotostar_(\w+)", query):
            assert f'"{name}"' in told or f'"protostar_{name}"' in told, name


def test_kustomize_takes_every_manifest_but_the_one_that_needs_an_operator() -> None:
    folder = ROOT / "deploy/kubernetes"
    taken = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"])
    assert {file.name for file in folder.glob("*.yaml")} - taken == {"kustomization.yaml", "autoscaling.yaml"}

"""How a command of a page is run: for each program one way, and no command without one.

What ends by itself is run for real before a stack. What starts a machine's services, or installs, is read closely
instead: every file, service, unit, resource and option it names has to be there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import click
import typer.main
import yaml
from pydantic import AliasChoices

from examples.gateway.config import Config
from protostar.cli.app import app
from protostar.settings import Settings
from stack.demo import _parser as demo_parser
from stack.postgres import Postgres
from tests.support.stack_under_test import ROOT, Stack, clean_environment

Words = Sequence[str]

WORKER: Final = ["arq", "arq_settings.WorkerSettings"]
MIGRATE: Final = ["protostar", "migrate"]

COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())
UNITS: Final = {file.name for file in (ROOT / "deploy/systemd").glob("*.service")}
CLUSTER: Final = {
    f"{resource['kind']}/{resource['metadata']['name']}".lower(): resource
    for file in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
    for resource in yaml.safe_load_all(file.read_text())
    if "metadata" in resource
}


def _names(variable: object) -> list[str]:
    return [str(name) for name in variable.choices] if isinstance(variable, AliasChoices) else [str(variable)]


VARIABLES: Final = {
    variable
    for name, field in Settings.model_fields.items()
    for variable in _names(field.validation_alias or f"PROTOSTAR_{name.upper()}")
}


_DONE: Final[set[tuple[str, ...]]] = set()

GATEWAY_VARIABLES: Final = {
    "PORT",  # of the NestJS example
    *(str(field.validation_alias or f"GATEWAY_{name.upper()}") for name, field in Config.model_fields.items()),
}


@dataclass
class Shell:
    """Where the commands of one block are run. `variables` are what the block may name, as `$NAME` or `NAME`."""

    stack: Stack
    postgres: Postgres
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    async def run(self, words: Words) -> None:
        """Run a command.

        Raises:
            AssertionError: it failed, it names what is not there, or nobody has said how it is run.
        """
        while words and (assigned := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            assert assigned[1] in VARIABLES | GATEWAY_VARIABLES, f"no such variable: {assigned[1]}"
            words = words[1:]
        if words:
            name = words[0] if words[0] != "sudo" else words[1]
            rest = words[1:] if words[0] != "sudo" else words[2:]
            assert name in _WAYS, f"{name}: say in tests/support/doc_commands.py how it is run"
            await _WAYS[name](self, rest)

    def filled(self, words: Words) -> list[str]:
        """The words with this shell's variables in place."""
        known = self.variables
        by_name = [re.sub(r"\$\{?([A-Z_]+)\}?", lambda match: known[match[1]], word) for word in words]
        return [known.get(word, word) for word in by_name]

    async def execute_once(self, *command: str) -> None:
        """Run a program, unless another page's block has run it: each start takes seconds of a core."""
        if command not in _DONE:
            await self.execute(*command)
            _DONE.add(command)

    async def execute(self, program: str | Path, *arguments: str | Path, **environment: str) -> str:
        """Run a program; returns its output."""
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=self.folder,
            env=clean_environment() | self.stack.environment | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=PIPE,
            stderr=PIPE,
        )
        out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode() + out.decode()
        return out.decode()


async def _protostar(shell: Shell, words: Words) -> None:
    check_usage(["protostar", *words])
    await shell.execute_once(sys.executable, "-m", "protostar", *shell.filled(words))


async def _arq(shell: Shell, words: Words) -> None:
    """A worker that ends when the queue is empty is the one that would go on, less the waiting."""
    await shell.execute_once(sys.executable, "-m", "arq", *words, *([] if "--check" in words else ["--burst"]))


async def _redis_cli(shell: Shell, words: Words) -> None:
    await shell.stack.redis.execute_command(*shell.filled(words))  # type: ignore[no-untyped-call]


async def _postgres_program(name: str, shell: Shell, words: Words) -> None:
    await shell.execute(shell.postgres._program(name), *shell.filled(words))


async def _python(shell: Shell, words: Words) -> None:
    assert words[0] == "-m", words
    # Benchmarks and the like take minutes: that their arguments are understood is what can be seen at once.
    known = await shell.execute(sys.executable, *words[:2], "--help")
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in known, f"{words[1]} has no {option}"


async def _demo(shell: Shell, words: Words) -> None:
    """`test_the_readme_shows_what_the_demo_prints` runs the demo."""
    _is_program("demo")
    demo_parser().parse_args(words)


async def _check(shell: Shell, words: Words) -> None:
    """What runs these tests; `-k` has to find some."""
    _is_program("check")
    if "-k" in words:
        wanted = words[list(words).index("-k") + 1]
        texts = [file.stem + file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
        assert any(wanted in text for text in texts), f"no test is called {wanted}"


async def _smoke(shell: Shell, words: Words) -> None:
    """It wants an engine that the checks don't install; its tests are collected by themselves."""
    _is_program("tests/smoke/run")
    assert not words


async def _installer(shell: Shell, words: Words) -> None:
    """`tests/project/test_deployment.py` builds what it installs and looks into it."""
    assert words[0] in ("install", "venv") or words[:2] == ["pip", "install"], words
    extras = cast(dict[str, Any], _project()["optional-dependencies"])
    for word in words:
        if named := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(named[1].split(",")) <= extras.keys(), word
        elif word.startswith(("./", "/")) or word.endswith(".txt"):
            assert (ROOT / word).exists() or word.startswith("/opt/"), word


async def _docker(shell: Shell, words: Words) -> None:
    if words[0] == "build":
        assert words[-1] == ".", words
        assert (ROOT / "Dockerfile").exists()
        return
    assert words[0] == "compose", words
    services, command = COMPOSE["services"], words[1]
    named = [word for word in words[2:] if not word.startswith("-")]
    named = [word.partition("=")[0] for word in named]
    if command in ("exec", "run"):
        assert named[0] in services, named[0]
        inner = list(words)[list(words).index(named[0]) + 1 :]
        await shell.run([word for word in inner if word])
    else:
        assert command in ("up", "down", "ps", "logs", "build", "config", "restart", "pull", "stop"), command
        assert set(named) <= services.keys(), named


async def _kubectl(shell: Shell, words: Words) -> None:
    verb, named = words[0], [word for word in words[1:] if not word.startswith("-")]
    if verb == "apply":
        assert (ROOT / named[-1]).exists(), named
    elif verb == "create":
        assert named[:2] == ["secret", "generic"], named
        literals = [word.partition("=")[2] for word in words if word.startswith("--from-literal=")]
        assert literals
        assert {literal.partition("=")[0] for literal in literals} <= VARIABLES, literals
    elif verb in ("delete", "scale", "wait", "logs", "rollout"):
        resource = named[-1] if "/" in named[-1] else "/".join(named[-2:])
        assert resource.lower().replace("jobs/", "job/") in CLUSTER, resource
    else:
        raise AssertionError(f"kubectl {verb}: say in tests/support/doc_commands.py how it is run")


async def _systemctl(shell: Shell, words: Words) -> None:
    units = [word.partition("@")[0] for word in words[1:] if word.startswith("protostar")]
    assert words[0] == "daemon-reload" or units, words
    assert all(f"{unit.removesuffix('.service')}.service" in UNITS for unit in units), units


async def _copy(shell: Shell, words: Words) -> None:
    named = [word for word in words if not word.startswith("-")]
    sources = [word for word in named[:-1] if "/" in word and not word.startswith("/")]
    assert sources, words
    for source in sources:
        assert list(ROOT.glob(source)), f"there is no {source}"


async def _export(shell: Shell, words: Words) -> None:
    for word in words:
        await shell.run([word])


async def _npm(shell: Shell, words: Words) -> None:
    """`tests/client/test_typescript.py` installs, compiles and runs the example."""
    folder = ROOT / "examples" / "typescript" / ("nestjs" if "nestjs" in words else "")
    scripts = json.loads((folder / "package.json").read_text())["scripts"]
    named = [word for word in words[1:] if not word.startswith("-") and word != "nestjs"]
    assert words[0] == "ci" or (words[0] == "run" and named[0] in scripts), words


async def _nothing(shell: Shell, words: Words) -> None:
    """It touches nothing of ours."""


_WAYS: Final[dict[str, Callable[[Shell, Words], Awaitable[None]]]] = {
    "protostar": _protostar,
    "arq": _arq,
    "redis-cli": _redis_cli,
    "valkey-cli": _redis_cli,
    "pg_dump": lambda shell, words: _postgres_program("pg_dump", shell, words),
    "pg_restore": lambda shell, words: _postgres_program("pg_restore", shell, words),
    "psql": lambda shell, words: _postgres_program("psql", shell, words),
    "python": _python,
    "./demo": _demo,
    "./check": _check,
    "./tests/smoke/run": _smoke,
    "pip": _installer,
    "uv": _installer,
    "docker": _docker,
    "kubectl": _kubectl,
    "systemctl": _systemctl,
    "cp": _copy,
    "export": _export,
    "npm": _npm,
    "useradd": _nothing,
    "install": _nothing,
}


def check_usage(words: Words) -> None:
    """See that a command in running text is one: `protostar reindex [--full]`, `./demo chat`, `python -m benchmarks.x`.

    Raises:
        AssertionError: there is no such command, or it has no such option.
    """
    plain = [word for word in re.sub(r"[\[\],|…]|\.\.\.", " ", " ".join(words)).split() if word]
    options = [word.partition("=")[0] for word in plain if word.startswith("--")]
    if plain[0] == "protostar" and len(plain) > 1:
        group = cast(click.Group, typer.main.get_command(app))
        assert plain[1] in [*group.commands, "--help"], f"there is no `protostar {plain[1]}`"
        if plain[1] in group.commands:
            known = {name for parameter in group.commands[plain[1]].params for name in parameter.opts}
            assert set(options) <= known | {"--help"}, f"`protostar {plain[1]}` has no {set(options) - known}"
    elif plain[0] == "./demo" and len(plain) > 1:
        assert re.search(rf"^    {re.escape(plain[1])} ", demo_parser().format_help(), re.MULTILINE), plain
    elif plain[:2] == ["python", "-m"]:
        file = ROOT / Path(*plain[2].split("."))
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), plain[2]
    elif plain[0] in ("./check", "./tests/smoke/run"):
        _is_program(plain[0])


def _is_program(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK), f"{name} can't be run"
    subprocess.run(["sh", "-n", ROOT / name], check=True)


def _project() -> dict[str, Any]:
    import tomllib

    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found

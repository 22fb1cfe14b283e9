"""The house keeps its plan: imports go one way, names live in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from arq import constants
from protostar_client import keys

ROOT = Path(__file__).resolve().parents[2]

# A room may import what stands on its right, and itself.
MAY_IMPORT = {
    "protostar_client": set(),
    "protostar.settings": set(),
    "models": {"protostar_client", "protostar.settings"},
    "rag": {"models", "protostar_client", "protostar.settings"},
    "tasks": {"rag", "models", "protostar_client", "protostar.settings"},
    "arq_settings": {"tasks", "rag", "models", "protostar_client", "protostar.settings"},
    "protostar.cli": {"tasks", "rag", "models", "protostar_client", "protostar.settings"},
    "stack": {"protostar_client"},
}
JOBS = (
    "generate_chat",
    "summarize_message",
    "roll_up_session",
    "reindex_corpus",
    "index_documents",
    "read_history",
)


def files_of(room: str) -> list[Path]:
    if room == "protostar_client":
        return sorted((ROOT / "client" / room).rglob("*.py"))
    folder = ROOT / room.replace(".", "/")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: import by the full name"
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_stands_below_it(room: str) -> None:
    files = files_of(room)
    assert files
    for path in files:
        packages = (*MAY_IMPORT, "tests")
        rooms = {package for name in imports_of(path) for package in packages if f"{name}.".startswith(f"{package}.")}
        assert rooms - {room} <= MAY_IMPORT[room], path.relative_to(ROOT)


def test_no_job_imports_another() -> None:
    jobs = {f"tasks.{name}" for name in JOBS}
    for name in JOBS:
        assert not imports_of(ROOT / "tasks" / f"{name}.py") & (jobs - {f"tasks.{name}"})


def test_the_engine_imports_nothing_of_chat() -> None:
    for path in files_of("tasks.engine"):
        foreign = {name for name in imports_of(path) if name.split(".")[0] in ("tasks", "rag", "models", "protostar")}
        assert all(name.startswith("tasks.engine.") for name in foreign), path


@pytest.mark.parametrize("room", ["tasks", "rag"])
def test_a_package_says_only_what_it_is_for(room: str) -> None:
    body = ast.parse((ROOT / room / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_only_settings_reads_the_environment() -> None:
    for room in MAY_IMPORT.keys() - {"stack", "protostar.settings"}:
        for path in files_of(room):
            assert not re.search(r"os\.environ|os\.getenv|from os import environ", path.read_text()), path


def test_only_one_module_names_redis_keys() -> None:
    own = re.compile(r"""["'](?:arq:|protostar:|chat:)[a-z-]+""")
    for room in ("tasks", "protostar.cli", "arq_settings", "protostar_client"):
        for path in files_of(room):
            if path.name != "keys.py":
                assert not own.search(path.read_text()), path
    for path in ROOT.glob("tasks/*/lua/*.lua"):
        code = "\n".join(line.split("--")[0] for line in path.read_text().splitlines())
        assert not own.search(code), path


def test_only_one_place_opens_a_transaction() -> None:
    for room in MAY_IMPORT:
        for path in files_of(room):
            if path.name != "transaction.py":
                assert "in_transaction(" not in path.read_text(), path


def test_every_script_says_what_it_takes_and_guarantees() -> None:
    for path in ROOT.glob("tasks/*/lua/*.lua"):
        if path.stem not in ("job", "admit"):
            header = path.read_text()
            assert "-- ARGV: " in header, path
            assert "-- Returns " in header, path


def test_our_key_names_are_arqs() -> None:
    assert constants.default_queue_name == keys.QUEUE
    assert constants.job_key_prefix == keys.JOB_PREFIX
    assert constants.in_progress_key_prefix == keys.LEASE_PREFIX
    assert constants.result_key_prefix == keys.RESULT_PREFIX
    assert constants.retry_key_prefix == keys.RETRY_PREFIX
    assert constants.abort_jobs_ss == keys.ABORT

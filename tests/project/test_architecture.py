"""Import directions, cycles, sizes, and what lives in one place only."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from arq import constants
from protostar_client import keys

ROOT = Path(__file__).resolve().parents[2]

MAX_MODULES_IN_A_FOLDER = 15
MAX_LINES = 350

# A package may import the packages on its right, and itself. A more specific name wins.
BASE = {"protostar", "protostar_client"}
MAY_IMPORT: dict[str, set[str]] = {
    "protostar_client": set(),
    "protostar": {"protostar_client"},
    "models": BASE,
    "rag": BASE | {"models"},
    "tasks.engine": {"protostar_client"},
    "tasks": BASE | {"models", "rag", "tasks.engine"},
    "arq_settings": BASE | {"models", "rag", "tasks", "tasks.engine"},
    "protostar.cli": BASE | {"models", "rag", "tasks", "tasks.engine"},
    "protostar.__main__": {"protostar.cli"},
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


@cache
def modules() -> dict[str, Path]:
    """Every product module by its full name; a package by the name of its folder."""
    found = {}
    for base, name in [(ROOT, name) for name in ("protostar", "models", "rag", "tasks", "stack", "arq_settings")] + [
        (ROOT / "client", "protostar_client")
    ]:
        paths = sorted((base / name).rglob("*.py")) or [base / f"{name}.py"]
        for path in paths:
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package_of(module: str) -> str:
    """The longest name in `MAY_IMPORT` that contains a module; empty for a module of someone else."""
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len, default="")


def files_of(package: str) -> list[Path]:
    """The files of a package, sub-packages included."""
    files = [path for module, path in modules().items() if f"{module}.".startswith(f"{package}.")]
    assert files, package
    return files


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules that a file imports anywhere in it, `TYPE_CHECKING` blocks and functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: import by the full name"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules() else node.module for name in names}
    return frozenset(found)


def cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Cycles of a graph, one after the other; each is cut before the next is searched."""
    graph = {module: set(imported) for module, imported in graph.items()}
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return
        except CycleError as error:
            cycle: list[str] = error.args[1]
            yield cycle[::-1]
            graph[cycle[1]].discard(cycle[0])


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package, ""}
    for module, path in modules().items():
        if package_of(module) == package:
            assert "tests" not in {name.partition(".")[0] for name in imports_of(path)}, path
            foreign = {name for name in imports_of(path) if package_of(name) not in allowed}
            assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: set(imports_of(path)) & modules().keys() for module, path in modules().items()}
    assert not [" -> ".join(cycle) for cycle in cycles(graph)]


def test_cycles_are_found() -> None:
    assert list(cycles({"a": {"b"}, "b": {"c"}, "c": set()})) == []
    found = list(cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"d2"}, "d2": {"d"}}))
    assert sorted(sorted(set(cycle)) for cycle in found) == [["a", "b", "c"], ["d", "d2"]]


def test_no_folder_has_too_many_modules() -> None:
    counts = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    names = {str(folder.relative_to(ROOT)): count for folder, count in counts.items()}
    assert not {name: n for name, n in names.items() if n > MAX_MODULES_IN_A_FOLDER}


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_no_job_imports_another() -> None:
    jobs = {f"tasks.{name}" for name in JOBS}
    for name in JOBS:
        assert not imports_of(ROOT / "tasks" / f"{name}.py") & (jobs - {f"tasks.{name}"})


def test_the_engine_imports_nothing_of_chat() -> None:
    for path in files_of("tasks.engine"):
        foreign = {name for name in imports_of(path) if name.split(".")[0] in ("tasks", "rag", "models", "protostar")}
        assert all(f"{name}.".startswith("tasks.engine.") for name in foreign), path


@pytest.mark.parametrize("package", ["tasks", "rag"])
def test_a_package_says_only_what_it_is_for(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_only_settings_reads_the_environment() -> None:
    for package in MAY_IMPORT.keys() - {"stack"}:
        for path in files_of(package):
            if path != ROOT / "protostar" / "settings.py":
                assert not re.search(r"os\.environ|os\.getenv|from os import environ", path.read_text()), path


def test_only_one_module_names_redis_keys() -> None:
    own = re.compile(r"""["'](?:arq:|protostar:|chat:)[a-z-]+""")
    for package in ("tasks", "protostar.cli", "arq_settings", "protostar_client"):
        for path in files_of(package):
            if path.name != "keys.py":
                assert not own.search(path.read_text()), path
    for path in ROOT.glob("tasks/*/lua/*.lua"):
        code = "\n".join(line.split("--")[0] for line in path.read_text().splitlines())
        assert not own.search(code), path


def test_only_one_place_opens_a_transaction() -> None:
    for package in MAY_IMPORT:
        for path in files_of(package):
            if path.name != "transaction.py":
                assert "in_transaction(" not in path.read_text(), path


def test_every_script_says_what_it_takes_and_guarantees() -> None:
    for path in ROOT.glob("tasks/*/lua/*.lua"):
        header = path.read_text()
        if not header.startswith("-- Shared by "):
            assert "-- ARGV: " in header, path
            assert "-- Returns " in header, path


def test_our_key_names_are_arqs() -> None:
    assert constants.default_queue_name == keys.QUEUE
    assert constants.job_key_prefix == keys.JOB_PREFIX
    assert constants.in_progress_key_prefix == keys.LEASE_PREFIX
    assert constants.result_key_prefix == keys.RESULT_PREFIX
    assert constants.retry_key_prefix == keys.RETRY_PREFIX
    assert constants.abort_jobs_ss == keys.ABORT

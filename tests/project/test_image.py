"""The image: what its Dockerfile says, and what comes of installing the very files that it copies.

No container engine is needed. `requirements.txt` alone decides which versions are installed, so this environment,
which it made, stands for the image's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from examples.gateway.__main__ import _parser
from stack.processes import Process, wait_until
from tests.support.doc_commands import VARIABLES, WORKER
from tests.support.stack_under_test import ROOT


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def image(target: str = "") -> list[tuple[str, str]]:
    """The instructions that make an image, its bases' among them; without a target the last stage's."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages[stage] = list(stages.get(base, ()))
        else:
            stages[stage].append((name, rest))
    return stages[target]


def copied() -> list[str]:
    """What the Dockerfile takes from the project."""
    lines = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    return [source for line in lines for source in line[:-1]]


def test_the_image_runs_a_worker() -> None:
    by_name = dict(image())
    assert json.loads(by_name["CMD"]) == WORKER
    assert json.loads(by_name["HEALTHCHECK"].partition("CMD ")[2]) == [WORKER[0], "--check", *WORKER[1:]]
    variables = {name for line in image() if line[0] == "ENV" for name in re.findall(r"\b(PROTOSTAR_\w+)=", line[1])}
    assert variables <= VARIABLES


@pytest.mark.parametrize("target", ["", "gateway"])
def test_an_image_has_neither_root_nor_what_built_it(target: str) -> None:
    by_name = dict(image(target))
    assert by_name["USER"].isdecimal()
    assert int(by_name["USER"]) > 0
    installs = [
        rest for name, rest in image(target) if name == "RUN" and re.search(r"\b(apt|apt-get|pip|uv|gcc)\b", rest)
    ]
    assert installs == []
    sources = [rest.split()[0] for name, rest in image(target) if name == "COPY"]
    assert all(source.startswith("--from=") or source == "examples/gateway" for source in sources)


def test_the_gateways_image_runs_the_gateway() -> None:
    program, *arguments = json.loads(dict(image("gateway"))["CMD"])
    assert (program, arguments[:2]) == ("python", ["-m", "examples.gateway"])
    assert _parser().parse_args(arguments[2:]).port == 8000
    assert "http://127.0.0.1:8000/healthz" in dict(image("gateway"))["HEALTHCHECK"]
    assert "/healthz" in (ROOT / "examples/gateway/app.py").read_text()


def test_the_build_takes_from_the_project_what_is_there_and_nothing_else() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied())
    assert all((ROOT / source).exists() for source in copied())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text()):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """What the image installs, built of a copy of what it copies."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source"
    source.mkdir()
    for name in copied():
        if "/" in name:
            continue  # the example, which is no part of what is installed
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(ROOT / name, source / name)
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("protostar-*.whl")
    return zipfile.ZipFile(built)


def test_what_the_image_installs_is_whole(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("protostar", "models", "rag", "tasks", "client/protostar_client"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".lua", ".md", ".json", ".txt", ".typed") and "__pycache__" not in file.parts:
                assert str(file.relative_to(ROOT)).removeprefix("client/") in names, file
    assert "arq_settings.py" in names
    assert not any(name.startswith("stack/") for name in names)
    [scripts] = [wheel.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "protostar = protostar.cli:main" in scripts


def test_a_worker_runs_from_what_the_image_installs(
    wheel: zipfile.ZipFile, redis_url: str, database_url: str, tmp_path: Path
) -> None:
    """In another folder, with the wheel's modules before those of the source tree."""
    site, corpus = tmp_path / "site", tmp_path / "corpus"
    wheel.extractall(site)
    corpus.mkdir()
    (corpus / "a.md").write_text("# 하나\n\n문서.\n")
    start = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.argv[0] = 'arq'; from arq.cli import cli; cli()"
    worker = Process(
        [sys.executable, "-I", "-c", start, WORKER[1], "--burst"],
        log=tmp_path / "log",
        cwd=corpus,
        env={
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "OPENAI_API_KEY": "key",
            "PROTOSTAR_CHAT_MODEL": "model",
            "PROTOSTAR_CORPUS_DIR": str(corpus),
        },
    )
    wait_until(lambda: not worker.running, timeout_s=60, what="the worker has emptied the queue")
    assert worker.exit_code == 0, worker.last_lines(30)
    assert "worker_starting" in worker.log.read_text()

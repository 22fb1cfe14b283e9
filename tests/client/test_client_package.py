"""The client as another service installs it: its wheel and what that declares, in a fresh environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CLIENT = Path(__file__).resolve().parents[2] / "client"
WORKERS_ONLY = (
    "arq",
    "tortoise",
    "asyncpg",
    "openai",
    "langchain_text_splitters",
    "tiktoken",
    "typer",
    "settings",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `client/`, built from a copy: a build leaves nothing in the source tree."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(CLIENT, folder / "client", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("protostar_client-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the wheel and what it requires, and nothing else."""
    home = tmp_path_factory.mktemp("service") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    (metadata,) = site_packages.glob("protostar_client-*.dist-info")
    _install_requirements(PathDistribution(metadata), site_packages, set())
    return home / "bin" / "python"


def _install_requirements(of: Distribution, site_packages: Path, done: set[str]) -> None:
    """Copy the distributions that `of` requires from this environment: an installer without a network."""
    for line in of.requires or []:
        requirement = Requirement(line)
        if requirement.name in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(requirement.name)
        required = distribution(requirement.name)
        assert requirement.specifier.contains(required.version), line
        for file in required.files or []:
            if ".." not in file.parts:
                target = site_packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(required.locate_file(file)), target)
        _install_requirements(required, site_packages, done)


def run(python: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [python, "-I", "-W", "error", "-c", program, *arguments],
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_scripts_the_schemas_the_types_marker_and_the_licence(wheel: Path) -> None:
    names = {name.partition("/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert {"lua/enqueue.lua", "lua/cancel.lua", "py.typed", "sync.py", "licenses/LICENSE"} <= names
    assert {"schemas/event.json", "schemas/generate_chat.request.json", "schemas/generate_chat.result.json"} <= names


def test_it_imports_alone_and_pulls_in_nothing_of_the_worker(python: Path) -> None:
    program = (
        "import sys, protostar_client as p, protostar_client.sync\n"
        "assert all(hasattr(p, name) for name in p.__all__)\n"
        "print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = run(python, program).split()
    assert "redis" in loaded
    assert not set(loaded) & {*WORKERS_ONLY, "tasks", "rag", "models", "cli"}


def test_importing_it_beside_the_worker_pulls_in_nothing_either() -> None:
    program = (
        "import sys, protostar_client.sync\nprint('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = run(Path(sys.executable), program).split()
    assert not set(loaded) & {*WORKERS_ONLY, "tasks", "rag", "models", "cli"}


def test_it_enqueues_from_the_fresh_environment(python: Path, redis_url: str) -> None:
    program = (
        "import sys\n"
        "from protostar_client.sync import ChatClient\n"
        "with ChatClient.connect(sys.argv[1]) as client:\n"
        "    turn = dict(user_uuid='6f1c2f6e-5a0f-4b7e-9d1c-0d4f9a1b2c3d', session_id='s', content='hello')\n"
        "    first = client.enqueue(**turn)\n"
        "    print(first.created, client.enqueue(**turn, job_id=first.job_id).created)"
    )
    assert run(python, program, redis_url).split() == ["True", "False"]

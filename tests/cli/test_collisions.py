"""Another project's `tasks`, `rag` or `models` is never imported in place of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack_under_test import ROOT, clean_environment


def run(folder: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"PYTHONPATH": path, "PROTOSTAR_CHAT_MODEL": "m", "OPENAI_API_KEY": "k"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=["tasks/__init__.py", "rag/__init__.py", "models/user.py", "models.py"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of another project; a folder without `__init__.py` is a package too."""
    file: Path = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    return file


@pytest.mark.parametrize("program", ["arq", "protostar"])
def test_a_foreign_package_before_ours_ends_the_program_with_one_line(
    foreign: Path, tmp_path: Path, program: str
) -> None:
    arguments = ["arq_settings.WorkerSettings"] if program == "arq" else ["search", "질문"]
    done = run(tmp_path, "-m", program, *arguments, path=f"{tmp_path}:{ROOT}:{ROOT / 'client'}")
    if foreign.name == "user.py":  # Python prefers a whole package later on the path to a folder without `__init__.py`
        assert "Python imports" not in done.stderr
        return
    name = foreign.relative_to(tmp_path).parts[0].removesuffix(".py")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"protostar: Python imports '{name}' from {tmp_path}")


def test_a_foreign_package_after_ours_is_no_obstacle(foreign: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "-P", "-c", "import arq_settings", path=f"{ROOT}:{ROOT / 'client'}:{tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")

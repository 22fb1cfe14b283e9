"""The peers' own venv, made when it is first needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_WANTED: Final = Path(__file__).with_name("peers.txt")


def peers_python(root: Path) -> Path:
    """The interpreter of a venv below `root/.protostar` that has what `peers.txt` names."""
    venv = root / ".protostar" / "benchmark-peers"
    python, stamp = venv / "bin" / "python", venv / "peers.txt"
    if not stamp.exists() or stamp.read_bytes() != _WANTED.read_bytes():
        shutil.rmtree(venv, ignore_errors=True)
        venv.parent.mkdir(exist_ok=True)
        _install(venv, python)
        shutil.copyfile(_WANTED, stamp)
    return python


def _install(venv: Path, python: Path) -> None:
    if uv := shutil.which("uv"):
        _run(uv, "venv", "--quiet", "--python", sys.executable, venv)
        _run(uv, "pip", "install", "--quiet", "--python", python, "-r", _WANTED)
    else:
        _run(sys.executable, "-m", "venv", venv)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", _WANTED)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)

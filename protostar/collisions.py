"""Ends the program with one line where another project's package is imported in place of ours.

Our packages have the short names `tasks`, `rag` and `models`. `python -m` and `PYTHONPATH` put the current folder first
on the import path, so a folder of the same name in another project would be imported instead. Importing this module
does the check: each program imports it before those packages.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = ("tasks", "rag", "models")
ROOT: Final = Path(__file__).resolve().parent.parent


def collision() -> str | None:
    """Describe the first package that is not ours, and the remedy; None where all are."""
    for name in PACKAGES:
        found = _origin(name)
        if found is not None and found.parent != ROOT / name and found != ROOT / f"{name}.py":
            return (
                f"Python imports {name!r} from {found}, and Protostar needs its own from {ROOT / name}: start the "
                "worker with the command `arq arq_settings.WorkerSettings` (not `python -m arq`) and without that "
                "folder in PYTHONPATH, or from another folder"
            )
    return None


def _origin(name: str) -> Path | None:
    """The file that `import name` runs, or a file of the folder that it stands for."""
    try:
        spec = find_spec(name)
    except ValueError:  # imported already, by something that is not an ordinary import
        return None
    if spec is None:
        return None
    if spec.origin and spec.has_location:
        return Path(spec.origin).resolve()
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]).resolve() / "__init__.py" if folders else None


if (_problem := collision()) is not None:
    sys.exit(f"protostar: {_problem}")

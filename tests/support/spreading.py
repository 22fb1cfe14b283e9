"""Spreads the tests over xdist's workers: each by itself, except those of a module with costly fixtures of its own.

Fixtures of the module's or the session's scope start servers or install packages. A module that has some, or takes
some from `tests.support`, stays on one worker. (xdist's own groups are not used: pytest 9 ignores them.)
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_COSTLY: Final = re.compile(r'scope="(?:module|session)"|^pytest_plugins = ', re.MULTILINE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Take the place of xdist's scheduler in `--dist loadscope`."""
    return Spreading(config, log) if config.getvalue("dist") == "loadscope" else None


class Spreading(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's scheduler of groups of tests, the largest group first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _is_costly(Path(self.config.rootpath, file)) else nodeid


@cache
def _is_costly(file: Path) -> bool:
    return bool(_COSTLY.search(file.read_text()))

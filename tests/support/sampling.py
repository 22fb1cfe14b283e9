"""Exhaustive matrices: `./check` runs a sample of their cases, `./check --full` all of them.

`@pytest.mark.sample(4)` on a test draws 4 of its cases with the seed that the run prints. Cases marked
`regression` (they found a bug once) always run. A test that is named on the command line is never reduced.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full` and `--seed`."""
    parser.addoption("--full", action="store_true", help="run all cases of the exhaustive matrices")
    parser.addoption("--seed", type=int, help="draw the cases that another run drew")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; choose the seed, or take over the one that the run has chosen."""
    config.addinivalue_line("markers", "sample(n): without --full, run n drawn cases of this test")
    config.addinivalue_line("markers", "regression: a case of a sampled test that always runs")
    if given := getattr(config, "workerinput", None):
        config.option.seed = given["seed"]
    elif config.option.seed is None:
        config.option.seed = random.randrange(1_000_000)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the seed to a process of xdist: all of them must draw the same cases."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    """Print how to repeat the sample."""
    if config.option.full:
        return "matrices: all cases (--full)"
    return f"matrices: a sample, repeated by --seed {config.option.seed}; --full runs all cases"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the cases that were not drawn."""
    if config.option.full or any("::" in argument for argument in config.args):
        return
    tests: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample") and not item.get_closest_marker("regression"):
            tests[str(item.path), getattr(item, "originalname", item.name)].append(item)
    dropped: set[pytest.Item] = set()
    for name, cases in tests.items():
        count = _sample_size(cases[0])
        drawn = random.Random(f"{config.option.seed}{name}").sample(cases, min(count, len(cases)))
        dropped |= set(cases) - set(drawn)
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=list(dropped))


def _sample_size(item: pytest.Item) -> int:
    marker = item.get_closest_marker("sample")
    assert marker is not None
    return int(marker.args[0])

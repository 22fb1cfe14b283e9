"""Fixtures of the example gateway and its users; a test module includes them with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stack.web import Gateway
from tests.support.stack_under_test import Stack
from tests.support.visitor import Visitor, gateway_before, visitor_of


@pytest.fixture(scope="session")
def gateway(shared_places: tuple[str, str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of the shared worker; its tests use `shared_stack` too."""
    redis_url, database_url, _ = shared_places
    with gateway_before(redis_url, database_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
async def visitor(gateway: Gateway, shared_stack: Stack) -> AsyncIterator[Visitor]:
    """A user whose questions the shared worker answers."""
    async with visitor_of(gateway.url) as found:
        yield found

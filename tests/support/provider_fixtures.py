"""Fixtures of all adapters in front of the model server; a test module includes them with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from rag.providers import Provider
from tests.support.asking import SHORT_S, Make, documented, shipped
from tests.support.model_control import ModelControl, running_model_server


@pytest.fixture(scope="session")
def provider_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelControl]:
    with running_model_server(tmp_path_factory.mktemp("provider")) as control:
        yield control


@pytest.fixture
def model(provider_server: ModelControl) -> ModelControl:
    provider_server.reset()
    return provider_server


@pytest.fixture(params=["openai", "openrouter", "documented"])
def make(request: pytest.FixtureRequest) -> Make:
    return documented() if request.param == "documented" else shipped(request.param)


@pytest.fixture
async def provider(make: Make, model: ModelControl) -> AsyncIterator[Provider]:
    made = make(model.base_url)
    yield made
    await made.close()


@pytest.fixture
async def impatient(make: Make, model: ModelControl) -> AsyncIterator[Provider]:
    made = make(model.base_url, first_token_s=SHORT_S, stall_s=SHORT_S)
    yield made
    await made.close()

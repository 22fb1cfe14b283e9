"""Real servers for the tests: one Redis and one PostgreSQL a run, clean for every test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from models.migrate import migrate
from stack.places import Account, server_account, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process
from stack.redis import Redis
from tests.house import House, until
from tests.model_control import ModelControl, running_model_server

DOCUMENT = """# 전달 보장

워커가 죽으면 작업은 다른 워커가 이어받는다. 임대 시간은 15초이다.

## 재시도

일시적인 오류는 지수 백오프로 다시 시도한다.
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def account() -> Account | None:
    """Who the servers run as."""
    return server_account()


@pytest.fixture(scope="session")
def base_folder(account: Account | None) -> Iterator[Path]:
    """Where the servers of this run live."""
    with temporary_base_folder(account) as base:
        yield base


@pytest.fixture(scope="session")
def redis_server(base_folder: Path, account: Account | None) -> Iterator[Redis]:
    """The Redis of this run; a test that stops or kills it need not start it again."""
    with Redis(base_folder, account) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(base_folder: Path, account: Account | None) -> Iterator[Postgres]:
    """The PostgreSQL of this run; a test that stops or kills it need not start it again."""
    with Postgres(base_folder, account, durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_database(postgres_server: Postgres) -> str:
    """The name of a database that is migrated once and copied for every test."""
    name = "migrated"
    postgres_server.create_database(name)
    asyncio.run(migrate(postgres_server.url(name)))
    return name


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """An empty Redis."""
    if not redis_server.running:
        redis_server.start()
    redis_server.thaw()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def database_url(postgres_server: Postgres, migrated_database: str) -> Iterator[str]:
    """A migrated database without rows."""
    if not postgres_server.running:
        postgres_server.start()
    postgres_server.thaw()
    name = f"test_{next(_numbers)}"
    postgres_server.create_database(name, template=migrated_database)
    yield postgres_server.url(name)
    if postgres_server.running:
        postgres_server.thaw()
        postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelControl]:
    """The model server of this run."""
    with running_model_server(tmp_path_factory.mktemp("model")) as control:
        yield control


@pytest.fixture
async def house(
    redis_url: str, database_url: str, model_server: ModelControl, tmp_path: Path
) -> AsyncIterator[House]:
    """Everything a worker needs, with a small corpus."""
    model_server.reset()
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "delivery.md").write_text(DOCUMENT)
    house = House(redis_url, database_url, model_server, tmp_path, corpus)
    yield house
    await house.close()


@pytest.fixture
async def worker(house: House) -> Process:
    """A worker that serves and has indexed the corpus."""
    worker = await house.start_worker()

    async def indexed() -> object:
        return await house.rows("SELECT 1 FROM documents")

    await until(indexed, "the corpus is indexed", house.logs)
    return worker

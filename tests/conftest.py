"""Starts real servers for the tests: one Redis and one PostgreSQL per process, clean for every test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

import protostar.log  # noqa: F401  (configures structlog)
from models.migrate import migrate
from stack.places import Account, server_account, temporary_base_folder
from stack.postgres import Postgres
from stack.processes import Process
from stack.redis import Redis
from tests.support.model_control import ModelControl, running_model_server
from tests.support.stack_under_test import Stack, until

DOCUMENT = """# 전달 보장

워커가 죽으면 작업은 다른 워커가 이어받는다. 임대 시간은 15초이다.

## 재시도

일시적인 오류는 지수 백오프로 다시 시도한다.
"""

pytest_plugins = ["tests.support.sampling", "tests.support.spreading"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def account() -> Account | None:
    """The account that the servers run as."""
    return server_account()


@pytest.fixture(scope="session")
def base_folder(account: Account | None) -> Iterator[Path]:
    """The folder of this run's servers."""
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


def make_corpus(folder: Path) -> Path:
    """A corpus of one document."""
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "delivery.md").write_text(DOCUMENT)
    return corpus


@pytest.fixture
async def stack(redis_url: str, database_url: str, model_server: ModelControl, tmp_path: Path) -> AsyncIterator[Stack]:
    """Everything a worker needs, for one test that starts its own."""
    model_server.reset()
    stack = Stack(redis_url, database_url, model_server, tmp_path, make_corpus(tmp_path))
    yield stack
    await stack.close()


@pytest.fixture(scope="session")
def shared_places(
    account: Account | None,
    postgres_server: Postgres,
    migrated_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str, Path]]:
    """A Redis that no test empties, a database and a folder, for one worker that many tests share."""
    postgres_server.create_database("shared", template=migrated_database)
    folder = tmp_path_factory.mktemp("shared")
    make_corpus(folder)
    with temporary_base_folder(account) as base, Redis(base, account) as server:
        yield server.url, postgres_server.url("shared"), folder


@pytest.fixture(scope="session")
def shared_workers() -> Iterator[list[Process]]:
    """The shared worker, once a test has started it."""
    workers: list[Process] = []
    yield workers
    for worker in workers:
        worker.stop()


@pytest.fixture
async def shared_stack(
    shared_places: tuple[str, str, Path], shared_workers: list[Process], model_server: ModelControl
) -> AsyncIterator[Stack]:
    """A stack whose worker serves other tests too: use sessions and job ids of your own, and leave it alive."""
    redis_url, database_url, folder = shared_places
    model_server.reset()
    stack = Stack(redis_url, database_url, model_server, folder, folder / "corpus")
    stack.workers = shared_workers
    # One test's bad provider is not the next one's.
    stack.environment["PROTOSTAR_PROVIDER_WAIT"] = "0"
    if not shared_workers:
        await stack.start_worker()

        async def indexed() -> object:
            return await stack.rows("SELECT 1 FROM documents")

        await until(indexed, "the corpus is indexed", stack.logs)

    async def has_followed_up() -> bool:
        queued = await stack.redis.zrange("arq:queue", 0, -1)
        follow_ups = [job_id for job_id in queued if job_id.startswith((b"summary:", b"rollup:"))]
        return not follow_ups and not await stack.rows("SELECT 1 FROM outbox_jobs")

    # A summary of the last test's answer would take what this test scripts.
    await until(has_followed_up, "the last test's summaries are written", stack.logs)
    yield stack
    model_server.reset()
    assert shared_workers[0].running, stack.logs()
    await stack.disconnect()

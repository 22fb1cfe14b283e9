"""PostgreSQL's index of vectors: where the server has pgvector and where it has not, answers are the same."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from tortoise import Tortoise
from tortoise.migrations.autodetector import MigrationAutodetector

from models.database import connect, tortoise_config
from rag.providers.embedder import Vectors
from rag.search import vector_index
from rag.search.postings import Live
from rag.search.snapshot import read_live, snapshot
from rag.search.vector_index import fits_this_cpu, keep_vector_index, search_index
from rag.search.vectors import VectorCache
from stack.postgres import Postgres

NUMBERS = 256
CHUNKS = 6000
FEW, FEW_ENOUGH = 150, 100
TOP = 10
DICE = np.random.default_rng(20)

# pgvector is in the package of the tests' server, but on a CPU that it was not built for it must not be touched.
CAN_INDEX = fits_this_cpu()


def random_vectors(count: int) -> Vectors:
    rows = DICE.standard_normal((count, NUMBERS)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


async def run(statement: str, *arguments: Any) -> list[dict[str, Any]]:
    return await Tortoise.get_connection("default").execute_query_dict(statement, list(arguments))


async def make_generation() -> int:
    """An empty generation that serves, with a document."""
    await run("UPDATE generations SET is_current = FALSE")
    made = await run(
        "INSERT INTO generations (settings, is_current, embedding_model, has_vectors) "
        "VALUES ('', TRUE, 'model', TRUE) RETURNING id"
    )
    await run("INSERT INTO documents (path) VALUES ('a.md') ON CONFLICT DO NOTHING")
    return int(made[0]["id"])


async def add_chunks(generation_id: int, vectors: Vectors) -> list[int]:
    """A chunk for every vector; returns their ids."""
    made = await run(
        "INSERT INTO chunks (document_id, generation_id, position, heading, text, start_offset, end_offset, "
        "token_count, term_count, content_hash) SELECT documents.id, $1, number, '', '', 0, 0, 0, 0, '' "
        "FROM documents, generate_series(1, $2::int) AS number RETURNING id",
        generation_id,
        len(vectors),
    )
    ids = sorted(row["id"] for row in made)
    await run(
        "INSERT INTO chunk_vectors (chunk_id, vector) SELECT * FROM unnest($1::bigint[], $2::bytea[])",
        ids,
        [row.tobytes() for row in vectors.astype("<f2")],
    )
    await run("UPDATE generations SET vectors_version = vectors_version + 1 WHERE id = $1", generation_id)
    return ids


async def live() -> Live:
    async with snapshot() as connection:
        found = await read_live(connection)
    assert found is not None
    return found


async def nearest(question: Vectors, cache: VectorCache | None = None) -> list[int]:
    found = await (cache or VectorCache()).search(await live(), question, TOP)
    assert found is not None
    assert list(found.cosines.values()) == sorted(found.cosines.values(), reverse=True)
    return list(found.cosines)


def recall(found: list[list[int]], wanted: list[list[int]]) -> float:
    return float(np.mean([len(set(ours) & set(theirs)) / TOP for ours, theirs in zip(found, wanted, strict=True)]))


async def tables() -> list[str]:
    rows = await run("SELECT relname FROM pg_class WHERE relname LIKE 'vectors\\_of\\_%' AND relkind = 'r'")
    return [row["relname"] for row in rows]


async def plan() -> str:
    """How PostgreSQL would look for the nearest; nothing where there is no index."""
    async with snapshot() as connection:
        rows = []
        for table in await tables():
            await connection.fetch(vector_index._PREPARE, table, str(vector_index._LOOKED_AT))
            statement = vector_index._NEAREST.format(table=table)
            rows = await connection.fetch(f"EXPLAIN {statement}", str(random_vectors(1)[0].tolist()), TOP)
    return "\n".join(row[0] for row in rows)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is made for a few vectors too."""
    monkeypatch.setattr(vector_index, "INDEXED_FROM_BYTES", FEW_ENOUGH * NUMBERS * 4)


@pytest.fixture
async def index_database(database_url: str, postgres_server: Postgres) -> AsyncIterator[None]:
    """A connection to a database that prefers an index where a scan of all rows, which is exact, is as cheap."""
    name = urlsplit(database_url).path.removeprefix("/")
    postgres_server.query(name, f"ALTER DATABASE {name} SET enable_seqscan = off")
    async with connect(database_url):
        yield


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[None]:
    async with connect(database_url):
        yield


@pytest.fixture
async def plain_user(database_url: str, postgres_server: Postgres) -> AsyncIterator[None]:
    """A connection to a database without pgvector, by a user who may not create it, as many servers' users are."""
    name = urlsplit(database_url).path.removeprefix("/")
    postgres_server.query(name, f"CREATE ROLE plain_{name} LOGIN")
    for what in ("ALL TABLES IN SCHEMA public", "ALL SEQUENCES IN SCHEMA public", "SCHEMA public"):
        postgres_server.query(name, f"GRANT ALL ON {what} TO plain_{name}")
    async with connect(database_url.replace("//protostar@", f"//plain_{name}@")):
        yield


async def test_the_index_finds_what_exact_search_finds(small: None, index_database: None) -> None:
    questions = random_vectors(50)
    generation_id = await make_generation()
    await add_chunks(generation_id, random_vectors(CHUNKS))
    exact = [await nearest(question) for question in questions]

    await keep_vector_index(generation_id)
    assert (await search_index(await live(), questions[0], TOP) is not None) == CAN_INDEX
    assert await tables() == [f"vectors_of_{generation_id}"][:CAN_INDEX]
    assert recall([await nearest(question) for question in questions], exact) >= 0.95
    assert ("Index Scan using vectors_of" in await plan()) == CAN_INDEX


@pytest.mark.parametrize("limit", [TOP, 100])
async def test_the_index_is_what_answers(small: None, database: None, limit: int) -> None:
    generation_id = await make_generation()
    await add_chunks(generation_id, random_vectors(FEW))
    await keep_vector_index(generation_id)
    cache = VectorCache()
    found = await cache.search(await live(), random_vectors(1)[0], limit)
    assert found is not None
    assert len(found.cosines) == limit
    assert (cache._matrix is None) == CAN_INDEX


async def test_chunks_that_are_not_near_are_compared_too(small: None, database: None) -> None:
    vectors = random_vectors(FEW)
    generation_id = await make_generation()
    ids = await add_chunks(generation_id, vectors)
    await keep_vector_index(generation_id)
    stored = vectors.astype("<f2").astype(np.float32)
    question = random_vectors(1)[0]
    farthest = ids[int(np.argmin(stored @ question))]
    for setting in ("auto", "exact"):
        await keep_vector_index(generation_id, wanted=setting == "auto")
        found = await VectorCache().search(await live(), question, TOP, also=[farthest, 0])
        assert found is not None
        assert len(found.cosines) == TOP + 1
        cosines = stored @ question
        assert found.cosines[farthest] == pytest.approx(float(cosines.min()), abs=0.01)
        assert (found.mean, found.spread) == pytest.approx((cosines.mean(), cosines.std()), abs=0.001)


async def test_without_the_extension_search_is_exact(
    small: None, plain_user: None, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = random_vectors(FEW)
    generation_id = await make_generation()
    ids = await add_chunks(generation_id, vectors)
    with caplog.at_level("INFO", "protostar.vectors"):
        await keep_vector_index(generation_id)
    assert ("pgvector_not_created search=exact" in caplog.text) == CAN_INDEX
    assert await tables() == []
    stored = vectors.astype("<f2").astype(np.float32)
    for question in random_vectors(20):
        best = np.argsort(-(stored @ question))[:TOP]
        assert await nearest(question) == [ids[place] for place in best]


async def test_an_index_that_breaks_fails_no_question_and_is_made_again(
    small: None, database: None, caplog: pytest.LogCaptureFixture
) -> None:
    questions = random_vectors(20)
    generation_id = await make_generation()
    await add_chunks(generation_id, random_vectors(FEW))
    exact = [await nearest(question) for question in questions]
    await keep_vector_index(generation_id)

    await run("DROP EXTENSION IF EXISTS vector CASCADE")
    cache = VectorCache()
    assert [await nearest(question, cache) for question in questions] == exact
    assert caplog.text.count("vector_index_failed search=exact") == CAN_INDEX

    await keep_vector_index(generation_id)
    assert (await search_index(await live(), questions[0], TOP) is not None) == CAN_INDEX
    assert recall([await nearest(question) for question in questions], exact) >= 0.95


async def test_the_index_follows_every_change(small: None, database: None) -> None:
    generation_id = await make_generation()
    ids = await add_chunks(generation_id, random_vectors(FEW))
    await keep_vector_index(generation_id)
    new = random_vectors(3)
    new_ids = await add_chunks(generation_id, new)
    await run("DELETE FROM chunks WHERE id = ANY ($1::bigint[])", ids[:20])
    await keep_vector_index(generation_id)
    for id_, vector in zip(new_ids, new, strict=True):
        assert (await nearest(vector))[0] == id_
    if CAN_INDEX:
        kept = await run(f"SELECT chunk_id FROM vectors_of_{generation_id}")
        assert {row["chunk_id"] for row in kept} == {*ids[20:], *new_ids}


async def test_only_a_large_generation_that_serves_has_an_index(small: None, database: None) -> None:
    first = await make_generation()
    ids = await add_chunks(first, random_vectors(FEW))
    await keep_vector_index(first)
    assert await tables() == [f"vectors_of_{first}"][:CAN_INDEX]

    second = await make_generation()
    await add_chunks(second, random_vectors(2 * FEW)[:, : NUMBERS // 2])  # another model
    await keep_vector_index(second)
    assert await tables() == [f"vectors_of_{second}"][:CAN_INDEX]

    await run("DELETE FROM chunks WHERE generation_id = $1 AND id > $2", second, ids[-1] + 2 * FEW_ENOUGH - 1)
    await keep_vector_index(second)
    assert await tables() == []
    assert (await live()).embedding_model == "model"


async def test_an_index_that_is_not_wanted_goes(small: None, database: None) -> None:
    generation_id = await make_generation()
    await add_chunks(generation_id, random_vectors(FEW))
    await keep_vector_index(generation_id)
    await keep_vector_index(generation_id, wanted=False)
    assert await tables() == []
    assert await search_index(await live(), random_vectors(1)[0], TOP) is None


def test_pgvector_is_left_alone_where_the_cpu_lacks_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not fits_this_cpu()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse2 avx\n")
    assert not fits_this_cpu()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 bmi1 bmi2 f16c fma movbe\n")
    assert fits_this_cpu()


async def test_on_such_a_cpu_there_is_no_index(small: None, database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "fits_this_cpu", lambda: False)
    generation_id = await make_generation()
    await add_chunks(generation_id, random_vectors(FEW))
    await keep_vector_index(generation_id)
    assert await tables() == []
    assert await run("SELECT 1 FROM pg_extension WHERE extname = 'vector'") == []
    assert await nearest(random_vectors(1)[0])


async def test_the_migrations_make_what_the_models_say(database_url: str) -> None:
    async with connect(database_url):
        assert Tortoise.apps
        assert await MigrationAutodetector(Tortoise.apps, tortoise_config(database_url)["apps"]).changes() == []

"""The vectors of chunks: completed after an index run, and searched by an index or exactly in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import numpy as np
import numpy.typing as npt
import structlog
from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.index.drafts import text_to_embed
from rag.providers.embedder import Embedder, Vectors
from rag.search.postings import Ids, Live
from rag.search.vector_index import LONGEST_LIST, STORED, Near, search_index

logger = structlog.stdlib.get_logger("protostar.vectors")

_WINDOW: Final = 1000
_LOADED_AT_ONCE: Final = 5000


async def lend_vectors(generation_id: int, model: str) -> None:
    """Give chunks of a generation the vectors of others that say the same, in any generation of that model."""
    database = Tortoise.get_connection("default")
    await database.execute_query(
        "UPDATE generations SET embedding_model = $2 WHERE id = $1 AND embedding_model <> $2", [generation_id, model]
    )
    async for rows in chunks_without_vectors(generation_id):
        await _lend(generation_id, [row["id"] for row in rows], model)


async def complete_vectors(generation_id: int, embedder: Embedder) -> int:
    """Embed what lacks a vector, and say in the generation's row that all is there; returns how many texts it was.

    What was done is kept whatever comes: the next run goes on from there.

    Raises:
        ProviderError: the provider did not give the vectors.
    """
    database = Tortoise.get_connection("default")
    embedded = 0
    async for rows in chunks_without_vectors(generation_id):
        vectors = await embedder.embed([text_to_embed(row["heading"], row["text"]) for row in rows])
        await _store(generation_id, [row["id"] for row in rows], vectors)
        embedded += len(rows)
    await database.execute_query(
        "UPDATE generations SET has_vectors = TRUE WHERE id = $1 AND NOT has_vectors", [generation_id]
    )
    if embedded:
        logger.info("chunks_embedded", generation=generation_id, chunks=embedded, model=embedder.model)
    return embedded


async def embedded_hashes(hashes: Sequence[bytes], model: str) -> frozenset[bytes]:
    """Those of some chunks' hashes for which a model's vector is at hand."""
    async with Tortoise.get_connection("default").acquire_connection() as connection:
        return frozenset(row["content_hash"] for row in await connection.fetch(_EMBEDDED, list(hashes), model))


async def chunks_without_vectors(generation_id: int) -> AsyncIterator[list[dict[str, Any]]]:
    """The chunks of a generation that lack a vector: their `id`, `document_id`, `heading` and `text`."""
    last_id = 0
    while rows := await Tortoise.get_connection("default").execute_query_dict(
        _LACKING, [generation_id, last_id, _WINDOW]
    ):
        last_id = rows[-1]["id"]
        yield rows


async def _lend(generation_id: int, chunk_ids: Sequence[int], model: str) -> None:
    async def work(connection: BaseDBAsyncClient) -> None:
        if await connection.execute_query_dict(_LEND, [list(chunk_ids), model]):
            await connection.execute_query(_NEXT_VERSION, [generation_id])

    await transact(work)


async def _store(generation_id: int, chunk_ids: Sequence[int], vectors: Vectors) -> None:
    stored = [row.tobytes() for row in vectors.astype(STORED)]

    async def work(connection: BaseDBAsyncClient) -> None:
        database: Any = connection._connection  # asyncpg's, for arrays of bytes
        await database.execute(_STORE, list(chunk_ids), stored)
        await connection.execute_query(_NEXT_VERSION, [generation_id])

    if stored:
        await transact(work)


@dataclass(frozen=True, slots=True)
class _Matrix:
    generation_id: int
    version: int
    chunk_ids: npt.NDArray[np.int64]
    rows: Vectors


@dataclass(slots=True)
class VectorCache:
    """The vectors of the generation that serves: in PostgreSQL's index, or else in this process.

    In the process they are one matrix of single precision.
    """

    _matrix: _Matrix | None = None
    _failed_on: tuple[int, int] | None = None
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def search(
        self, live: Live, question: Vectors, limit: int, also: Sequence[int] = (), within: Ids | None = None
    ) -> Near | None:
        """The chunks nearest to a question, and some others; None where there is nothing to compare.

        `within` are the only chunks to compare, `also` among them; None compares all.
        """
        if near := await self._by_index(live, question, limit, also, within):
            self._matrix = None
            return near
        matrix = await self._current(live)
        if not len(matrix.chunk_ids) or matrix.rows.shape[1] != question.shape[0]:
            return None
        return await asyncio.to_thread(_nearest, matrix, question, limit, also, within)

    async def _by_index(
        self, live: Live, question: Vectors, limit: int, also: Sequence[int], within: Ids | None
    ) -> Near | None:
        version = (live.generation_id, live.vectors_version)
        if not live.has_vector_index or limit > LONGEST_LIST or version == self._failed_on:
            return None
        try:
            near = await search_index(live, question, limit, also, within)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # Not again before something changed: what fails at every question costs every question time.
            self._failed_on = version
            logger.warning("vector_index_failed", search="exact", error=type(error).__name__, reason=error)
            return None
        return near if near and near.cosines else None

    async def _current(self, live: Live) -> _Matrix:
        async with self._one_at_a_time:
            matrix = self._matrix
            if matrix is None or matrix.generation_id != live.generation_id or matrix.version < live.vectors_version:
                matrix = self._matrix = await _load(live, matrix)
            return matrix


def _nearest(matrix: _Matrix, question: Vectors, limit: int, also: Sequence[int], within: Ids | None) -> Near | None:
    ids, scores = matrix.chunk_ids, matrix.rows @ question
    if within is not None:
        kept = np.isin(ids, within)
        ids, scores = ids[kept], scores[kept]
        if not len(ids):
            return None
    best = np.arange(len(scores)) if len(scores) <= limit else np.argpartition(-scores, limit)[:limit]
    best = best[np.argsort(-scores[best], kind="stable")]
    others = np.flatnonzero(np.isin(ids, list(also)))
    places = np.concatenate([best, others])
    cosines = dict(zip(ids[places].tolist(), scores[places].tolist(), strict=True))
    return Near(cosines, float(scores.mean()), float(scores.std()))


async def _load(live: Live, before: _Matrix | None) -> _Matrix:
    """Read what the matrix before lacks, and leave out what is gone."""
    database = Tortoise.get_connection("default")
    rows = await database.execute_query_dict(_ALL_IDS, [live.generation_id])
    ids = np.asarray([row["chunk_id"] for row in rows], dtype=np.int64)
    if before is not None and before.generation_id == live.generation_id:
        kept = np.isin(before.chunk_ids, ids, assume_unique=True)
        known, parts = before.chunk_ids[kept], [before.rows[kept]]
    else:
        known, parts = np.zeros(0, np.int64), []
    missing = np.setdiff1d(ids, known, assume_unique=True)
    found = [known]
    for start in range(0, len(missing), _LOADED_AT_ONCE):
        wanted = missing[start : start + _LOADED_AT_ONCE].tolist()
        read = await database.execute_query_dict(_VECTORS, [wanted])
        if read:
            stored = np.frombuffer(b"".join(row["vector"] for row in read), dtype=STORED)
            parts.append(stored.reshape(len(read), -1).astype(np.float32))
            found.append(np.asarray([row["chunk_id"] for row in read], dtype=np.int64))
    vectors = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return _Matrix(live.generation_id, live.vectors_version, np.concatenate(found), vectors)


_NEXT_VERSION: Final = "UPDATE generations SET vectors_version = vectors_version + 1 WHERE id = $1"
_LACKING: Final = """
SELECT chunks.id, chunks.document_id, chunks.heading, chunks.text
FROM chunks LEFT JOIN chunk_vectors ON chunk_vectors.chunk_id = chunks.id
WHERE chunks.generation_id = $1 AND chunks.id > $2 AND chunk_vectors.chunk_id IS NULL
ORDER BY chunks.id LIMIT $3
"""
_EMBEDDED: Final = """
SELECT DISTINCT chunks.content_hash FROM chunks
JOIN generations ON generations.id = chunks.generation_id AND generations.embedding_model = $2
JOIN chunk_vectors ON chunk_vectors.chunk_id = chunks.id
WHERE chunks.content_hash = ANY ($1::bytea[])
"""
_LEND: Final = """
INSERT INTO chunk_vectors (chunk_id, vector)
SELECT DISTINCT ON (new.id) new.id, chunk_vectors.vector
FROM chunks AS new
JOIN chunks AS old ON old.content_hash = new.content_hash AND old.id <> new.id
JOIN generations ON generations.id = old.generation_id AND generations.embedding_model = $2
JOIN chunk_vectors ON chunk_vectors.chunk_id = old.id
WHERE new.id = ANY ($1::bigint[])
ON CONFLICT (chunk_id) DO NOTHING RETURNING chunk_id
"""
_STORE: Final = """
INSERT INTO chunk_vectors (chunk_id, vector) SELECT * FROM unnest($1::bigint[], $2::bytea[])
ON CONFLICT (chunk_id) DO NOTHING
"""
_ALL_IDS: Final = """
SELECT chunk_vectors.chunk_id FROM chunk_vectors JOIN chunks ON chunks.id = chunk_vectors.chunk_id
WHERE chunks.generation_id = $1
"""
_VECTORS: Final = "SELECT chunk_id, vector FROM chunk_vectors WHERE chunk_id = ANY ($1::bigint[])"

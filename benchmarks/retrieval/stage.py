"""A PostgreSQL for the run, databases with an index each, and the local embedder as a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, cast
from zlib import crc32

import numpy as np

from benchmarks.retrieval.questions import Unit
from models.database import connect
from models.migrate import migrate
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.providers import Provider
from rag.providers.embedder import Embedder
from stack.model_server.embedder import MODEL
from stack.model_server.embedder import Embedder as LocalEmbedder
from stack.places import server_account, temporary_base_folder
from stack.postgres import Postgres

SETTINGS: Final = ChunkSettings(400, 60, "gpt-4o")
_NUMBERS: Final = 512


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """PostgreSQL out of the `stack` extra."""
    account = server_account()
    with temporary_base_folder(account) as base, Postgres(base, account) as server:
        yield server


@asynccontextmanager
async def indexed(
    server: Postgres, name: str, folder: Path, embedder: Embedder | None, settings: ChunkSettings = SETTINGS
) -> AsyncIterator[Any]:
    """A connection to a database that holds the index of a folder."""
    server.create_database(name)
    await migrate(server.url(name))
    async with connect(server.url(name)) as database:
        await reindex(folder, settings=settings, embedder=embedder)
        await database.execute_script("VACUUM ANALYZE")
        yield database
    server.drop_database(name)


async def units_of(database: Any) -> list[Unit]:
    """Every chunk."""
    rows = await database.execute_query_dict(
        "SELECT chunks.id, path, heading, text FROM chunks JOIN documents ON documents.id = document_id ORDER BY 1"
    )
    return [Unit(row["id"], row["path"], row["heading"], row["text"]) for row in rows]


class _Local:
    """The local model server's embedder without its HTTP."""

    name = "local"

    def __init__(self) -> None:
        self._embedder = LocalEmbedder()

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:  # noqa: ARG002
        return await self._embedder.embed(texts)


def local_embedder() -> Embedder:
    """The embedder of the demo: `universal-sentence-encoder-multilingual`, 512 numbers a text."""
    return Embedder(cast(Provider, _Local()), MODEL)


class _Random:
    """Vectors that depend on nothing but the text, at no cost: for times, not for rankings."""

    name = "random"

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:  # noqa: ARG002
        return [np.random.default_rng(crc32(text.encode())).standard_normal(_NUMBERS).tolist() for text in texts]


def random_embedder() -> Embedder:
    """A vector of random direction for each text: the hard case for an index of them."""
    return Embedder(cast(Provider, _Random()), "random")

"""The rows of `documents` and `folders`: the state of each file of the corpus, and the folders that were read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.corpus.walk import SourceFile, Walk
from rag.index.drafts import Draft, Known, KnownChunks
from rag.index.generations import Generation
from rag.index.segments import delete_chunks

# A file that changes twice within one tick of the file system's clock keeps its times: fresh times prove nothing.
_FRESH_NS: Final = 2_000_000_000
_FETCHED_AT_ONCE: Final = 5000
_REMOVED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A row of `documents`."""

    id: int
    path: str
    content_hash: str | None
    next_hash: str | None
    stamp: str
    error: str | None

    def hash_in(self, generation: Generation) -> str | None:
        """The hash of the document's content in `generation`."""
        return self.content_hash if generation.is_current else self.next_hash


def is_current(document: DocumentState | None, file: SourceFile, generation: Generation | None) -> bool:
    """Whether the file's stamp alone shows that its content is indexed."""
    if generation is None or document is None or document.error or not document.stamp:
        return False
    return document.stamp == file.stamp and document.hash_in(generation) is not None


async def load_documents() -> dict[str, DocumentState]:
    """Load all documents, by path."""
    async with Tortoise.get_connection("default").acquire_connection() as connection:
        rows = await connection.fetch("SELECT id, path, content_hash, next_hash, stamp, error FROM documents")
    return {row[1]: DocumentState(*row) for row in rows}


async def load_known(
    paths: Sequence[str], documents: Mapping[str, DocumentState], generation: Generation
) -> dict[str, Known]:
    """Load the content hashes and chunks of some files in `generation`."""
    states = {documents[path].id: documents[path] for path in paths if path in documents}
    if not states:
        return {}

    async def work(connection: BaseDBAsyncClient) -> dict[int, KnownChunks]:
        database: Any = connection._connection  # asyncpg's, for a cursor
        chunks = {id_: KnownChunks() for id_ in states}
        rows = database.cursor(
            "SELECT id, document_id, content_hash FROM chunks WHERE generation_id = $1 "
            "AND document_id = ANY($2::bigint[]) ORDER BY content_hash, id",
            generation.id,
            list(states),
            prefetch=_FETCHED_AT_ONCE,
        )
        async for id_, document_id, content_hash in rows:
            chunks[document_id].add(content_hash, id_)
        return chunks

    chunks = await transact(work)
    return {state.path: Known(state.hash_in(generation), chunks[id_]) for id_, state in states.items()}


async def record(connection: BaseDBAsyncClient, draft: Draft, generation: Generation, started_ns: int) -> None:
    """Store the outcome for a draft's files, in the transaction of their chunks."""
    database: Any = connection._connection  # asyncpg's, for executemany
    hash_column = "content_hash" if generation.is_current else "next_hash"
    # A stamp belongs to `content_hash`; a generation that is being built may have read newer content.
    stamp = (
        "EXCLUDED.stamp"
        if generation.is_current
        else "CASE WHEN documents.content_hash = EXCLUDED.next_hash THEN EXCLUDED.stamp ELSE '' END"
    )
    if draft.finished:
        await database.executemany(
            f"INSERT INTO documents (path, {hash_column}, stamp, title, date, tags) VALUES ($1, $2, $3, $4, $5, $6) "
            f"ON CONFLICT (path) DO UPDATE SET {hash_column} = EXCLUDED.{hash_column}, stamp = {stamp}, "
            "title = EXCLUDED.title, date = EXCLUDED.date, tags = EXCLUDED.tags, error = NULL",
            [
                (
                    done.file.path, done.content_hash, _stamp(done.file, started_ns), done.metadata.title,
                    done.metadata.date, json.dumps(done.metadata.tags, ensure_ascii=False),
                )
                for done in draft.finished
            ],
        )  # fmt: skip
    if draft.unchanged and generation.is_current:
        await database.executemany(
            "UPDATE documents SET stamp = $2, error = NULL WHERE path = $1",
            [(file.path, _stamp(file, started_ns)) for file in draft.unchanged],
        )
    if draft.failures:
        await database.executemany(
            "INSERT INTO documents (path, error) VALUES ($1, $2) "
            "ON CONFLICT (path) DO UPDATE SET error = EXCLUDED.error",
            [(failure.path, failure.reason) for failure in draft.failures],
        )


def _stamp(file: SourceFile, started_ns: int) -> str:
    return file.stamp if file.changed_ns < started_ns - _FRESH_NS else ""


async def remove(document_ids: Sequence[int]) -> None:
    """Delete documents with their chunks in every generation, in batches of one transaction each."""
    for start in range(0, len(document_ids), _REMOVED_AT_ONCE):
        await _remove(document_ids[start : start + _REMOVED_AT_ONCE])


async def _remove(document_ids: Sequence[int]) -> None:

    async def work(connection: BaseDBAsyncClient) -> None:
        database: Any = connection._connection
        rows = await database.fetch("SELECT id FROM chunks WHERE document_id = ANY($1::bigint[])", document_ids)
        await delete_chunks(database, [row["id"] for row in rows])
        await database.execute("DELETE FROM documents WHERE id = ANY($1::bigint[])", document_ids)

    await transact(work)


async def load_folders() -> dict[str, str]:
    """Load the identities of the folders that were not empty when they were last read, by path."""
    rows = await Tortoise.get_connection("default").execute_query_dict("SELECT path, identity FROM folders")
    return {row["path"]: row["identity"] for row in rows}


async def remember_folders(found: Walk, known: dict[str, str]) -> None:
    """Store the folders of a walk whose files are indexed; delete those that no longer exist."""
    unseen = set(found.unseen)
    changed = {path: identity for path, identity in found.folders.items() if known.get(path) != identity}
    gone = [path for path in known if path not in found.folders and path not in unseen]

    async def work(connection: BaseDBAsyncClient) -> None:
        database: Any = connection._connection
        await database.execute("DELETE FROM folders WHERE path = ANY($1::text[])", gone)
        await database.execute(
            "INSERT INTO folders (path, identity) SELECT * FROM unnest($1::text[], $2::text[]) "
            "ON CONFLICT (path) DO UPDATE SET identity = EXCLUDED.identity",
            list(changed),
            list(changed.values()),
        )

    if changed or gone:
        await transact(work)

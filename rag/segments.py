"""From changed files to a draft of a segment, and from a draft to rows, in the caller's transaction."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tortoise.backends.base.client import BaseDBAsyncClient

from rag.chunking import Chunk, ChunkSettings, cut
from rag.content import UnreadableFileError, open_content
from rag.corpus import Failure, SourceFile
from rag.known import HASH_BYTES, KnownChunks
from rag.lexical import PostingsDraft, term_frequencies
from rag.markdown import Metadata

DRAFT_CHARACTERS: Final = 1_000_000
DRAFT_KEPT: Final = 20_000
_DELETED_AT_ONCE: Final = 20_000
_CHUNK_COLUMNS: Final = (
    "id", "document_id", "generation_id", "position", "heading", "text",
    "start_offset", "end_offset", "token_count", "term_count", "content_hash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """What the index holds of a file: the hash of its content, and its chunks."""

    content_hash: str | None = None
    chunks: KnownChunks = field(default_factory=KnownChunks)


@dataclass(frozen=True, slots=True)
class FinishedDocument:
    """A file whose chunks are all in the drafts so far."""

    file: SourceFile
    content_hash: str
    metadata: Metadata


class KeptChunk(NamedTuple):
    """A chunk whose row stays, and where its text stands now."""

    id: int
    position: int
    start_offset: int
    end_offset: int


@dataclass(slots=True)
class Draft:
    """Part of a segment's work: new chunks with their postings, and what happens to older rows."""

    added: list[tuple[str, Chunk, bytes, int]] = field(default_factory=list)
    kept: list[KeptChunk] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    finished: list[FinishedDocument] = field(default_factory=list)
    unchanged: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    postings: PostingsDraft = field(default_factory=PostingsDraft)
    characters: int = 0
    added_count: int = 0
    added_tokens: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as should be in memory at once."""
        return self.characters > DRAFT_CHARACTERS or len(self.kept) > DRAFT_KEPT

    def summary(self) -> Draft:
        """What is worth remembering of a draft that is written; its text and postings are not."""
        return Draft(
            finished=self.finished,
            unchanged=self.unchanged,
            failures=self.failures,
            added_count=self.added_count,
            added_tokens=self.added_tokens,
        )


def prepare(files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings) -> Iterator[Draft]:
    """Read and cut files into drafts of bounded size. All of it is work for a thread.

    Raises:
        UnreadableFileError: a file of more than one block changed while it was read.
    """
    draft = Draft()
    for file in files:
        before = known.get(file.path, Known())
        try:
            content = open_content(file.location)
        except UnreadableFileError as error:
            draft.failures.append(Failure(file.path, str(error)))
            continue
        if content.content_hash == before.content_hash:
            draft.unchanged.append(file)
            continue
        cut_file = cut(content.blocks(), settings)
        for chunk in cut_file:
            _add_chunk(draft, file.path, chunk, cut_file.metadata.title, before.chunks)
            if draft.is_full:
                yield draft
                draft = Draft()
        draft.stale.extend(before.chunks.rest())
        draft.finished.append(FinishedDocument(file, content.content_hash, cut_file.metadata))
    yield draft


def _add_chunk(draft: Draft, path: str, chunk: Chunk, title: str, known: KnownChunks) -> None:
    digest = _chunk_hash(title, chunk)
    same = known.take(digest)
    if same is not None:
        draft.kept.append(KeptChunk(same, chunk.position, chunk.start_offset, chunk.end_offset))
        return
    frequencies, length = term_frequencies(chunk.text, chunk.heading, title)
    draft.postings.add(frequencies, length)
    draft.added.append((path, chunk, digest, length))
    draft.characters += len(chunk.text)
    draft.added_count += 1
    draft.added_tokens += chunk.token_count


def _chunk_hash(title: str, chunk: Chunk) -> bytes:
    return hashlib.blake2b("\0".join((title, chunk.heading, chunk.text)).encode(), digest_size=HASH_BYTES).digest()


async def write(connection: BaseDBAsyncClient, draft: Draft, generation_id: int) -> None:
    """Write a draft's rows; what it makes stale goes in the same transaction."""
    database: Any = connection._connection  # asyncpg's, for COPY
    if draft.added:
        await _write_segment(database, draft, generation_id)
    if draft.kept:
        await database.execute(
            "UPDATE chunks SET position = kept.position, start_offset = kept.start_offset, "
            "end_offset = kept.end_offset FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::bigint[]) "
            "AS kept (id, position, start_offset, end_offset) WHERE chunks.id = kept.id",
            *map(list, zip(*draft.kept, strict=True)),
        )
    await delete_chunks(database, draft.stale)


async def delete_chunks(database: Any, chunk_ids: Sequence[int]) -> None:
    """Delete chunks and count them as dead in their segments, in statements that no time limit cuts short."""
    for start in range(0, len(chunk_ids), _DELETED_AT_ONCE):
        ids = chunk_ids[start : start + _DELETED_AT_ONCE]
        await database.execute(
            "UPDATE segments SET dead_count = dead_count + gone.size FROM ("
            "  SELECT segments.id, count(*) AS size FROM segments, unnest(chunk_ids) AS chunk_id"
            "  WHERE chunk_id = ANY($1::bigint[]) GROUP BY segments.id"
            ") AS gone WHERE segments.id = gone.id",
            ids,
        )
        await database.execute("DELETE FROM chunks WHERE id = ANY($1::bigint[])", ids)


async def _write_segment(database: Any, draft: Draft, generation_id: int) -> None:
    document_ids = await _document_ids(database, {path for path, *_ in draft.added})
    ids = await _new_chunk_ids(database, len(draft.added))
    await database.copy_records_to_table(
        "chunks",
        columns=_CHUNK_COLUMNS,
        records=[
            (
                chunk_id, document_ids[path], generation_id, chunk.position, chunk.heading, chunk.text,
                chunk.start_offset, chunk.end_offset, chunk.token_count, length, digest,
            )
            for chunk_id, (path, chunk, digest, length) in zip(ids, draft.added, strict=True)
        ],
    )  # fmt: skip
    segment_id = await database.fetchval(
        "INSERT INTO segments (generation_id, chunk_ids, chunk_count, dead_count, term_count) "
        "VALUES ($1, $2, $3, 0, $4) RETURNING id",
        generation_id,
        ids,
        len(ids),
        draft.postings.term_count,
    )
    data = await asyncio.to_thread(draft.postings.copy_data, segment_id)
    await database.copy_to_table("postings", source=io.BytesIO(data), format="binary")


async def _document_ids(database: Any, paths: Iterable[str]) -> dict[str, int]:
    ordered = sorted(paths)
    await database.execute(
        "INSERT INTO documents (path, stamp, title, date, tags, size_bytes, created_at) "
        "SELECT path, '', '', '', '[]', 0, now() FROM unnest($1::text[]) AS path ON CONFLICT (path) DO NOTHING",
        ordered,
    )
    rows = await database.fetch("SELECT path, id FROM documents WHERE path = ANY($1::text[])", ordered)
    return {row["path"]: row["id"] for row in rows}


async def _new_chunk_ids(database: Any, count: int) -> list[int]:
    rows = await database.fetch(
        "SELECT nextval(pg_get_serial_sequence('chunks', 'id')) AS id FROM generate_series(1, $1)", count
    )
    return [row["id"] for row in rows]

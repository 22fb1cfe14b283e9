"""From changed files to drafts of segments: reading, cutting and packing, without the database."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from rag.analysis.terms import term_frequencies
from rag.corpus.chunk import Chunk, ChunkSettings, cut
from rag.corpus.markdown import Metadata
from rag.corpus.read import UnreadableFileError, open_content
from rag.corpus.tokens import TokenCounter
from rag.corpus.walk import Failure, SourceFile
from rag.index.known_chunks import HASH_BYTES, KnownChunks
from rag.search.postings_draft import PostingsDraft

DRAFT_CHARACTERS: Final = 1_000_000
DRAFT_OLDER_ROWS: Final = 20_000

PACKED_COLUMNS: Final = (
    "position", "start_offset", "end_offset", "token_count", "term_count", "content_hash", "heading", "text",
)  # fmt: skip
_PACKED: Final = struct.Struct(f"!iiiqiqiiiii{HASH_BYTES}s")


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
    """Part of a segment's work: new chunks with their postings, and what happens to older rows.

    New chunks are the paths of their files and their `PACKED_COLUMNS`, `postings` the pieces of
    `PostingsDraft.copy_data`: packed, so that who writes them handles no object for every term.
    """

    added: list[tuple[str, bytes]] = field(default_factory=list)
    kept: list[KeptChunk] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    finished: list[FinishedDocument] = field(default_factory=list)
    unchanged: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    postings: list[bytes] = field(default_factory=list)
    term_count: int = 0
    added_count: int = 0
    added_tokens: int = 0

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
    """Read and cut files into drafts of bounded size. All of it is work for a thread, or another process.

    Raises:
        UnreadableFileError: a file of more than one block changed while it was read.
    """
    filling = _Filling(settings)
    for file in files:
        before = known.get(file.path, Known())
        try:
            content = open_content(file.location)
        except UnreadableFileError as error:
            filling.draft.failures.append(Failure(file.path, str(error)))
            continue
        if content.content_hash == before.content_hash:
            filling.draft.unchanged.append(file)
            continue
        cut_file = cut(content.blocks(), settings)
        for chunk in cut_file:
            filling.add(file.path, chunk, cut_file.metadata.title, before.chunks)
            if filling.is_full:
                yield filling.finish()
                filling = _Filling(settings)
        for chunk_id in before.chunks.rest():
            filling.draft.stale.append(chunk_id)
            if filling.is_full:
                yield filling.finish()
                filling = _Filling(settings)
        filling.draft.finished.append(FinishedDocument(file, content.content_hash, cut_file.metadata))
    yield filling.finish()


def pack(path: str, title: str, chunks: Iterable[Chunk], settings: ChunkSettings) -> Draft:
    """A draft of chunks that are cut already, all of one file; their tokens are counted again. Work for a thread."""
    counter = TokenCounter(settings.model)
    filling = _Filling(settings)
    nothing = KnownChunks()
    for chunk in chunks:
        filling.add(path, replace(chunk, token_count=counter.count(chunk.text)), title, nothing)
    return filling.finish()


class _Filling:
    """A draft while it is being filled."""

    def __init__(self, settings: ChunkSettings) -> None:
        self.draft = Draft()
        self._with_morphemes = settings.morphemes
        self._postings = PostingsDraft()
        self._characters = 0

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as should be in memory at once."""
        older_rows = len(self.draft.kept) + len(self.draft.stale)
        return self._characters > DRAFT_CHARACTERS or older_rows > DRAFT_OLDER_ROWS

    def add(self, path: str, chunk: Chunk, title: str, known: KnownChunks) -> None:
        digest = _chunk_hash(title, chunk)
        same = known.take(digest)
        if same is not None:
            self.draft.kept.append(KeptChunk(same, chunk.position, chunk.start_offset, chunk.end_offset))
            return
        frequencies, length = term_frequencies(chunk.text, chunk.heading, title, with_morphemes=self._with_morphemes)
        self._postings.add(frequencies, length)
        self._characters += len(chunk.text)
        self.draft.added.append((path, _pack(chunk, length, digest)))
        self.draft.added_count += 1
        self.draft.added_tokens += chunk.token_count

    def finish(self) -> Draft:
        if self.draft.added:
            self.draft.postings = list(self._postings.copy_data())
            self.draft.term_count = self._postings.term_count
        return self.draft


def _chunk_hash(title: str, chunk: Chunk) -> bytes:
    return hashlib.blake2b("\0".join((title, chunk.heading, chunk.text)).encode(), digest_size=HASH_BYTES).digest()


def text_to_embed(heading: str, text: str) -> str:
    """What an embedding model is sent of a chunk."""
    return f"{heading}\n\n{text}"


def unpack_to_embed(packed: bytes) -> tuple[bytes, str]:
    """The hash of a packed chunk, and what an embedding model is sent of it."""
    *_, digest = _PACKED.unpack_from(packed)
    heading, rest = _string(packed[_PACKED.size :])
    text, _ = _string(rest)
    return digest, text_to_embed(heading, text)


def _string(packed: bytes) -> tuple[str, bytes]:
    end = 4 + int.from_bytes(packed[:4])
    return packed[4:end].decode(), packed[end:]


def _pack(chunk: Chunk, length: int, digest: bytes) -> bytes:
    """A chunk's `PACKED_COLUMNS` in the binary form of PostgreSQL's COPY: each is its size and its value."""
    heading, text = chunk.heading.encode(), chunk.text.encode()
    numbers = _PACKED.pack(
        4, chunk.position, 8, chunk.start_offset, 8, chunk.end_offset, 4, chunk.token_count, 4, length,
        HASH_BYTES, digest,
    )  # fmt: skip
    return b"".join((numbers, struct.pack("!i", len(heading)), heading, struct.pack("!i", len(text)), text))

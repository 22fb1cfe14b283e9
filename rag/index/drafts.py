"""Prepares drafts of segments from changed files: reads, cuts and counts, without the database."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from rag.analysis.terms import term_frequencies
from rag.corpus.chunk import Chunk, ChunkSettings, cut
from rag.corpus.markdown import Metadata
from rag.corpus.read import UnreadableFileError, open_content
from rag.corpus.tokens import TokenCounter
from rag.corpus.walk import Failure, SourceFile
from rag.search.postings_draft import PackedPostings, PostingsDraft

HASH_BYTES: Final = 16
_ROW_BYTES: Final = HASH_BYTES + 8
DRAFT_CHARACTERS: Final = 1_000_000
DRAFT_OLDER_ROWS: Final = 20_000
DRAFT_POSTINGS: Final = 100_000  # rows; a million characters of prose have 10,000 to 60,000


class KnownChunks:
    """The ids of a document's chunks by content hash, in 28 bytes a chunk: a document can have a million.

    Each chunk can be taken once. Chunks with the same hash are taken in the order of their ids.
    """

    def __init__(self) -> None:
        self._rows = bytearray()  # which pickle's protocol 5 hands on without a copy
        self._taken = array("i")  # of the chunks with one hash, at the place of the first; empty while none is

    def __len__(self) -> int:
        return len(self._rows) // _ROW_BYTES

    def add(self, content_hash: bytes, chunk_id: int) -> None:
        """Add a chunk. Call it in the order of the hashes, and before the first `take`."""
        self._rows += content_hash + chunk_id.to_bytes(8)

    def take(self, content_hash: bytes) -> int | None:
        """Take a chunk with this hash; None if there is no further one."""
        self._taken = self._taken or array("i", bytes(4 * len(self)))
        first = bisect_left(range(len(self)), content_hash, key=self._hash)
        place = first + self._taken[first] if first < len(self) else first
        if place >= len(self) or self._hash(place) != content_hash:
            return None
        self._taken[first] += 1
        return self._id(place)

    def rest(self) -> Iterator[int]:
        """The ids of the chunks that were not taken."""
        first = 0
        for place in range(len(self)):
            if self._hash(place) != self._hash(first):
                first = place
            if not self._taken or place - first >= self._taken[first]:
                yield self._id(place)

    def _hash(self, place: int) -> bytes:
        return bytes(self._rows[place * _ROW_BYTES : place * _ROW_BYTES + HASH_BYTES])

    def _id(self, place: int) -> int:
        return int.from_bytes(self._rows[place * _ROW_BYTES + HASH_BYTES : (place + 1) * _ROW_BYTES])


@dataclass(frozen=True, slots=True)
class Known:
    """The indexed state of a file: the hash of its content, and its chunks."""

    content_hash: str | None = None
    chunks: KnownChunks = field(default_factory=KnownChunks)


@dataclass(frozen=True, slots=True)
class FinishedDocument:
    """A file whose last chunk is in this draft."""

    file: SourceFile
    content_hash: str
    metadata: Metadata


class AddedChunk(NamedTuple):
    """A new chunk: the path of its file, and columns of `chunks`."""

    path: str
    position: int
    heading: str
    text: str
    start_offset: int
    end_offset: int
    token_count: int
    term_count: int
    content_hash: bytes


class KeptChunk(NamedTuple):
    """A chunk whose row is kept, with its present place in the document."""

    id: int
    position: int
    start_offset: int
    end_offset: int


@dataclass(slots=True)
class Draft:
    """The rows to write for one segment: new chunks with their postings, and changes to older rows."""

    added: list[AddedChunk] = field(default_factory=list)
    kept: list[KeptChunk] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    finished: list[FinishedDocument] = field(default_factory=list)
    unchanged: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    postings: PackedPostings = field(default_factory=PackedPostings)
    term_count: int = 0
    added_count: int = 0
    added_tokens: int = 0

    def summary(self) -> Draft:
        """A copy of a written draft without its text and postings."""
        return Draft(
            finished=self.finished,
            unchanged=self.unchanged,
            failures=self.failures,
            added_count=self.added_count,
            added_tokens=self.added_tokens,
        )


def prepare(files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings) -> Iterator[Draft]:
    """Read and cut files into drafts of bounded size. Run it in a thread or in another process: it uses the processor.

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
    """Make a draft of chunks of one file that were cut before; their tokens are counted again. Run it in a thread."""
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
        """Whether the draft has reached its limit of memory."""
        older_rows = len(self.draft.kept) + len(self.draft.stale)
        return (
            self._characters > DRAFT_CHARACTERS
            or older_rows > DRAFT_OLDER_ROWS
            or self._postings.row_count > DRAFT_POSTINGS
        )

    def add(self, path: str, chunk: Chunk, title: str, known: KnownChunks) -> None:
        digest = _chunk_hash(title, chunk)
        same = known.take(digest)
        if same is not None:
            self.draft.kept.append(KeptChunk(same, chunk.position, chunk.start_offset, chunk.end_offset))
            return
        frequencies, length = term_frequencies(chunk.text, chunk.heading, title, with_morphemes=self._with_morphemes)
        self._postings.add(frequencies, length)
        self._characters += len(chunk.text)
        self.draft.added.append(
            AddedChunk(
                path, chunk.position, chunk.heading, chunk.text, chunk.start_offset, chunk.end_offset,
                chunk.token_count, length, digest,
            )
        )  # fmt: skip
        self.draft.added_count += 1
        self.draft.added_tokens += chunk.token_count

    def finish(self) -> Draft:
        if self.draft.added:
            self.draft.postings = self._postings.packed()
            self.draft.term_count = self._postings.term_count
        return self.draft


def _chunk_hash(title: str, chunk: Chunk) -> bytes:
    return hashlib.blake2b("\0".join((title, chunk.heading, chunk.text)).encode(), digest_size=HASH_BYTES).digest()


def text_to_embed(heading: str, text: str) -> str:
    """The text of a chunk for an embedding model, in NFC: decomposed Hangul has about nine times the tokens."""
    return unicodedata.normalize("NFC", f"{heading}\n\n{text}")

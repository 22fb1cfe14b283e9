"""Cut a Markdown text into chunks with guarantees.

Every chunk has at most `max_tokens` tokens by exact count, and its text is the file's characters at its offsets.
Together the chunks hold every character of the body that is not white space. A chunk stays inside one section
and begins with the section's heading or with an overlap of its neighbour. Fences and tables are whole in some
chunk where they fit. The front matter is metadata, not text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from rag.corpus.markdown import Block, Kind, Metadata, read_blocks, read_front_matter
from rag.corpus.split import best_overlap, least_overlap, split
from rag.corpus.tokens import PART_CHARACTERS, TokenCounter, counts_add

if TYPE_CHECKING:
    from protostar.settings import ChunkingSettings

CHUNKER_VERSION: Final = 3
_HEADING_CHARACTERS: Final = 200
_BLOCK_CHARACTERS_A_TOKEN: Final = 16
_LEAST_BLOCK_CHARACTERS: Final = 16_384
_LEAST_ROOM: Final = 8
_ESTIMATED_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk. Offsets count the characters of the decoded file; `heading` is the path `Title > Section`."""

    position: int
    heading: str
    text: str
    start_offset: int
    end_offset: int
    token_count: int


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How to cut: tokens of a chunk, tokens that neighbours share, and the model that counts them.

    With `morphemes`, the morphemes of Korean words are indexed too (`rag.analysis.morphemes`).
    """

    max_tokens: int
    overlap: int
    model: str
    morphemes: bool = False

    @classmethod
    def of(cls, settings: ChunkingSettings) -> Self:
        """The settings of the environment."""
        return cls(settings.chunk_tokens, settings.chunk_overlap, settings.chat_model, settings.morphemes == "kiwi")

    def __post_init__(self) -> None:
        if self.max_tokens < 16:
            raise ValueError(f"a chunk of {self.max_tokens} tokens is too small; use 16 or more")
        if not 0 <= self.overlap * 2 <= self.max_tokens:
            raise ValueError(f"an overlap of {self.overlap} must be from 0 to half of {self.max_tokens} tokens")


@dataclass(slots=True)
class CutFile:
    """A text being cut: iterate over it once. `metadata.title` becomes the first heading where none is given."""

    metadata: Metadata
    _chunks: Iterator[Chunk]

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks


def cut(parts: Iterable[str], settings: ChunkSettings) -> CutFile:
    """Cut a text that arrives in parts, in memory that does not grow with its length."""
    metadata, start, body = read_front_matter(parts)
    return CutFile(metadata, _cut_body(body, start, metadata, settings))


def _cut_body(body: Iterable[str], start: int, metadata: Metadata, settings: ChunkSettings) -> Iterator[Chunk]:
    packer = _Packer(settings)
    outline = _Outline(metadata.title)
    limit = max(_LEAST_BLOCK_CHARACTERS, settings.max_tokens * _BLOCK_CHARACTERS_A_TOKEN)
    for block in read_blocks(body, start=start, limit=limit):
        if block.kind is Kind.HEADING:
            if not packer.holds_only_headings:
                yield from packer.end_section()
            packer.heading = outline.enter(block)
            metadata.title = metadata.title or block.title
        yield from packer.add(block)
    yield from packer.end_section()


class _Outline:
    """The path of headings at the present position."""

    def __init__(self, title: str) -> None:
        self._title = title.strip()
        self._path: list[tuple[int, str]] = []

    def enter(self, heading: Block) -> str:
        """Enter a heading; returns its path."""
        self._path = [(level, title) for level, title in self._path if level < heading.level]
        self._path.append((heading.level, heading.title))
        titles = [title[:_HEADING_CHARACTERS] for _, title in self._path if title]
        if self._title and titles[:1] != [self._title[:_HEADING_CHARACTERS]]:
            titles.insert(0, self._title[:_HEADING_CHARACTERS])
        return " > ".join(titles)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that is cut further only if it does not fit; `tokens` is an estimate unless `is_exact`."""

    text: str
    tokens: int
    kind: Kind = Kind.TEXT
    is_shared: bool = False
    is_exact: bool = False

    @property
    def is_body(self) -> bool:
        return not self.is_shared and self.kind is not Kind.HEADING and not self.text.isspace()

    @property
    def is_whole(self) -> bool:
        return self.kind in (Kind.FENCE, Kind.TABLE)


@dataclass(slots=True)
class _Packer:
    """Fills chunks with pieces of one section."""

    settings: ChunkSettings
    heading: str = ""
    _counter: TokenCounter = field(init=False)
    _pieces: list[_Piece] = field(default_factory=list)
    _start: int = 0
    _tokens: int = 0
    _position: int = 0

    def __post_init__(self) -> None:
        self._counter = TokenCounter(self.settings.model)

    @property
    def has_body(self) -> bool:
        """Whether the open chunk holds new text that is not a heading."""
        return any(piece.is_body for piece in self._pieces)

    @property
    def holds_only_headings(self) -> bool:
        """Whether the open chunk has headings and no body yet."""
        return not self.has_body and any(piece.kind is Kind.HEADING for piece in self._pieces)

    def add(self, block: Block) -> Iterator[Chunk]:
        """Add a block; yields the chunks that it fills."""
        if not self._pieces:
            self._start = block.start
        for piece in self._cut_block(block):
            yield from self._place(piece)

    def end_section(self) -> Iterator[Chunk]:
        """Yield the last chunk of the section; the next section shares no text with it."""
        while any(not piece.is_shared and not piece.text.isspace() for piece in self._pieces):
            yield from self._emit(is_last=True)
        self._pieces, self._tokens = [], 0

    def _cut_block(self, block: Block) -> Iterator[_Piece]:
        room = self.settings.max_tokens - self.settings.overlap
        tokens = counted = self._counter.count(block.text)
        if block.kind is not Kind.TEXT and tokens > self.settings.max_tokens:
            # The blank lines after it do not count.
            tokens = self._counter.count(block.text.strip())
        whole_limit = self.settings.max_tokens if block.kind is not Kind.TEXT else room // 2
        if tokens <= whole_limit:
            yield _Piece(block.text, tokens, block.kind, is_exact=tokens == counted)
        else:
            yield from self._split(block.text, tokens, max(room // 3, 4))

    def _split(self, text: str, tokens: int, limit: int) -> Iterator[_Piece]:
        """Pieces of about `limit` tokens; their counts are estimates, which is enough to fill a chunk."""
        measure = self._counter.count if len(text) < _ESTIMATED_CHARACTERS else _estimate(text, tokens)
        for part in split(text, self._counter, limit, measure):
            yield _Piece(part, measure(part))

    def _place(self, piece: _Piece) -> Iterator[Chunk]:
        while not self._fits(piece):
            if self.has_body:
                least = max(least_overlap(self.settings.overlap), 1)
                lead = self._lead(piece, least) if self._leaves_no_overlap(piece) else None
                yield from self._emit_lead(lead) if lead else self._emit()
            elif self._pieces and self._pieces[0].is_shared:
                self._share_less(self.settings.max_tokens - piece.tokens)
            elif self._pieces and (lead := self._lead(piece, 1)):
                yield from self._emit_lead(lead)
            else:
                yield from self._place_split(piece)
                return
        self._append(piece)

    def _fits(self, piece: _Piece) -> bool:
        total = self._tokens + piece.tokens
        if total <= self.settings.max_tokens:
            return True
        # Counts do not add up exactly where pieces meet; it matters where a small chunk would be left.
        is_close = total * 10 <= self.settings.max_tokens * 11 and self._tokens * 2 < self.settings.max_tokens
        return is_close and self._counter.count(self._joined(piece.text)) <= self.settings.max_tokens

    def _count(self) -> int:
        """The exact count of the open chunk's text, from the counts of its pieces where these add up."""
        pieces = self._pieces
        adds = (
            all(piece.is_exact for piece in pieces[:-1])
            and all(counts_add(before.text, after.text) for before, after in pairwise(pieces))
            and not (pieces[0].text[:1].isspace() or pieces[-1].text.isspace())
            and sum(len(piece.text) for piece in pieces) <= PART_CHARACTERS
        )
        if not adds:
            return self._counter.count(self._joined())
        last = pieces[-1]
        counted = last.tokens if last.is_exact else self._counter.count(last.text)
        return sum(piece.tokens for piece in pieces[:-1]) + self._counter.count_stripped(last.text, counted)

    def _joined(self, more: str = "") -> str:
        return ("".join(piece.text for piece in self._pieces) + more).strip()

    def _append(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self._tokens += piece.tokens

    def _leaves_no_overlap(self, piece: _Piece) -> bool:
        return piece.tokens + least_overlap(self.settings.overlap) > self.settings.max_tokens

    def _lead(self, piece: _Piece, least: int) -> _Piece | None:
        """The beginning of a whole piece, to end the open chunk: the next one overlaps it and has the piece whole."""
        room = min(self.settings.max_tokens - self._tokens - 1, self.settings.overlap)
        if not piece.is_whole or room < least:
            return None
        lead = self._counter.head(piece.text, room)
        if not lead or self._counter.count(self._joined(lead)) > self.settings.max_tokens:
            return None
        return _Piece(lead, room)

    def _emit_lead(self, lead: _Piece) -> Iterator[Chunk]:
        start = self._start + sum(len(held.text) for held in self._pieces)
        self._append(lead)
        yield from self._emit()
        self._restart(start, "")

    def _place_split(self, piece: _Piece) -> Iterator[Chunk]:
        """Cut a piece that does not fit after its headings; only headings that fill a chunk stay alone."""
        room = self.settings.max_tokens - self._tokens
        parts = list(self._split(piece.text, piece.tokens, max(min(room, piece.tokens) // 2, _LEAST_ROOM // 2)))
        if self._pieces and (piece.kind is Kind.HEADING or room < _LEAST_ROOM or len(parts) == 1):
            parts = [] if piece.kind is Kind.HEADING else self._squeeze(piece, room)
            if not parts:
                yield from self._emit()
                parts = [piece]
        elif len(parts) == 1:
            texts: Sequence[str] = list(self._counter.pieces(piece.text, self.settings.max_tokens))
            if len(texts) == 1:
                # One visible character has more tokens than a chunk may have: the cap wins.
                texts = piece.text
            parts = [_Piece(text, self._counter.count(text)) for text in texts]
        for part in parts:
            yield from self._place(part)

    def _squeeze(self, piece: _Piece, room: int) -> list[_Piece]:
        """Cut a piece where its beginning still fits after the headings; returns nothing if no word fits."""
        for tokens in range(room, 0, -1):
            start = self._counter.head(piece.text, tokens)
            if not start.strip():
                break
            if self._counter.count(self._joined(start)) <= self.settings.max_tokens:
                rest = piece.text[len(start) :]
                return [_Piece(start, tokens)] + ([_Piece(rest, self._counter.count(rest))] if rest else [])
        return []

    def _share_less(self, room: int) -> None:
        """Shorten the overlap to `room` tokens, or drop it where that is less than half of what is configured."""
        shared = "".join(piece.text for piece in self._pieces)
        kept = self._counter.tail(shared, room)
        if len(kept) == len(shared) or self._counter.count(kept.strip()) * 2 < self.settings.overlap:
            kept = ""
        self._restart(self._start + len(shared) - len(kept), kept)

    def _emit(self, *, is_last: bool = False) -> Iterator[Chunk]:
        """Yield the open chunk and start the next one with the overlap, unless this is the last of the section."""
        tokens, spare = self._take_spare()
        raw = "".join(piece.text for piece in self._pieces)
        text = raw.strip()
        if text:
            start = self._start + len(raw) - len(raw.lstrip())
            yield Chunk(self._position, self.heading, text, start, start + len(text), tokens)
            self._position += 1
        overlap = self.settings.overlap if self.has_body and (spare or not is_last) else 0
        shared = raw.lstrip()[best_overlap(text, self._counter, overlap) :]
        self._restart(self._start + len(raw) - len(shared), shared)
        for piece in spare:
            yield from self._place(piece)

    def _take_spare(self) -> tuple[int, list[_Piece]]:
        """Take the last pieces off an open chunk with too many tokens: counts of adjoining pieces do not always add up.

        Returns the chunk's exact count and the pieces taken off.
        """
        spare: list[_Piece] = []
        while (tokens := self._count()) > self.settings.max_tokens:
            if self._pieces[0].is_shared and not any(piece.is_body for piece in self._pieces[1:-1]):
                # Without the last piece the chunk would hold nothing new.
                self._shorten_shared()
                continue
            last = self._pieces.pop()
            if not self._pieces:
                first, *rest = self._split(last.text, tokens, self.settings.max_tokens // 2)
                self._pieces, spare = [first], rest + spare
            else:
                spare.insert(0, last)
        return tokens, spare

    def _shorten_shared(self) -> None:
        shared = self._pieces.pop(0)
        least = least_overlap(self.settings.overlap)
        kept = self._counter.tail(shared.text, least) if shared.tokens > least else ""
        self._start += len(shared.text) - len(kept)
        if kept:
            self._pieces.insert(0, _Piece(kept, least, is_shared=True))

    def _restart(self, start: int, shared: str) -> None:
        """Open a chunk at `start` whose first text is `shared`."""
        self._start, self._pieces, self._tokens = start, [], 0
        if shared.strip():
            self._append(_Piece(shared, self._counter.count(shared), is_shared=True, is_exact=True))
        else:
            self._start += len(shared)


def _estimate(text: str, tokens: int) -> Callable[[str], int]:
    """Estimate a part's tokens by its share of the bytes: Korean and English have about as many tokens a byte."""
    size = len(text.encode())
    return lambda part: -(-tokens * len(part.encode()) // size)

"""The lexical index: what a text's terms are, and how they are stored. `rag.search.bm25` searches it.

Terms are character bigrams of Hangul, Han and Kana and the stems of other words, so Korean is found without a
morphological analyser. The index consists of segments. In a segment, each term has one row with an integer for
every chunk that holds it: the chunk's ordinal in the segment, the term's frequency there, and the chunk's length.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import Final

import snowballstemmer  # type: ignore[import-untyped]
from protostar_client.normalization import normalize

from rag.analysis.morphemes import morphemes

TERMS_VERSION: Final = 1
K1: Final = 1.2
B: Final = 0.75
MAX_SEGMENT_CHUNKS: Final = 1 << 19

COPY_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_END: Final = struct.pack("!h", -1)
"""Around the rows of a table, in the binary form of PostgreSQL's COPY."""

_HEADING_WEIGHT: Final = 2
_LONGEST_TERM: Final = 40
_REMEMBERED_RUNS: Final = 65_536
_INT4_OID: Final = 23
_PIECE_BYTES: Final = 256 * 1024
# No term in UTF-8 has such a byte, and of 8 bytes of entries 4 are their sizes: it stands nowhere else.
_UNNUMBERED: Final = struct.pack("!iq", 8, -1)
_LENGTH_BITS: Final = 7
_FREQUENCY_BITS: Final = 5
_STEPS_AN_OCTAVE: Final = 8
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1
_FREQUENCY_MASK: Final = (1 << _FREQUENCY_BITS) - 1

_SYLLABLES: Final = "가-힣"
_IDEOGRAPHS: Final = "぀-ヿ㐀-䶿一-鿿"
_LETTER: Final = rf"[^\W_{_SYLLABLES}{_IDEOGRAPHS}]"
_RUNS = re.compile(rf"[{_SYLLABLES}]+|[{_IDEOGRAPHS}]+|{_LETTER}+(?:[._]+{_LETTER}+)*")
_NO_WORD = re.compile(rf"[{_SYLLABLES}{_IDEOGRAPHS}]")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_IS_CAMEL = re.compile(r"[a-z][A-Z]")
_PARTICLES: Final = frozenset("은는이가을를의에도로와과만")
_FUNCTION_WORDS: Final = """
a an and are as at be but by can do does for from had has have hello hi how i if in into is it its many me much my no
not of on or our please should so tell than thank thanks that the their them then there these they this to was we were
what when where which who why will with would about you your
"""
_STOPWORDS: Final = frozenset(_FUNCTION_WORDS.split())

_stemmer = snowballstemmer.stemmer("english")


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_stemmer.stemWord(word)) if word.isascii() else word


def terms(text: str) -> list[str]:
    """The index terms of a text, in order, with repetitions. Function words of English are none."""
    return list(chain.from_iterable(words(text)))


def words(text: str) -> Iterable[Sequence[str]]:
    """The index terms of each word of a text, in order."""
    return map(_terms_of.__getitem__, _RUNS.findall(normalize("NFKC", text)))


class _TermsOfRuns(dict[str, Sequence[str]]):
    """The terms of a run of letters, remembered: a text repeats its words."""

    def __missing__(self, run: str) -> Sequence[str]:
        found: list[str] = []
        if _NO_WORD.match(run):
            _add_bigrams(found, run)
        else:
            _add_word(found, run)
        if len(run) <= _LONGEST_TERM:
            if len(self) >= _REMEMBERED_RUNS:
                self.clear()
            self[run] = found
        return found


_terms_of: Final = _TermsOfRuns()


def _add_bigrams(found: list[str], run: str) -> None:
    if len(run) == 1:
        if run not in _PARTICLES:
            found.append(run)
        return
    found.extend(map("".join, pairwise(run)))
    if len(run) == 2 and run[1] in _PARTICLES:
        found.append(run[0])  # "큐는" is found by "큐"


def _add_word(found: list[str], word: str) -> None:
    if word.isalpha() and not _IS_CAMEL.search(word):
        lowered = word.lower()
        if lowered not in _STOPWORDS:
            found.append(_stem(lowered[:_LONGEST_TERM]))
        return
    whole = word.lower()[:_LONGEST_TERM]
    parts = {_stem(part.lower()[:_LONGEST_TERM]) for part in _parts(word)} - _STOPWORDS
    found.append(whole)
    found.extend(sorted(parts - {whole}))


def _parts(word: str) -> Iterable[str]:
    for part in re.split(r"[._]+", word):
        if part != word:
            yield part
        if _IS_CAMEL.search(part):
            yield from _CAMEL.findall(part)


def term_frequencies(text: str, heading: str, title: str, *, with_morphemes: bool = False) -> tuple[Counter[str], int]:
    """The weighted frequencies of a chunk's terms, and its length in terms, of which morphemes are none.

    A term of the heading path or of the document's title counts as often as one that stands in the text twice more.
    """
    frequencies = Counter(terms(text))
    length = frequencies.total()
    if with_morphemes:
        frequencies.update(morphemes(text))
    for term in _heading_terms(heading, title, with_morphemes):
        frequencies[term] += _HEADING_WEIGHT
    return frequencies, length


@lru_cache(maxsize=256)
def _heading_terms(heading: str, title: str, with_morphemes: bool) -> frozenset[str]:
    found = frozenset(terms(heading)) | frozenset(terms(title))
    return found | frozenset(morphemes(f"{heading}\n{title}")) if with_morphemes else found


def length_step(length: int) -> int:
    """A chunk's length as it is stored: eighths of an octave."""
    return min(round(_STEPS_AN_OCTAVE * math.log2(max(length, 1))), _LENGTH_MASK)


@lru_cache(maxsize=16)
def saturation(average_length: int) -> list[float]:
    """BM25's factor for every frequency and length that an entry can hold, in the order of its lowest bits."""
    norms = [
        K1 * (1 - B + B * 2 ** (step / _STEPS_AN_OCTAVE) / max(average_length, 1)) for step in range(_LENGTH_MASK + 1)
    ]
    return [tf * (K1 + 1) / (tf + norm) for tf in range(_FREQUENCY_MASK + 1) for norm in norms]


class PostingsDraft:
    """The postings of one segment while it is being filled; nothing here speaks to the database."""

    def __init__(self) -> None:
        self._entries: defaultdict[str, array[int]] = defaultdict(partial(array, "Q"))
        self.chunk_count = 0
        self.term_count = 0

    def add(self, frequencies: Counter[str], length: int) -> None:
        """Add the next chunk."""
        # An array element of PostgreSQL's binary COPY is its size, 4, and its value: one 64-bit number.
        base = 4 << 32 | self.chunk_count << (_FREQUENCY_BITS + _LENGTH_BITS) | length_step(length)
        entries = self._entries
        by_frequency = [base | frequency << _LENGTH_BITS for frequency in range(_FREQUENCY_MASK + 1)]
        for term, frequency in frequencies.items():
            entries[term].append(by_frequency[frequency if frequency < _FREQUENCY_MASK else _FREQUENCY_MASK])
        self.chunk_count += 1
        self.term_count += length

    def copy_data(self) -> Iterator[bytes]:
        """The rows of `postings`, in order of their terms, for `COPY postings FROM STDIN (FORMAT binary)`.

        They come in pieces of whole rows, and lack their segment: see `number_postings`.
        """
        parts = [COPY_BEGIN]
        size = 0
        for key, entries in sorted((term.encode(), row) for term, row in self._entries.items()):
            head = struct.pack("!iiiiii", 20 + 8 * len(entries), 1, 0, _INT4_OID, len(entries), 1)
            swapped = array("Q", entries)
            swapped.byteswap()
            row = (struct.pack("!hi", 3, len(key)), key, _UNNUMBERED, head, swapped.tobytes())
            parts += row
            size += sum(map(len, row))
            if size >= _PIECE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
        parts.append(COPY_END)
        yield b"".join(parts)


def number_postings(piece: bytes, segment_id: int) -> bytes:
    """A piece of `PostingsDraft.copy_data` with the segment that its rows are of."""
    return piece.replace(_UNNUMBERED, struct.pack("!iq", 8, segment_id))

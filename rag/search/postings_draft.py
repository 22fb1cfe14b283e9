"""The postings of a segment: how BM25's numbers are stored, and a segment's postings while they are filled.

An index consists of segments. In a segment, each term has one row with an integer for every chunk that holds it: the
chunk's ordinal in the segment, the term's frequency there, and the chunk's length.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from operator import itemgetter
from typing import Final

K1: Final = 1.2
B: Final = 0.75
MAX_SEGMENT_CHUNKS: Final = 1 << 19

_LENGTH_BITS: Final = 7
_FREQUENCY_BITS: Final = 5
_STEPS_AN_OCTAVE: Final = 8
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1
_FREQUENCY_MASK: Final = (1 << _FREQUENCY_BITS) - 1


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


@dataclass(frozen=True, slots=True)
class PackedPostings:
    """The rows of one segment in three objects, which take little memory and little time to pickle.

    `terms` are joined by NUL, `sizes` are the numbers of their entries.
    """

    terms: str = ""
    sizes: array[int] = field(default_factory=partial(array, "i"))
    entries: array[int] = field(default_factory=partial(array, "i"))

    def rows(self) -> Iterator[tuple[str, array[int]]]:
        """The terms with their entries."""
        start = 0
        terms = self.terms.split("\0") if self.sizes else ()
        for term, size in zip(terms, self.sizes, strict=True):
            yield term, self.entries[start : start + size]
            start += size


class PostingsDraft:
    """The postings of one segment while it is being filled; nothing here speaks to the database."""

    def __init__(self) -> None:
        self._entries: defaultdict[str, array[int]] = defaultdict(partial(array, "i"))
        self.chunk_count = 0
        self.term_count = 0

    def add(self, frequencies: Counter[str], length: int) -> None:
        """Add the next chunk."""
        base = self.chunk_count << (_FREQUENCY_BITS + _LENGTH_BITS) | length_step(length)
        entries = self._entries
        by_frequency = [base | frequency << _LENGTH_BITS for frequency in range(_FREQUENCY_MASK + 1)]
        for term, frequency in frequencies.items():
            entries[term].append(by_frequency[frequency if frequency < _FREQUENCY_MASK else _FREQUENCY_MASK])
        self.chunk_count += 1
        self.term_count += length

    @property
    def row_count(self) -> int:
        """The number of terms."""
        return len(self._entries)

    def packed(self) -> PackedPostings:
        """All rows, in the order of the index of `postings`."""
        rows = sorted(self._entries.items(), key=itemgetter(0))
        entries = array("i")
        for _, row in rows:
            entries.extend(row)
        sizes = array("i", (len(row) for _, row in rows))
        return PackedPostings("\0".join(term for term, _ in rows), sizes, entries)

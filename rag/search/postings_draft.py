"""The postings of a segment: how BM25's numbers are stored, and a segment's postings while they are filled.

An index consists of segments. In a segment, each term has one row with an integer for every chunk that holds it: the
chunk's ordinal in the segment, the term's frequency there, and the chunk's length.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Final

K1: Final = 1.2
B: Final = 0.75
MAX_SEGMENT_CHUNKS: Final = 1 << 19

COPY_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_END: Final = struct.pack("!h", -1)
"""Around the rows of a table, in the binary form of PostgreSQL's COPY."""

_INT4_OID: Final = 23
_PIECE_BYTES: Final = 256 * 1024
# No term in UTF-8 has such a byte, and of 8 bytes of entries 4 are their sizes: it stands nowhere else.
_UNNUMBERED: Final = struct.pack("!iq", 8, -1)
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

"""What the index holds of a document, small enough for a document of a million chunks."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

HASH_BYTES: Final = 16
_ROW_BYTES: Final = HASH_BYTES + 8


class KnownChunks:
    """The ids of a document's chunks by the hashes of their content: 28 bytes a chunk.

    Each can be taken once; a hash that stands for several chunks gives them in the order of their ids.
    """

    def __init__(self) -> None:
        self._rows = bytearray()  # which pickle's protocol 5 hands on without a copy
        self._taken = array("i")  # of the chunks with one hash, at the place of the first; empty while none is

    def __len__(self) -> int:
        return len(self._rows) // _ROW_BYTES

    def add(self, content_hash: bytes, chunk_id: int) -> None:
        """Add a chunk; the hashes come in their order, and all before one is taken."""
        self._rows += content_hash + chunk_id.to_bytes(8)

    def take(self, content_hash: bytes) -> int | None:
        """A chunk with this hash that was not taken before."""
        self._taken = self._taken or array("i", bytes(4 * len(self)))
        first = bisect_left(range(len(self)), content_hash, key=self._hash)
        place = first + self._taken[first] if first < len(self) else first
        if place >= len(self) or self._hash(place) != content_hash:
            return None
        self._taken[first] += 1
        return self._id(place)

    def rest(self) -> Iterator[int]:
        """The chunks that were not taken."""
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

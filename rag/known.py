"""What the index holds of a document, small enough for a document of a million chunks."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

HASH_BYTES: Final = 16


class KnownChunks:
    """The ids of a document's chunks by the hashes of their content: 28 bytes a chunk.

    Each can be taken once; a hash that stands for several chunks gives them in the order of their ids.
    """

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._ids = array("q")
        self._taken = array("i")  # of the chunks with one hash, at the place of the first

    def add(self, content_hash: bytes, chunk_id: int) -> None:
        """Add a chunk; the hashes come in their order."""
        self._hashes += content_hash
        self._ids.append(chunk_id)
        self._taken.append(0)

    def take(self, content_hash: bytes) -> int | None:
        """A chunk with this hash that was not taken before."""
        first = bisect_left(range(len(self._ids)), content_hash, key=self._hash)
        place = first + self._taken[first] if first < len(self._ids) else first
        if place >= len(self._ids) or self._hash(place) != content_hash:
            return None
        self._taken[first] += 1
        return self._ids[place]

    def rest(self) -> Iterator[int]:
        """The chunks that were not taken."""
        first = 0
        for place, chunk_id in enumerate(self._ids):
            if self._hash(place) != self._hash(first):
                first = place
            if place - first >= self._taken[first]:
                yield chunk_id

    def _hash(self, place: int) -> bytes:
        return bytes(self._hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES])

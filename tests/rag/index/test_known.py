"""Finding the chunks of a document again by their hashes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rag.index.drafts import HASH_BYTES, KnownChunks

HASHES = st.integers(0, 5).map(lambda number: bytes([number]) * HASH_BYTES)


@given(st.lists(HASHES), st.lists(HASHES))
def test_each_chunk_is_found_once_by_its_hash_and_the_rest_is_left(held: list[bytes], wanted: list[bytes]) -> None:
    chunks = KnownChunks()
    left: dict[bytes, list[int]] = {}
    for chunk_id, content_hash in enumerate(sorted(held), start=10):
        chunks.add(content_hash, chunk_id)
        left.setdefault(content_hash, []).append(chunk_id)
    for content_hash in wanted:
        same = left.get(content_hash)
        assert chunks.take(content_hash) == (same.pop(0) if same else None)
    assert sorted(chunks.rest()) == sorted(chunk_id for ids in left.values() for chunk_id in ids)

"""Passages with what stands around them in their section, where there is room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rag.search.retrieve import Passage
from rag.search.snapshot import read_around, snapshot

FENCE_TOKENS: Final = 40
"""What the tags of a passage take in a prompt, at most."""


async def with_neighbours(passages: Sequence[Passage], room: int) -> list[Passage]:
    """Join each passage with the chunks before and after it in its section, the best passage first.

    A joined passage keeps its chunk's id and score; its text is the file's from its start to its end. One that
    meets a better one is joined into that. All of them together stay within `room` tokens; if they do not even
    without neighbours, nothing is joined.
    """
    room -= sum(passage.token_count + FENCE_TOKENS for passage in passages)
    if room <= 0 or not passages:
        return list(passages)
    async with snapshot() as connection:
        around = await read_around(connection, [passage.chunk_id for passage in passages])
    joined: list[Passage] = []
    for passage in passages:
        if _joined_into_better(joined, passage):
            room += FENCE_TOKENS
            continue
        # A document that was indexed anew meanwhile may have moved the chunk.
        beside = [row for row in around.get(passage.chunk_id, ()) if row["anchor"] == passage.start_offset]
        for chunk in (_as_passage(passage, row) for row in beside):
            # The sum of both counts is an upper bound: they share an overlap.
            is_new = not any(_meet(chunk, better) for better in joined)
            if chunk.token_count <= room and is_new and (wider := _join(passage, chunk)):
                room -= chunk.token_count
                passage = wider
        joined.append(passage)
    return joined


def _joined_into_better(joined: list[Passage], passage: Passage) -> bool:
    for index, better in enumerate(joined):
        if _meet(better, passage) and (wider := _join(better, passage)):
            joined[index] = wider
            return True
    return False


def _as_passage(passage: Passage, row: Mapping[str, Any]) -> Passage:
    columns = ("text", "start_offset", "end_offset", "token_count")
    return replace(passage, **{name: row[name] for name in columns})


def _meet(one: Passage, other: Passage) -> bool:
    return (
        one.document == other.document
        and one.heading == other.heading
        and one.start_offset <= other.end_offset
        and other.start_offset <= one.end_offset
    )


def _join(passage: Passage, other: Passage) -> Passage | None:
    """Both as one text; None where a gap is between them, of which only the file knows the blanks."""
    first, second = sorted((passage, other), key=lambda part: part.start_offset)
    if second.start_offset > first.end_offset:
        return None
    if second.end_offset <= first.end_offset:
        text, end, tokens = first.text, first.end_offset, first.token_count
    else:
        text, end = first.text + second.text[first.end_offset - second.start_offset :], second.end_offset
        tokens = first.token_count + second.token_count
    return replace(passage, text=text, start_offset=first.start_offset, end_offset=end, token_count=tokens)

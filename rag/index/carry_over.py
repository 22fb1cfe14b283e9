"""Copies the chunks of unreadable documents from the current generation into a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.corpus.chunk import Chunk, ChunkSettings
from rag.index.drafts import pack
from rag.index.generations import Generation
from rag.index.runs import RunRecord
from rag.index.segments import write

_AT_ONCE: Final = 500


async def carry_over(run: RunRecord, generation: Generation, settings: ChunkSettings) -> int:
    """Copy the chunks of documents that the new generation lacks; returns the number of documents.

    Their files may be unreadable, broken, or on a disk that is not mounted. The chunks stay as they were cut until a
    run can read the file.
    """
    documents = await Tortoise.get_connection("default").execute_query_dict(_LACKING)
    for document in documents:
        await _carry(run, document, generation, settings)
    return len(documents)


async def _carry(run: RunRecord, document: Mapping[str, Any], generation: Generation, settings: ChunkSettings) -> None:
    async def work(connection: BaseDBAsyncClient) -> None:
        await run.hold(connection)
        last = -1
        while rows := await connection.execute_query_dict(_CHUNKS, [document["id"], last, _AT_ONCE]):
            chunks = [Chunk(**row) for row in rows]
            last = chunks[-1].position
            draft = await asyncio.to_thread(pack, document["path"], document["title"], chunks, settings)
            await write(connection, draft, generation.id)
        await connection.execute_query(_CARRIED, [document["id"]])

    await transact(work)


_LACKING: Final = """
SELECT id, path, title FROM documents WHERE next_hash IS NULL AND EXISTS (
    SELECT FROM chunks JOIN generations ON generations.id = chunks.generation_id AND generations.is_current
    WHERE chunks.document_id = documents.id
) ORDER BY id
"""
_CHUNKS: Final = """
SELECT position, heading, text, start_offset, end_offset, token_count
FROM chunks JOIN generations ON generations.id = chunks.generation_id AND generations.is_current
WHERE document_id = $1 AND position > $2 ORDER BY position LIMIT $3
"""
# No content has this hash and no file has this stamp: the next run that can read the file indexes it.
_CARRIED: Final = "UPDATE documents SET next_hash = '', stamp = '' WHERE id = $1"

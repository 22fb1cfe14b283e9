"""What is stored: the messages of a session, the sources of an answer, and a passage within its document.

Everything comes from PostgreSQL. No path is ever taken from a browser and no file opened, so the gateway may run where
the corpus folder is not, and shows of a document only what surrounds a passage that the user's own answer was given.
"""

from __future__ import annotations

from typing import Final, Self
from uuid import UUID

import asyncpg
from protostar_client import HistoryMessage, Source
from pydantic import BaseModel, TypeAdapter

_NEIGHBOURS: Final = 2
_SOURCES: Final = TypeAdapter(list[Source])

_OF_ANSWERS: Final = """
SELECT messages.job_id, messages.sources FROM messages JOIN sessions ON sessions.id = messages.session_id
WHERE sessions.user_uuid = $1 AND messages.job_id = ANY($2::text[])
AND messages.role = 'assistant' AND messages.sources IS NOT NULL
"""
_NEWEST: Final = """
SELECT messages.id AS message_id, messages.role, messages.content, messages.summary, messages.status,
    messages.created_at, messages.job_id, CASE WHEN messages.role = 'assistant' THEN messages.sources END AS sources
FROM messages JOIN sessions ON sessions.id = messages.session_id
WHERE sessions.user_uuid = $1 AND sessions.session_id = $2 ORDER BY messages.id DESC LIMIT $3
"""
_AROUND: Final = """
SELECT chunks.id, chunks.heading, chunks.text, chunks.start_offset, chunks.end_offset, documents.path
FROM chunks JOIN documents ON documents.id = chunks.document_id
JOIN chunks AS asked ON asked.document_id = chunks.document_id AND asked.generation_id = chunks.generation_id
WHERE asked.id = $1 AND abs(chunks.position - asked.position) <= $2 ORDER BY chunks.position
"""


class PastMessage(HistoryMessage):
    """A message of a session, with the sources of an answer."""

    sources: list[Source]


class Passage(BaseModel):
    """A passage and what stands before and after it in its document."""

    chunk_id: int
    document: str
    heading: str
    before: str
    text: str
    after: str


class Library:
    """Reads the tables that Protostar's contract names; writes nothing."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, database_url: str) -> Self:
        """A library of the database at `database_url`; it is reached at the first question."""
        settings = {"application_name": "protostar-gateway", "default_transaction_read_only": "on"}
        pool = await asyncpg.create_pool(
            database_url, min_size=0, max_size=10, timeout=5, command_timeout=5, server_settings=settings
        )
        return cls(pool)

    async def close(self) -> None:
        """Let go of the database."""
        await self._pool.close()

    async def sources(self, user_uuid: UUID, job_ids: list[str]) -> dict[str, list[Source]]:
        """The sources of those stored answers of the user's that have some, by job id."""
        rows = await self._pool.fetch(_OF_ANSWERS, user_uuid, job_ids)
        return {row["job_id"]: _SOURCES.validate_json(row["sources"]) for row in rows}

    async def messages(self, user_uuid: UUID, session_id: str, limit: int) -> list[PastMessage]:
        """Read the newest messages of a session of the user's, oldest first; none where there is no such session."""
        rows = await self._pool.fetch(_NEWEST, user_uuid, session_id, limit)
        return [
            PastMessage(**{**row, "sources": _SOURCES.validate_json(row["sources"] or "[]")}) for row in reversed(rows)
        ]

    async def passage(self, chunk_id: int) -> Passage | None:
        """A passage; None where its document was changed or removed since it was quoted."""
        rows = await self._pool.fetch(_AROUND, chunk_id, _NEIGHBOURS)
        asked = next((row for row in rows if row["id"] == chunk_id), None)
        if asked is None:
            return None
        text, first = _joined(rows), rows[0]["start_offset"]
        return Passage(
            chunk_id=chunk_id,
            document=asked["path"],
            heading=asked["heading"],
            before=text[: asked["start_offset"] - first],
            text=asked["text"],
            after=text[asked["end_offset"] - first :],
        )


def _joined(rows: list[asyncpg.Record]) -> str:
    """The document's text from the first row to the last; what lies between two chunks is white space."""
    first = end = rows[0]["start_offset"]
    text = ""
    for row in rows:
        text += "\n" * (row["start_offset"] - end)
        text += row["text"][max(0, end - row["start_offset"]) :]
        end = max(end, row["end_offset"])
    assert len(text) == end - first
    return text

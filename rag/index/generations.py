"""Generations of the index: one is current while another, with other settings, is built beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.analysis import morphemes
from rag.analysis.terms import TERMS_VERSION
from rag.corpus.chunk import CHUNKER_VERSION, ChunkSettings
from rag.corpus.tokens import TokenCounter

_DELETED_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Generation:
    """One build of the index; retrieval reads the one with `is_current`."""

    id: int
    is_current: bool


def fingerprint(settings: ChunkSettings, embedding_model: str = "") -> str:
    """Describe the settings of an index: the same fingerprint gives the same chunks, terms and vectors.

    Raises:
        MissingAnalyserError: morphemes are configured and their analyser is not installed.
    """
    encoding = TokenCounter(settings.model).encoding_name
    return (
        f"chunker={CHUNKER_VERSION} terms={TERMS_VERSION} encoding={encoding} "
        f"max_tokens={settings.max_tokens} overlap={settings.overlap}"
        + (f" morphemes={morphemes.version()}" if settings.morphemes else "")
        + (f" embedding={embedding_model}" if embedding_model else "")
    )


async def keep_encoding(settings: ChunkSettings) -> ChunkSettings:
    """Complete settings without a model by the encoding of the current index, if there is one."""
    if settings.model:
        return settings
    current = await _current_settings()
    encoding = re.search(r"encoding=(\S+)", current)
    return replace(settings, model=encoding[1]) if encoding else settings


async def find_generation(settings: ChunkSettings, *, full: bool, embedding_model: str = "") -> Generation | None:
    """The current generation if `open_generation` would return it; writes nothing."""
    wanted = fingerprint(settings, embedding_model)
    rows = await Tortoise.get_connection("default").execute_query_dict(
        "SELECT id FROM generations WHERE is_current AND settings = $1", [wanted]
    )
    return Generation(rows[0]["id"], is_current=True) if rows and not full else None


async def _current_settings() -> str:
    rows = await Tortoise.get_connection("default").execute_query_dict(
        "SELECT settings FROM generations WHERE is_current"
    )
    return str(rows[0]["settings"]) if rows else ""


async def open_generation(settings: ChunkSettings, *, full: bool, embedding_model: str = "") -> Generation:
    """Open the generation to write to: the current one, an unfinished one, or a new one.

    An unfinished generation with other settings is deleted.
    """
    wanted = fingerprint(settings, embedding_model)

    async def work(connection: BaseDBAsyncClient) -> Generation:
        rows = await connection.execute_query_dict("SELECT id, settings, is_current FROM generations ORDER BY id")
        current = next((row for row in rows if row["is_current"]), None)
        if current and current["settings"] == wanted and not full:
            return Generation(current["id"], is_current=True)
        purpose = f"full {wanted}" if full else wanted
        for row in rows:
            if not row["is_current"] and row["settings"] == purpose:
                return Generation(row["id"], is_current=False)
        await connection.execute_query("UPDATE documents SET next_hash = NULL WHERE next_hash IS NOT NULL")
        made = await connection.execute_query_dict(
            "INSERT INTO generations (settings, is_current) VALUES ($1, $2) RETURNING id",
            [wanted if current is None else purpose, current is None],
        )
        return Generation(made[0]["id"], is_current=current is None)

    generation = await transact(work)
    await _delete_others(generation)
    return generation


async def finish_generation(generation: Generation) -> None:
    """Make a complete generation the current one, in one transaction, and delete the one before."""

    async def switch(connection: BaseDBAsyncClient) -> None:
        await connection.execute_query(
            "UPDATE generations SET is_current = (id = $1), settings = regexp_replace(settings, '^full ', '')",
            [generation.id],
        )
        await connection.execute_query(
            "UPDATE documents SET content_hash = next_hash, next_hash = NULL "
            "WHERE content_hash IS DISTINCT FROM next_hash OR next_hash IS NOT NULL"
        )

    await transact(switch)
    await _delete_others(Generation(generation.id, is_current=True))


async def _delete_others(generation: Generation) -> None:
    """Delete all other generations that are not current, in steps shorter than any statement timeout."""
    database = Tortoise.get_connection("default")
    old = await database.execute_query_dict(
        "SELECT id FROM generations WHERE NOT is_current AND id <> $1", [generation.id]
    )
    for row in old:
        while await _delete_some(
            "DELETE FROM segments WHERE id IN (SELECT id FROM segments WHERE generation_id = $1 LIMIT 1)", row["id"]
        ):
            pass
        while await _delete_some(
            f"DELETE FROM chunks WHERE id IN (SELECT id FROM chunks WHERE generation_id = $1 LIMIT {_DELETED_AT_ONCE})",
            row["id"],
        ):
            pass
        await _delete_some("DELETE FROM generations WHERE id = $1", row["id"])


async def _delete_some(statement: str, generation_id: int) -> int:
    async def work(connection: BaseDBAsyncClient) -> int:
        count, _ = await connection.execute_query(statement, [generation_id])
        return int(count)

    return await transact(work)

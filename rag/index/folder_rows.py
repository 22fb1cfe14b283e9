"""Which folder of the corpus is which: the rows of `folders`."""

from __future__ import annotations

from typing import Any

from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient

from models.transaction import transact
from rag.corpus.walk import Walk


async def load_folders() -> dict[str, str]:
    """The identities of the folders that held something when they were last read, by their paths."""
    rows = await Tortoise.get_connection("default").execute_query_dict("SELECT path, identity FROM folders")
    return {row["path"]: row["identity"] for row in rows}


async def remember_folders(found: Walk, known: dict[str, str]) -> None:
    """Write down the folders of a walk whose findings are indexed; forget those that are gone."""
    unseen = set(found.unseen)
    changed = {path: identity for path, identity in found.folders.items() if known.get(path) != identity}
    gone = [path for path in known if path not in found.folders and path not in unseen]

    async def work(connection: BaseDBAsyncClient) -> None:
        database: Any = connection._connection
        await database.execute("DELETE FROM folders WHERE path = ANY($1::text[])", gone)
        await database.execute(
            "INSERT INTO folders (path, identity) SELECT * FROM unnest($1::text[], $2::text[]) "
            "ON CONFLICT (path) DO UPDATE SET identity = EXCLUDED.identity",
            list(changed),
            list(changed.values()),
        )

    if changed or gone:
        await transact(work)

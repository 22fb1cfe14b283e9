"""Bringing a database to the current schema with Tortoise's own migrations."""

from __future__ import annotations

from typing import Final

from models.database import connect, migrations, pending_migrations

_LOCK_KEY: Final = 0x70726F746F  # "proto": one migration at a time, whoever runs it


async def migrate(database_url: str) -> list[str]:
    """Apply what is missing, one process at a time; returns the names of the migrations applied.

    Raises:
        DatabaseError: PostgreSQL is unreachable or the database does not exist.
    """
    async with (
        connect(database_url, require_schema=False) as database,
        database.acquire_connection() as connection,
    ):
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
        try:
            missing = await pending_migrations(database)
            await migrations(database).migrate()
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)
    return missing

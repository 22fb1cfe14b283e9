"""Connecting Tortoise to PostgreSQL, and checking that the schema is current."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
from tortoise import Tortoise
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import BaseORMException
from tortoise.migrations.executor import MigrationExecutor

APP: Final = "models"

POOL_SIZE: Final = 20
COMMAND_TIMEOUT_S: Final = 20
_SERVER_SETTINGS: Final = {
    "application_name": "protostar",
    "statement_timeout": "20s",
    "idle_in_transaction_session_timeout": "30s",
}

_APP_CONFIG: Final = {
    "models": ["models.conversation"],
    "migrations": "models.migrations",
    "default_connection": "default",
}


class DatabaseError(Exception):
    """PostgreSQL can't be used; the message is one line that says why and what to do."""


def tortoise_config(database_url: str) -> dict[str, Any]:
    """Tortoise's configuration for `database_url` (`postgres://` or `postgresql://`)."""
    connection = expand_db_url(database_url)
    credentials = connection["credentials"]
    if "sslmode" in credentials:  # libpq's name in URLs; asyncpg takes the same values as `ssl`
        credentials["ssl"] = credentials.pop("sslmode")
    credentials.update(
        minsize=1,
        maxsize=POOL_SIZE,
        timeout=10,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings=dict(_SERVER_SETTINGS),
    )
    return {
        "connections": {"default": connection},
        "apps": {APP: _APP_CONFIG},
        "use_tz": True,
    }


@asynccontextmanager
async def connect(database_url: str, *, require_schema: bool = True) -> AsyncIterator[BaseDBAsyncClient]:
    """Initialise Tortoise for the running task and its children; close the connections on leaving.

    Raises:
        DatabaseError: PostgreSQL is unreachable, the database is missing, or (with `require_schema`)
            its schema is not the current one.
    """
    context = await Tortoise.init(config=tortoise_config(database_url))
    try:
        database = context.db()
        await _ping(database, database_url)
        if require_schema:
            await _require_schema(database)
        yield database
    finally:
        # `Tortoise.close_connections()` looks in a context variable and so does nothing in another task.
        await context.close_connections()


def migrations(database: BaseDBAsyncClient) -> MigrationExecutor:
    """Tortoise's executor for this project's migrations."""
    return MigrationExecutor(database, {APP: _APP_CONFIG})


async def pending_migrations(database: BaseDBAsyncClient) -> list[str]:
    """Names of the migrations that `database` lacks, oldest first."""
    return [step.migration.name for step in await migrations(database).plan()]


async def _ping(database: BaseDBAsyncClient, database_url: str) -> None:
    try:
        await database.execute_query("SELECT 1")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, BaseORMException) as error:
        if isinstance(error.__cause__, asyncpg.InvalidCatalogNameError):
            raise DatabaseError(
                f"DATABASE_URL names a database that does not exist ({_place(database_url)}); "
                "create it with createdb, then run: protostar migrate"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatabaseError(
            f"PostgreSQL at {_place(database_url)} can't be used: {reason}; check DATABASE_URL and the server"
        ) from None


async def _require_schema(database: BaseDBAsyncClient) -> None:
    if missing := await pending_migrations(database):
        raise DatabaseError(f"the database is not migrated ({', '.join(missing)} missing); run: protostar migrate")


def _place(database_url: str) -> str:
    """Host, port and database of a URL, without its password."""
    parts = urlsplit(database_url)
    host = parts.hostname or "the local socket"
    return f"{host}{f':{parts.port}' if parts.port else ''}{parts.path}"

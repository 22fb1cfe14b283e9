"""`protostar migrate`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from protostar.cli.support.errors import failing_on
from protostar.cli.support.output import note, write, write_json
from protostar.settings import DatabaseSettings, SettingsError, load


def migrate(json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """Bring the database to the current schema; print the migrations that were applied."""
    # Imported here, as in the other commands: asking a question need not wait for a database driver.
    from models.database import DatabaseError
    from models.migrate import migrate as apply_migrations

    with failing_on(SettingsError, DatabaseError):
        database_url = load(DatabaseSettings).database_url.get_secret_value()
        applied = asyncio.run(apply_migrations(database_url))
    if json:
        write_json({"applied": applied})
        return
    for name in applied:
        write(f"{name}\n")
    note(f"{len(applied)} migrations applied" if applied else "the schema is current")

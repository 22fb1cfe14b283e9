"""`protostar usage`: tokens and cost by user and day."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from protostar.cli.support.errors import failing_on
from protostar.cli.support.output import note, write, write_json
from protostar.settings import DatabaseSettings, SettingsError, load

# Days are UTC's, as those of the caps; what a request under way will cost is in them as an estimate.
_BY_DAY: Final = """
SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day, user_uuid::text AS user_uuid,
  count(*)::int AS attempts, count(*) FILTER (WHERE estimated)::int AS estimated_attempts,
  sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens, sum(cost)::float8 AS cost
FROM charges
WHERE ($1::uuid IS NULL OR user_uuid = $1::uuid)
  AND created_at >= (date_trunc('day', now() AT TIME ZONE 'UTC') - ($2::int - 1) * interval '1 day') AT TIME ZONE 'UTC'
GROUP BY 1, 2 ORDER BY 1 DESC, sum(input_tokens::bigint + output_tokens) DESC, 2
"""
_HEADS: Final = ("day (UTC)", "user", "attempts", "input", "output", "cost", "estimated")
_ROW: Final = "{:<10}  {:<36}  {:>8}  {:>12}  {:>12}  {:>12}  {:>9}\n"


def usage(
    user: Annotated[UUID | None, typer.Option(help="Only this user.")] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="The number of days, today included.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per day and user.")] = False,
) -> None:
    """Print tokens and cost by user and day, the newest day first."""
    from models.database import DatabaseError

    with failing_on(SettingsError, DatabaseError):
        rows = asyncio.run(_by_day(load(DatabaseSettings), user, days))
    if json:
        for row in rows:
            write_json(row)
    elif rows:
        write(_ROW.format(*_HEADS) + "".join(_line(row) for row in rows))
    else:
        note(f"nothing was used in the last {days} days" if days > 1 else "nothing was used today")


async def _by_day(settings: DatabaseSettings, user: UUID | None, days: int) -> list[dict[str, Any]]:
    from models.database import connect

    async with connect(settings.database_url.get_secret_value()) as database:
        return await database.execute_query_dict(_BY_DAY, [user, days])


def _line(row: dict[str, Any]) -> str:
    cost = "-" if row["cost"] is None else f"{row['cost']:.6f}"
    tokens = (f"{row['input_tokens']:,}", f"{row['output_tokens']:,}")
    return _ROW.format(
        row["day"], row["user_uuid"] or "-", row["attempts"], *tokens, cost, row["estimated_attempts"] or ""
    )

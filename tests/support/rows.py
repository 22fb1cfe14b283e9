"""Rows of the corpus tables, which no model queries."""

from __future__ import annotations

from typing import Any

from tortoise import Tortoise


async def fetch(query: str, *values: object) -> list[dict[str, Any]]:
    """The rows of a query."""
    return await Tortoise.get_connection("default").execute_query_dict(query, list(values))


async def fetch_one(query: str, *values: object) -> dict[str, Any]:
    """The row of a query that has exactly one."""
    [row] = await fetch(query, *values)
    return row


async def fetch_values(query: str, *values: object) -> list[Any]:
    """The values of a query with one column."""
    return [value for row in await fetch(query, *values) for value in row.values()]


async def count(table_and_condition: str, *values: object) -> int:
    """The number of rows of a table, with an optional condition behind its name."""
    return int((await fetch_one(f"SELECT count(*) FROM {table_and_condition}", *values))["count"])

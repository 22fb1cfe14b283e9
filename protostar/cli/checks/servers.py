"""Checks of Redis and PostgreSQL: reachable, and configured as Protostar needs them."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable
from typing import Any, Final, cast

from protostar.cli.checks.finding import Away, Finding, note, ok, problem
from protostar.cli.checks.site import Site

OLDEST_REDIS: Final = (6, 2)
OLDEST_POSTGRES: Final = 14
_FULL: Final = 0.9
_BLIND: Final = ("C", "POSIX")


async def redis_server(site: Site) -> Finding:
    """Check that Redis answers and accepts writes."""
    try:
        server = await site.redis()
        began_s = time.perf_counter()
        await cast(Awaitable[bool], server.ping())
        took_ms = (time.perf_counter() - began_s) * 1000
        info = await site.redis_info()
    except Away as away:
        return problem("redis", away.cause or away.why, away.remedy or "allow the user of REDIS_URL the command INFO")
    if info.get("role") != "master":
        return problem("redis", "REDIS_URL names a replica, which takes no writes", "set REDIS_URL to the primary")
    if info.get("aof_last_write_status", "ok") != "ok":
        remedy = "free space on its disk, and look at its log"
        return problem("redis", "Redis can't write its append-only file and so takes no writes", remedy)
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most and used > _FULL * most:
        says = f"Redis uses {used / most:.0%} of its maxmemory; when that is full it takes no job and no token"
        return problem("redis", says, "raise maxmemory, or lower PROTOSTAR_EVENT_TTL")
    return ok("redis", f"answers in {took_ms:.1f} ms")


async def redis_version(site: Site) -> Finding:
    """Check that Redis is new enough for the scripts."""
    info = await site.redis_info()
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    oldest = ".".join(map(str, OLDEST_REDIS))
    if numbers < OLDEST_REDIS:
        return problem(
            "redis version", f"Redis {version} is too old", f"upgrade it to {oldest} or newer, or use Valkey"
        )
    valkey = info.get("valkey_version")
    return ok("redis version", f"Valkey {valkey} (as Redis {version})" if valkey else f"Redis {version}")


async def redis_durability(site: Site) -> Finding:
    """Check that Redis keeps what it has accepted."""
    if int((await site.redis_info()).get("aof_enabled", 0)):
        return ok("redis durability", "the append-only file is on")
    says = "Redis has no append-only file (appendonly no): a restart of it loses jobs and answers that were accepted"
    remedy = "set `appendonly yes` in redis.conf; without a restart: redis-cli CONFIG SET appendonly yes"
    return problem("redis durability", says, remedy)


async def redis_eviction(site: Site) -> Finding:
    """Check that Redis evicts nothing."""
    policy = str((await site.redis_info()).get("maxmemory_policy", ""))
    if policy == "noeviction":
        return ok("redis eviction", "maxmemory-policy is noeviction")
    says = f"maxmemory-policy is {policy or 'not known'}: when its memory is full, Redis throws jobs and answers away"
    remedy = "set `maxmemory-policy noeviction`; without a restart: redis-cli CONFIG SET maxmemory-policy noeviction"
    return problem("redis eviction", says, remedy)


async def postgres_server(site: Site) -> Finding:
    """Check that PostgreSQL answers and is new enough."""
    try:
        database = await site.database()
    except Away as away:
        return problem("postgres", away.cause or away.why, away.remedy or "correct DATABASE_URL")
    began_s = time.perf_counter()
    rows = await database.execute_query_dict(
        "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version"
    )
    took_ms = (time.perf_counter() - began_s) * 1000
    number, version = rows[0]["number"], rows[0]["version"]
    if number < OLDEST_POSTGRES * 10_000:
        return problem("postgres", f"PostgreSQL {version} is too old", f"upgrade it to {OLDEST_POSTGRES} or newer")
    return ok("postgres", f"PostgreSQL {version} answers in {took_ms:.1f} ms")


async def schema(site: Site) -> Finding:
    """Check that the database is migrated."""
    await site.database()
    try:
        await site.migrated()
    except Away as away:
        return problem("schema", away.cause, away.remedy)
    return ok("schema", "the schema is current")


async def locale(site: Site) -> Finding:
    """Check that the database's locale knows Hangul."""
    database = await site.database()
    # As JSON, because PostgreSQL 14 has no column for the provider of the locale.
    rows = await database.execute_query_dict(
        "SELECT pg_encoding_to_char(encoding) AS encoding, datctype AS ctype, "
        "coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider, "
        "coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', '') AS name "
        "FROM pg_database d WHERE datname = current_database()"
    )
    found: dict[str, Any] = rows[0]
    remedy = (
        "dump the database and restore it into a new one: "
        "createdb --template=template0 --encoding=UTF8 --locale=C.UTF-8 NAME; then point DATABASE_URL there"
    )
    if found["encoding"] != "UTF8":
        says = f"wrong locale: the database's encoding is {found['encoding']}, which does not hold every text"
        return problem("locale", says, remedy)
    name = found["ctype"] if found["provider"] == "c" else found["name"]
    if name in _BLIND:
        says = f"wrong locale: the database's LC_CTYPE is {name}, which knows no letters beyond ASCII, Hangul neither"
        return problem("locale", says, remedy)
    return ok("locale", f"UTF8, {name}")


async def pgvector(site: Site) -> Finding:
    """Check for the optional extension pgvector."""
    database = await site.database()
    rows = await database.execute_query_dict(
        "SELECT default_version AS version FROM pg_available_extensions WHERE name = 'vector'"
    )
    if rows:
        return ok("pgvector", f"pgvector {rows[0]['version']} is there for a large corpus's vectors")
    says = "the optional extension pgvector is missing; Protostar does without: workers compare the vectors themselves"
    return note(
        "pgvector",
        says,
        "nothing below 256 MiB of vectors (131,072 chunks of 512 numbers), else the package postgresql-NN-pgvector",
    )

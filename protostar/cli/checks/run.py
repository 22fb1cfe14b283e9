"""Runs all checks concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
from redis.exceptions import RedisError

from protostar.cli.checks import corpus, models, servers, workers
from protostar.cli.checks.environment import examine
from protostar.cli.checks.finding import Away, Finding, note, ok, problem, skipped, told
from protostar.cli.checks.site import Site
from protostar.settings import unknown_variables

Found = Finding | list[Finding]

_DEADLINE_S: Final = 8.0
_MODELS_DEADLINE_S: Final = 30.0  # each model has a limit of its own
_SPEAKING: Final = (RedisError, asyncpg.PostgresError, OSError)


@dataclass(frozen=True, slots=True)
class Check:
    """A check of one part. It has `deadline_s` to answer, and its failure does not affect the others."""

    name: str
    look: Callable[[Site], Awaitable[Found]]
    asks_model: bool = False
    deadline_s: float = _DEADLINE_S


async def _settings(site: Site) -> Found:
    wrong = [problem("settings", *told(line, otherwise="correct it")) for line in site.problems]
    unknown = [note("settings", f"{found.name} is not a setting", found.advice) for found in unknown_variables()]
    return [*wrong, *unknown] or ok("settings", "every variable is right")


CHECKS: Final = (
    Check("settings", _settings),
    Check("redis", servers.redis_server),
    Check("redis version", servers.redis_version),
    Check("redis durability", servers.redis_durability),
    Check("redis eviction", servers.redis_eviction),
    Check("postgres", servers.postgres_server),
    Check("schema", servers.schema),
    Check("locale", servers.locale),
    Check("pgvector", servers.pgvector),
    Check("model", models.models, asks_model=True, deadline_s=_MODELS_DEADLINE_S),
    Check("pauses", workers.paused_models),
    Check("corpus", corpus.corpus),
    Check("prompts", corpus.prompts),
    Check("index", corpus.index),
    Check("workers", workers.workers),
    Check("jobs", workers.jobs),
    Check("dead jobs", workers.dead_letters),
    Check("outbox", workers.outbox),
)


async def diagnose(*, asks_models: bool = True) -> list[Finding]:
    """Run all checks concurrently and return their findings in order."""
    site = Site(examine())
    if asks_models:
        await models.warm_up(site.settings)
    try:
        checks = [check for check in CHECKS if asks_models or not check.asks_model]
        found = await asyncio.gather(*(_find(check, site) for check in checks))
        return [finding for findings in found for finding in findings]
    finally:
        await site.close()


async def _find(check: Check, site: Site) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(check.deadline_s):
            found = await check.look(site)
    except Away as away:
        return [skipped(check.name, away.why)]
    except TimeoutError:
        says = f"gave no answer within {check.deadline_s:g} s"
        return [problem(check.name, says, "look at the load and the disks of the servers, then try again")]
    except Exception as error:  # one check must not hide what the others found
        # Other errors' texts may quote a URL with its password.
        says = f"{type(error).__name__}: {error}" if isinstance(error, _SPEAKING) else type(error).__name__
        return [problem(check.name, f"can't be checked: {says}", "look at the log of the server that it is about")]
    return found if isinstance(found, list) else [found]

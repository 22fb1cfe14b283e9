"""The queue as the worker sees it: one method a script of tasks/engine/lua."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, Literal, cast

from protostar_client import keys
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_LUA_DIR: Final = Path(__file__).parent / "lua"
_INCLUDE: Final = re.compile(r"^-- include: (.+)$", re.MULTILINE)

SCAN_LIMIT: Final = 500
REDIS_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Claim:
    """A job this worker holds the lease of.

    `attempt` fences its effects; `spared` attempts don't count; `history` says why earlier attempts ended
    (`attempt`, `reason`, `at_ms`).
    """

    id: bytes
    attempt: int
    spared: int
    rank_ms: int
    payload: bytes | None
    aborted: bool
    history: tuple[dict[str, Any], ...] = ()

    @property
    def tries(self) -> int:
        """How many attempts count, with this one."""
        return self.attempt - self.spared

    @property
    def job_id(self) -> str:
        """The id as text, readable also where it is not UTF-8."""
        return self.id.decode(errors="backslashreplace")

    @property
    def last_reason(self) -> str:
        """Why the attempt before this one ended."""
        return str(self.history[-1]["reason"]) if self.history else "unknown"


@dataclass(frozen=True, slots=True)
class Claimed:
    """The reply to a claim: `next_due_ms` is -1 where nothing is deferred."""

    claims: list[Claim]
    next_due_ms: int
    has_more: bool


@cache
def script(name: str) -> str:
    """The text of `tasks/engine/lua/{name}.lua`, after the names of `protostar_client.keys` and what it includes."""
    text = (_LUA_DIR / f"{name}.lua").read_text()
    included = _INCLUDE.search(text)
    parts = [(_LUA_DIR / part).read_text() for part in (included[1].split() if included else [])]
    return "\n".join([_key_names(), *parts, text])


def _key_names() -> str:
    names = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    values = (f"'{value}'" for value in names.values())
    return f"local {', '.join(names)} = {', '.join(values)}"


class Queue:
    """ARQ's queue on `redis`, for the worker `owner`."""

    def __init__(
        self,
        redis: Redis,
        *,
        owner: str,
        classes: Mapping[str, str],
        turn_function: str,
        lease_ttl_ms: Mapping[str, int],
    ) -> None:
        self._redis = redis
        self._finishes = Batch(redis, "finish")
        self.owner = owner
        self._options = {
            "classes": dict(classes),
            "turn_function": turn_function,
            "lease_ttl_ms": dict(lease_ttl_ms),
        }

    async def claim(self, free: Mapping[str, int]) -> Claimed:
        """Take up to `free[class]` ready jobs of each class."""
        options = json.dumps({**self._options, "free": dict(free)})
        claims, next_due, has_more = await run_script(self._redis, "claim", self.owner, SCAN_LIMIT, options)
        return Claimed([_claim(raw) for raw in claims], _whole_ms(next_due), bool(has_more))

    async def aborts(self) -> tuple[list[bytes], list[Claim]]:
        """Ids of running jobs somebody wants aborted, and claims of queued ones, to be ended at once."""
        running, claims = await run_script(self._redis, "abort", self.owner, json.dumps(self._options))
        return running, [_claim(raw) for raw in claims]

    async def ask_abort(self, claim: Claim) -> bool:
        """Ask, as ARQ's `Job.abort()` does, that a job be aborted."""
        await self._redis.zadd(keys.ABORT, {claim.id: claim.rank_ms + 1000})
        return True

    async def done(self, claim: Claim, *, result: bytes | None, result_ttl_ms: int, dead_letter: str = "") -> bool:
        """Finish a job for good; False if this attempt no longer holds it."""
        return await self._finish(claim, "done", result or b"", result_ttl_ms, dead_letter)

    async def retry(self, claim: Claim, *, delay_ms: int, spared: bool, reason: str) -> bool:
        """Run a job again after `delay_ms`; False if this attempt no longer holds it."""
        return await self._finish(claim, "retry", delay_ms, int(spared), reason)

    async def hand_over(self, claim: Claim) -> bool:
        """Make a job ready for any worker at once, its attempt not counted."""
        return await self._finish(claim, "hand_over")

    async def _finish(
        self, claim: Claim, how: Literal["done", "retry", "hand_over"], *arguments: str | int | bytes
    ) -> bool:
        return bool(await self._finishes.run(claim.id, self.owner, claim.attempt, how, *arguments))

    async def raise_attempt(self, claim: Claim, attempt: int) -> bool:
        """Number the running attempt anew, at least `attempt`; False if it no longer holds the job."""
        if not await run_script(self._redis, "raise_attempt", claim.id, self.owner, claim.attempt, attempt):
            return False
        claim.spared += attempt - claim.attempt
        claim.attempt = attempt
        return True

    async def reconcile(self, known: Iterable[bytes]) -> int:
        """Hand back what this worker was given but does not know of; returns how many."""
        return int(await run_script(self._redis, "reconcile", self.owner, *known))

    async def reap(self, owner: str, *, only_expired: bool) -> int:
        """Take the jobs of a lost worker back; returns how many."""
        return int(await run_script(self._redis, "reap", owner, int(only_expired)))

    async def sweep(self, queue_cursor: bytes, holders_cursor: bytes) -> tuple[bytes, bytes, int]:
        """Mend what has lost its place among some entries; returns the next cursors and how many were."""
        queue_next, holders_next, mended = await run_script(
            self._redis, "sweep", queue_cursor, holders_cursor, SCAN_LIMIT
        )
        return queue_next, holders_next, int(mended)


def _claim(raw: list[Any]) -> Claim:
    job_id, attempt, spared, rank, payload, aborted, history = raw
    attempts = tuple(json.loads(line) for line in history.splitlines())
    return Claim(job_id, int(attempt), int(spared), _whole_ms(rank), payload, bool(aborted), attempts)


def _whole_ms(score: bytes) -> int:
    """A score as milliseconds; -1 where it is no number a clock can show."""
    value = float(score)
    return int(value) if math.isfinite(value) else -1


async def run_script(redis: Redis, name: str, *arguments: str | int | bytes) -> Any:
    """Run `tasks/engine/lua/{name}.lua`, loading it where Redis has forgotten it.

    Raises:
        TimeoutError: no reply within `REDIS_TIMEOUT_S`; the script may have run.
    """
    text = script(name)
    values: Any = arguments  # redis-py takes numbers and bytes too, but says text
    async with asyncio.timeout(REDIS_TIMEOUT_S):
        try:
            return await cast(Awaitable[Any], redis.evalsha(_sha1(text), 0, *values))
        except NoScriptError:
            return await cast(Awaitable[Any], redis.eval(text, 0, *values))


class Batch:
    """Calls of one script: those that come while others are under way go to Redis together, as one message."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._name = name
        self._waiting: list[tuple[asyncio.Future[Any], tuple[str | int | bytes, ...]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, *arguments: str | int | bytes) -> Any:
        """As `run_script`; a call that is cancelled may still be made."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((reply, arguments))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name=f"batch:{self._name}")
        return await reply

    async def _send(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting, []
            try:
                replies = await self._replies([arguments for _, arguments in calls])
            except Exception as error:
                replies = [error] * len(calls)
            for (waiting, _), reply in zip(calls, replies, strict=True):
                if waiting.done():
                    continue
                if isinstance(reply, Exception):
                    waiting.set_exception(reply)
                else:
                    waiting.set_result(reply)
        self._sender = None

    async def _replies(self, calls: list[tuple[str | int | bytes, ...]]) -> list[Any]:
        sha1 = _sha1(script(self._name))
        pipeline = self._redis.pipeline(transaction=False)
        for arguments in calls:
            values: Any = arguments
            pipeline.evalsha(sha1, 0, *values)
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            replies = await pipeline.execute(raise_on_error=False)
        return [
            await run_script(self._redis, self._name, *arguments) if isinstance(reply, NoScriptError) else reply
            for arguments, reply in zip(calls, replies, strict=True)
        ]


@cache
def _sha1(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()

"""The queue as the worker uses it: one method a script."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from arq.constants import expires_extra_ms
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.claim import Claim
from tasks.engine.scripts import REDIS_TIMEOUT_S, Argument, Batch, Script

SCAN_LIMIT: Final = 100  # entries that one call looks at: Redis does nothing else for 4 ms
SILENT_MS: Final = 800  # more than a beat and its round trip

_ABORT: Final = Script.beside(__file__, "abort")
_CLAIM: Final = Script.beside(__file__, "claim")
_ENQUEUE_OWN: Final = Script.beside(__file__, "enqueue_own")
_FINISH: Final = Script.beside(__file__, "finish")
_RAISE_ATTEMPT: Final = Script.beside(__file__, "raise_attempt")
_REAP: Final = Script.beside(__file__, "reap")
_RECONCILE: Final = Script.beside(__file__, "reconcile")
_SILENT: Final = Script.beside(__file__, "silent")
_SWEEP: Final = Script.beside(__file__, "sweep")


ReapWhen = Literal["expired", "gone", "leaving"]


@dataclass(frozen=True, slots=True)
class Claimed:
    """The reply to a claim: the next job is due in `wait_ms`, or none is where it is -1."""

    claims: list[Claim]
    wait_ms: int
    has_more: bool


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
        self._finishes = Batch(redis, _FINISH)
        self.owner = owner
        self._options = {
            "classes": dict(classes),
            "turn_function": turn_function,
            "lease_ttl_ms": dict(lease_ttl_ms),
        }

    async def claim(self, free: Mapping[str, int]) -> Claimed:
        """Claim up to `free[class]` ready jobs of each class."""
        options = json.dumps({**self._options, "free": dict(free)})
        claims, wait_ms, has_more, now_ms = await _CLAIM.run(self._redis, self.owner, SCAN_LIMIT, options)
        return Claimed(await self._with_payloads(claims, now_ms), wait_ms, bool(has_more))

    async def aborts(self) -> tuple[list[bytes], list[Claim]]:
        """Return the ids of running jobs to abort, and claims of queued ones, to be ended at once."""
        running, claims, now_ms = await _ABORT.run(self._redis, self.owner, json.dumps(self._options))
        return running, await self._with_payloads(claims, now_ms)

    async def _with_payloads(self, raws: list[list[Any]], now_ms: int) -> list[Claim]:
        """Read claims; a long payload is read one by one, because a script that copies many holds Redis up."""
        claims = []
        for raw in raws:
            job_id, attempt, spared, rank, length, payload, aborted, history = raw
            if length and payload is None:
                async with asyncio.timeout(REDIS_TIMEOUT_S):
                    payload = await self._redis.get(keys.JOB_PREFIX.encode() + job_id)
            attempts = tuple(json.loads(line) for line in history.splitlines())
            claims.append(
                Claim(
                    job_id,
                    int(attempt),
                    int(spared),
                    _whole_ms(rank),
                    payload,
                    bool(aborted),
                    history=attempts,
                    claimed_ms=now_ms,
                )
            )
        return claims

    async def ask_abort(self, claim: Claim) -> bool:
        """Ask for the abort of a job, as ARQ's `Job.abort()` does."""
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

    async def _finish(self, claim: Claim, how: Literal["done", "retry", "hand_over"], *arguments: Argument) -> bool:
        return bool(await self._finishes.run(claim.id, self.owner, claim.attempt, how, *arguments))

    async def raise_attempt(self, claim: Claim, attempt: int) -> bool:
        """Number the running attempt anew, at least `attempt`; False if it no longer holds the job."""
        if not await _RAISE_ATTEMPT.run(self._redis, claim.id, self.owner, claim.attempt, attempt):
            return False
        claim.spared += attempt - claim.attempt
        claim.attempt = attempt
        return True

    async def reconcile(self, known: Iterable[bytes]) -> int:
        """Hand back the jobs that Redis lists for this worker and that are not `known` to it; returns how many."""
        return int(await _RECONCILE.run(self._redis, self.owner, *known))

    async def silent_workers(self) -> dict[str, float]:
        """Return the seconds since the last beat of workers that missed one; infinity where the lease has expired."""
        listed = await _SILENT.run(self._redis, SILENT_MS)
        pairs = zip(listed[::2], listed[1::2], strict=True)
        return {owner.decode(): ms / 1000 if ms >= 0 else math.inf for owner, ms in pairs}

    async def reap(self, owner: str, when: ReapWhen) -> int:
        """Take back the jobs of a lost worker; returns how many.

        Args:
            owner: the worker.
            when: `expired` only if its lease has expired, `gone` because its connection has, `leaving` because this
                worker signs off, which is not a death.
        """
        taken, left = await _REAP.run(self._redis, owner, when, SCAN_LIMIT)
        while left:
            more, left = await _REAP.run(self._redis, owner, when, SCAN_LIMIT)
            taken += more
        return int(taken)

    async def sweep(self, queue_cursor: bytes, holders_cursor: bytes) -> tuple[bytes, bytes, int]:
        """Repair entries that have lost their place, a page at a time; returns the next cursors and the number."""
        queue_next, holders_next, repaired = await _SWEEP.run(self._redis, queue_cursor, holders_cursor, SCAN_LIMIT)
        return queue_next, holders_next, int(repaired)


async def enqueue_own(redis: Redis, job_id: str, function: str, arguments: Mapping[str, Any], due_ms: int = 0) -> bool:
    """Enqueue a job of the worker's own; a job of a producer with the same id gives way.

    Args:
        redis: the queue's Redis.
        job_id: the id that all workers give this job.
        function: the job's function.
        arguments: its keyword arguments: plain values, no lists or objects.
        due_ms: when it is due, by Redis' clock; 0 is now.

    Returns:
        False where this job is in the queue or has a result.
    """
    record = json.dumps({"t": None, "f": function, "a": [], "k": dict(arguments)})
    payload = record[:-1] + ', "et": '
    return bool(await _ENQUEUE_OWN.run(redis, job_id, payload, expires_extra_ms, due_ms))


def _whole_ms(score: bytes) -> int:
    """A score as milliseconds; -1 where no clock shows it."""
    value = float(score)
    return int(value) if math.isfinite(value) else -1

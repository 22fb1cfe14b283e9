"""The event log: appends the events of all answers of a process to their Redis Streams, each once and in order.

One flusher appends at once when the process is quiet and every `FLUSH_S` when it is busy, with one call for all
answers. The text that comes in between becomes one `delta`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

import structlog
from protostar_client import keys
from protostar_client.contract import Event
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tasks.engine.claim import Claim
from tasks.engine.scripts import REDIS_TIMEOUT_S, Script
from tasks.engine.waiting import AWAY, keep_running, log_failure
from tasks.monitoring import metrics
from tasks.turn.answer_events import AnswerEvents, AppendState, Entry

logger = structlog.stdlib.get_logger("protostar.events")

_APPEND: Final = Script.beside(__file__, "append")

FLUSH_S: Final = 0.010
RETRY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Batch:
    events: AnswerEvents
    entries: list[Entry]


class EventLog:
    """Appends the events of all answers of this process.

    Args:
        redis: where the streams are.
        owner: the worker whose leases fence the answers.
        ttl_s: how long a stream stays readable after its last event.
        is_mirrored: whether older readers receive the events on their channels.
    """

    def __init__(self, redis: Redis, *, owner: str, ttl_s: int, is_mirrored: bool = True) -> None:
        self._redis = redis
        self._owner = owner
        self._ttl_s = ttl_s
        self._is_mirrored = is_mirrored
        self._dirty: dict[AnswerEvents, None] = {}
        self._open: WeakSet[AnswerEvents] = WeakSet()
        self._wake = asyncio.Event()
        self._flushed_s = 0.0
        self._tasks = [
            asyncio.create_task(
                keep_running(self._flush_all, logger=logger, event="flusher_failed", again_s=RETRY_S),
                name="event-flusher",
            ),
            asyncio.create_task(
                keep_running(self._extend_ttls, logger=logger, event="ttl_extension_failed"), name="event-keeper"
            ),
        ]

    def open(self, claim: Claim, *, user_uuid: str, session_id: str) -> AnswerEvents:
        """Make the events of an attempt, none of them published yet."""
        events = AnswerEvents(
            claim,
            user_uuid=user_uuid,
            session_id=session_id,
            flush_soon=self._flush_soon,
            is_mirrored=self._is_mirrored,
        )
        self._open.add(events)
        return events

    async def ending(self, claim: Claim) -> Event | None:
        """Read the ending that an earlier attempt has published, if any."""
        if claim.attempt == 1:  # a claim is numbered above every attempt in the stream
            return None
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                entries = await self._redis.xrevrange(keys.events(claim.job_id), count=1)
        except ResponseError:  # the key does not hold a stream
            return None
        if not entries:
            return None
        entry_id, fields = entries[0]
        event = Event.model_validate({"id": entry_id.decode(), **json.loads(fields[b"data"])})
        return event if event.is_ending else None

    async def close(self) -> None:
        """Stop the flusher; entries that are left belong to attempts that did not end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _flush_soon(self, events: AnswerEvents) -> None:
        self._dirty[events] = None
        self._wake.set()

    async def _extend_ttls(self) -> None:
        """Keep the streams of answers that run and publish nothing for longer than a stream's life."""
        await asyncio.sleep(self._ttl_s / 3)
        async with asyncio.timeout(REDIS_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipeline:
            for events in self._open:
                if not events.is_over:
                    pipeline.expire(keys.events(events.claim.job_id), self._ttl_s)
            await pipeline.execute()

    async def _flush_all(self) -> None:
        """Wait for entries, and for the end of `FLUSH_S` since the last call; then append them."""
        await self._wake.wait()
        loop = asyncio.get_running_loop()
        if (rest_s := self._flushed_s + FLUSH_S - loop.time()) > 0:
            await asyncio.sleep(rest_s)
        self._wake.clear()
        self._flushed_s = loop.time()
        dirty, self._dirty = list(self._dirty), {}
        try:
            await self._flush(dirty)
        except Exception as error:
            log_failure(logger, "append_failed", error)
            if _is_away(error):
                # The entries are kept: the script skips what was appended if only the reply was lost.
                await self._flush_later(dirty)
            else:
                for events in dirty:
                    await self._flush_alone(events)

    async def _flush_alone(self, events: AnswerEvents) -> None:
        """Append the entries of one answer, which must not hold up the others where that cannot be done."""
        try:
            await self._flush([events])
        except Exception as error:
            log_failure(logger, "append_failed", error)
            if _is_away(error):
                await self._flush_later([events])
            else:
                events.confirm([], AppendState.BROKEN)

    async def _flush_later(self, dirty: Sequence[AnswerEvents]) -> None:
        await asyncio.sleep(RETRY_S)
        for events in dirty:
            self._flush_soon(events)

    async def _flush(self, dirty: Sequence[AnswerEvents]) -> None:
        batches = []
        for events in dirty:
            entries, pieces = events.take()
            metrics.PIECES.inc(pieces)
            if entries:
                batches.append(_Batch(events, entries))
        if not batches:
            return
        replies = await _APPEND.run(self._redis, *self._arguments(batches))
        for batch, reply in zip(batches, replies, strict=True):
            batch.events.confirm(batch.entries, AppendState(reply))

    def _arguments(self, batches: list[_Batch]) -> list[str | int | bytes]:
        arguments: list[str | int | bytes] = [self._ttl_s]
        for batch in batches:
            events = batch.events
            channel = keys.older_channel(events.user_uuid, events.session_id).encode(errors="replace")
            arguments += [events.claim.id, self._owner, events.claim.attempt, channel, len(batch.entries)]
            for entry in batch.entries:
                arguments += [entry.seq, entry.data, entry.mirror]
        return arguments


def _is_away(error: Exception) -> bool:
    """Whether the same call may succeed later; a key of a wrong type stops one answer, and stays as it is."""
    return isinstance(error, AWAY) and not (isinstance(error, ResponseError) and "WRONGTYPE" in str(error))

"""The log of an answer: its events, in a Redis Stream, each once and in order.

All answers of a process share one flusher: it appends at once when the process is quiet and every
`FLUSH_S` when it is busy, with one call for all of them. What was said in between becomes one `delta`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final
from weakref import WeakSet

import structlog
from protostar_client import keys
from protostar_client.contract import ErrorCode, Event, EventType, JobError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tasks.engine.claim import Claim, LeaseLostError
from tasks.engine.scripts import REDIS_TIMEOUT_S, Script
from tasks.monitoring import metrics

logger = structlog.stdlib.get_logger("protostar.events")

FLUSH_S: Final = 0.010
RETRY_S: Final = 0.25
VERSION: Final = 1

_APPEND: Final = Script.beside(__file__, "append")

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(slots=True)
class _Entry:
    seq: int
    data: bytes
    mirror: bytes


class _State(IntEnum):
    """Whether an answer's events can be appended, as `append.lua` says it."""

    HELD = 1
    FENCED = 0
    NO_STREAM = -1


@dataclass(slots=True)
class _Batch:
    answer: Answer
    entries: list[_Entry] = field(default_factory=list)


class Answer:
    """The events of one attempt at one answer; every attempt after the first says `restart` first."""

    def __init__(self, log: EventLog, claim: Claim, user_uuid: str, session_id: str) -> None:
        self.claim = claim
        self.user_uuid = user_uuid
        self.session_id = session_id
        self.text = ""
        self._log = log
        self._seq = 0
        self._unsaid: list[str] = []
        self._entries: list[_Entry] = []
        self._appended = asyncio.Event()
        self._state = _State.HELD

    def start(self, model: str) -> None:
        """Say which model is asked."""
        self._add(EventType.START, session_id=self.session_id, model=model)

    def sources(self, sources: list[dict[str, Any]]) -> None:
        """Name the passages the prompt holds, best first."""
        if sources:
            self._add(EventType.SOURCES, sources=sources)

    def say(self, text: str) -> None:
        """Add text to the answer.

        Raises:
            LeaseLostError: another attempt has the job.
        """
        self._check()
        self.text += text
        self._unsaid.append(text)
        self._log.flush_soon(self)

    async def done(self, *, message_id: int, finish_reason: str, usage: dict[str, Any]) -> None:
        """End the answer; returns when the ending is in the log. Call it after the commit."""
        await self._end(EventType.DONE, message_id=message_id, finish_reason=finish_reason, usage=usage)

    async def error(self, *, code: str, message: str) -> None:
        """End the answer with a failure; returns when the ending is in the log."""
        await self._end(EventType.ERROR, code=code, message=message)

    async def cancelled(self, *, message_id: int | None) -> None:
        """End the answer as cancelled; returns when the ending is in the log."""
        await self._end(EventType.CANCELLED, message_id=message_id)

    async def _end(self, event_type: EventType, **fields: Any) -> None:
        if self._state is not _State.NO_STREAM:
            self._add(event_type, **fields)
            await self._appended.wait()
        self._log.let_go(self)
        if self._state is _State.FENCED:
            raise LeaseLostError

    def _add(self, event_type: EventType, **fields: Any) -> None:
        self._check()
        self._close_delta()
        self._put(event_type, fields)
        self._appended.clear()
        self._log.flush_soon(self)

    def _close_delta(self) -> None:
        if self._unsaid:
            self._log.pieces += len(self._unsaid)
            text, self._unsaid = "".join(self._unsaid), []
            self._put(EventType.DELTA, {"text": text})

    def _put(self, event_type: EventType, fields: dict[str, Any]) -> None:
        if self._seq == 0 and self.claim.attempt > 1 and event_type is not EventType.RESTART:
            self._put(EventType.RESTART, {"reason": self.claim.last_reason})
        self._seq += 1
        data = {
            "v": VERSION,
            "type": event_type.value,
            "job_id": self.claim.job_id,
            "attempt": self.claim.attempt,
            "seq": self._seq,
            **fields,
        }
        mirror = _mirror(event_type, fields, self)
        self._entries.append(_Entry(self._seq, _json(data), mirror))

    def _check(self) -> None:
        if self._state is _State.FENCED:
            raise LeaseLostError
        if self._state is _State.NO_STREAM:
            key = keys.events(self.claim.job_id)
            raise JobError(ErrorCode.INTERNAL, f"the key {key} holds something that is no stream; delete it")

    # What follows is the flusher's side.

    def take(self) -> list[_Entry]:
        """The entries to append now; they stay this answer's until `confirm`."""
        self._close_delta()
        return list(self._entries)

    def confirm(self, entries: list[_Entry], state: _State) -> None:
        """Forget what was appended; where nothing can be any more, forget everything."""
        self._state = state
        if state is _State.HELD:
            del self._entries[: len(entries)]
        else:
            self._entries.clear()
        if not self._entries:
            self._appended.set()


class EventLog:
    """Appends the events of all answers of this process.

    Args:
        redis: where the streams are.
        owner: the worker whose leases fence the answers.
        ttl_s: how long a stream stays readable after its last event.
    """

    def __init__(self, redis: Redis, *, owner: str, ttl_s: int) -> None:
        self._redis = redis
        self._owner = owner
        self._ttl_s = ttl_s
        self.pieces = 0  # of all answers, since the last flush
        self._dirty: dict[Answer, None] = {}
        self._open: WeakSet[Answer] = WeakSet()
        self._wake = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._run(), name="event-flusher"),
            asyncio.create_task(self._keep(), name="event-keeper"),
        ]

    def open(self, claim: Claim, *, user_uuid: str, session_id: str) -> Answer:
        """The events of an attempt, none of them said yet."""
        answer = Answer(self, claim, user_uuid, session_id)
        self._open.add(answer)
        return answer

    async def ending(self, claim: Claim) -> Event | None:
        """The ending an earlier attempt has already told, if any."""
        if claim.attempt == 1:  # a claim is numbered above every attempt in the stream
            return None
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                entries = await self._redis.xrevrange(keys.events(claim.job_id), count=1)
        except ResponseError:  # no stream
            return None
        if not entries:
            return None
        entry_id, fields = entries[0]
        event = Event.model_validate({"id": entry_id.decode(), **json.loads(fields[b"data"])})
        return event if event.is_ending else None

    def let_go(self, answer: Answer) -> None:
        """Let the stream of an answer that has ended expire."""
        self._open.discard(answer)

    def flush_soon(self, answer: Answer) -> None:
        """Have the flusher append what `answer` holds."""
        self._dirty[answer] = None
        self._wake.set()

    async def close(self) -> None:
        """Stop the flusher; what was not appended is of attempts that did not end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """Keep the streams of answers that run but say nothing for longer than a stream's life."""
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipeline:
                    for answer in self._open:
                        pipeline.expire(keys.events(answer.claim.job_id), self._ttl_s)
                    await pipeline.execute()
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("keep_failed", error=error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = 0.0
        while True:
            await self._wake.wait()
            if (rest_s := last_s + FLUSH_S - loop.time()) > 0:
                await asyncio.sleep(rest_s)
            self._wake.clear()
            last_s = loop.time()
            try:
                await self._flush()
            except Exception:  # one answer's trouble must not silence the others
                logger.exception("flush_failed")

    async def _flush(self) -> None:
        batches = [_Batch(answer, answer.take()) for answer in self._dirty]
        self._dirty.clear()
        metrics.PIECES.inc(self.pieces)
        self.pieces = 0
        batches = [batch for batch in batches if batch.entries]
        if not batches:
            return
        try:
            replies = await _APPEND.run(self._redis, *self._arguments(batches))
        except (RedisError, OSError, TimeoutError) as error:
            # The tokens are kept: the script skips what was appended if only the reply was lost.
            logger.warning("append_failed", answers=len(batches), error=error)
            await asyncio.sleep(RETRY_S)
            for batch in batches:
                self.flush_soon(batch.answer)
            return
        for batch, reply in zip(batches, replies, strict=True):
            batch.answer.confirm(batch.entries, _State(reply))

    def _arguments(self, batches: list[_Batch]) -> list[str | int | bytes]:
        arguments: list[str | int | bytes] = [self._ttl_s]
        for batch in batches:
            answer = batch.answer
            channel = keys.older_channel(answer.user_uuid, answer.session_id).encode(errors="replace")
            arguments += [answer.claim.id, self._owner, answer.claim.attempt, channel, len(batch.entries)]
            for entry in batch.entries:
                arguments += [entry.seq, entry.data, entry.mirror]
        return arguments


def _mirror(event_type: EventType, fields: dict[str, Any], answer: Answer) -> bytes:
    """What older readers hear on their channel; empty where they hear nothing."""
    match event_type:
        case EventType.DELTA:
            said = {"type": "message", "content": fields["text"]}
        case EventType.DONE:
            said = {"type": "done", "content": "done"}
        case EventType.RESTART:
            said = {"type": "restart", "content": fields["reason"]}
        case EventType.ERROR:
            said = {"type": "error", "content": fields["message"], "code": fields["code"]}
        case EventType.CANCELLED:
            said = {"type": "error", "content": "cancelled", "code": "cancelled"}
        case _:
            return b""
    return _json(
        {
            **said,
            "uuid": answer.user_uuid,
            "sessionId": answer.session_id,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "jobId": answer.claim.job_id,
        }
    )


def _json(value: dict[str, Any]) -> bytes:
    # What a request that was refused held may be no text: half a surrogate pair becomes a question mark.
    return _encode(value).encode(errors="replace")

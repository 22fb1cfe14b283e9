"""The events of one attempt at an answer, numbered and encoded, until the event log has appended them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from protostar_client import keys
from protostar_client.contract import ErrorCode, EventType, JobError

from tasks.engine.claim import Claim, LeaseLostError
from tasks.legacy.channel import channel_message

VERSION: Final = 1

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: `data` for the stream, `mirror` for the older channel (empty where that gets none)."""

    seq: int
    data: bytes
    mirror: bytes


class AppendState(IntEnum):
    """Whether the events of an attempt can be appended. `append.lua` returns the first three."""

    HELD = 1
    FENCED = 0
    NO_STREAM = -1
    BROKEN = -2


class AnswerEvents:
    """The events of one attempt; every attempt after the first begins with `restart`.

    Args:
        claim: the claim of the attempt.
        user_uuid: the user as the producer spelled it, for the older channel.
        session_id: the session.
        flush_soon: called with this object when it has entries to append.
        is_mirrored: whether the older channel gets the events.
    """

    def __init__(
        self,
        claim: Claim,
        *,
        user_uuid: str,
        session_id: str,
        flush_soon: Callable[[AnswerEvents], None],
        is_mirrored: bool = True,
    ) -> None:
        self.claim = claim
        self.user_uuid = user_uuid
        self.session_id = session_id
        self.text = ""
        self.is_over = False
        self._flush_soon = flush_soon
        self._is_mirrored = is_mirrored
        self._seq = 0
        self._pieces: list[str] = []
        self._joined = 0
        self._entries: list[Entry] = []
        self._appended = asyncio.Event()
        self._state = AppendState.HELD

    def start(self, model: str) -> None:
        """Name the model that is asked."""
        self._add(EventType.START, session_id=self.session_id, model=model)

    def sources(self, sources: list[dict[str, Any]]) -> None:
        """Name the passages that the prompt holds, best first."""
        if sources:
            self._add(EventType.SOURCES, sources=sources)

    def append_text(self, text: str) -> None:
        """Add text to the answer.

        Raises:
            LeaseLostError: another attempt has the job.
        """
        self._check()
        self.text += text
        self._pieces.append(text)
        self._flush_soon(self)

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
        # Where nothing can be appended, the job's result alone carries the ending.
        if self._state not in (AppendState.NO_STREAM, AppendState.BROKEN):
            self._add(event_type, **fields)
            await self._appended.wait()
        self.is_over = True
        if self._state is AppendState.FENCED:
            raise LeaseLostError

    def _add(self, event_type: EventType, **fields: Any) -> None:
        self._check()
        self._close_delta()
        self._put(event_type, fields)
        self._appended.clear()
        self._flush_soon(self)

    def _close_delta(self) -> None:
        if self._pieces:
            self._joined += len(self._pieces)
            text, self._pieces = "".join(self._pieces), []
            self._put(EventType.DELTA, {"text": text})

    def _put(self, event_type: EventType, fields: Mapping[str, Any]) -> None:
        claim = self.claim
        if self._seq == 0 and claim.attempt > 1 and event_type is not EventType.RESTART:
            self._put(EventType.RESTART, {"reason": claim.last_reason})
        self._seq += 1
        data = {
            "v": VERSION,
            "type": event_type.value,
            "job_id": claim.job_id,
            "attempt": claim.attempt,
            "seq": self._seq,
            **fields,
        }
        self._entries.append(Entry(self._seq, _json(data), self._mirror(event_type, fields)))

    def _mirror(self, event_type: EventType, fields: Mapping[str, Any]) -> bytes:
        if not self._is_mirrored:
            return b""
        message = channel_message(
            event_type, fields, user_uuid=self.user_uuid, session_id=self.session_id, job_id=self.claim.job_id
        )
        return b"" if message is None else _json(message)

    def _check(self) -> None:
        match self._state:
            case AppendState.FENCED:
                raise LeaseLostError
            case AppendState.NO_STREAM:
                key = keys.events(self.claim.job_id)
                raise JobError(ErrorCode.INTERNAL, f"the key {key} does not hold a stream; delete it")
            case AppendState.BROKEN:
                raise JobError(ErrorCode.INTERNAL, "the events could not be appended; the worker's log says why")

    # The flusher's side.

    def take(self) -> tuple[list[Entry], int]:
        """The entries to append now, which stay here until `confirm`, and the number of newly joined pieces."""
        self._close_delta()
        pieces, self._joined = self._joined, 0
        return list(self._entries), pieces

    def confirm(self, entries: list[Entry], state: AppendState) -> None:
        """Remove the entries that were appended; where none can be appended any more, remove all."""
        self._state = state
        if state is AppendState.HELD:
            del self._entries[: len(entries)]
        else:
            self._entries.clear()
        if not self._entries:
            self._appended.set()


def _json(value: Mapping[str, Any]) -> bytes:
    # A refused request may hold half of a surrogate pair: it becomes a question mark.
    return _encode(value).encode(errors="replace")

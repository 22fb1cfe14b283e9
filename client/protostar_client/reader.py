"""Reading the events of an answer: one cursor for what has been and what is to come."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any, Final

from protostar_client import keys
from protostar_client.connection import Connection
from protostar_client.contract import Event, InvalidRequest, ProtostarError
from protostar_client.errors import EventsExpired, JobVanished
from protostar_client.state import StreamEntry, read_state, value_of

START: Final = "0-0"
_BLOCK_MS: Final = 2_000
_BATCH: Final = 500
_ID: Final = re.compile(r"(\d{1,19})-(\d{1,19})")


class EventReader:
    """Reads the logs of answers, with one blocking connection for each answer that is being read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def follow(self, job_id: str, last_id: str | None = None) -> AsyncGenerator[Event, None]:
        """Every event after `last_id`, as it comes, up to the one that ends the answer.

        Raises:
            InvalidRequest: `last_id` is not the id of an event.
            EventsExpired: the job ended and its events are gone.
            JobError, Cancelled: the job failed or was cancelled, and no event says so.
            JobVanished: the job is gone without an ending.
            ConnectionLost: Redis stayed away.
        """
        after = START if last_id is None else last_id
        _parse_id(after)
        block_ms = None  # what is there already comes first; a finished answer keeps nobody waiting
        while True:
            entries = await self._read(job_id, after, block_ms)
            for entry_id, fields in entries:
                event = _event(entry_id, fields)
                yield event
                if event.is_ending:
                    return
                after = event.id
            if not entries and await self._has_ended(job_id, after):
                return
            block_ms = _BLOCK_MS

    async def _read(self, job_id: str, after: str, block_ms: int | None) -> list[StreamEntry]:
        stream = keys.events(job_id)
        reply: Any = await self._connection.call(
            lambda redis: redis.xread({stream: after}, count=_BATCH, block=block_ms)
        )
        return reply[0][1] if reply else []

    async def _has_ended(self, job_id: str, after: str) -> bool:
        """Whether the reader has seen the ending; False while more is to come."""
        state = await read_state(self._connection, job_id)
        if state.last_entry is not None:
            newest = _event(*state.last_entry)
            if _parse_id(newest.id) > _parse_id(after):
                return False
            if newest.is_ending:
                return True
        if state.result is not None:
            value_of(job_id, state.result)
            raise EventsExpired(job_id)
        if not state.is_alive:
            raise JobVanished(job_id)
        return False


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    try:
        return Event.model_validate({**json.loads(fields[b"data"]), "id": entry_id.decode()})
    except (KeyError, TypeError, ValueError) as error:
        raise ProtostarError(
            f"event {entry_id.decode()} is not one that this version reads; upgrade protostar-client"
        ) from error


def _parse_id(event_id: str) -> tuple[int, int]:
    match = _ID.fullmatch(event_id)
    if match is None:
        raise InvalidRequest("last_id", f"{event_id[:64]!r} is no event's id; pass the `id` of the last event seen")
    return int(match[1]), int(match[2])

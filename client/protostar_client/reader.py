"""Reading the events of an answer: one cursor for what has been and what is to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from protostar_client import keys
from protostar_client.connection import Connection
from protostar_client.contract import ChatResult, Event, EventType
from protostar_client.entry import AS_STORED_SEQ, START, EntryId, StreamEntry, parse_entry
from protostar_client.errors import EventsExpired, JobVanished
from protostar_client.feed import Feed
from protostar_client.state import JobState, Standing, read_state, value_of

_BATCH: Final = 500
EVENTS_LOST: Final = "events_lost"
_FIRST_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.5


class EventReader:
    """Reads the logs of answers. What has been is read at the reader's own pace, what comes over one `Feed`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._feed = Feed(connection)

    async def close(self) -> None:
        """Let every reader go."""
        await self._feed.close()

    async def follow(
        self, job_id: str, last_id: str | None, *, check: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[Event, None]:
        """Every event after `last_id`, as it comes, up to the one that ends the answer; none before `check` is done.

        Raises:
            InvalidRequest: `last_id` is not the id of an event.
            ReaderTooSlow: the reader fell too far behind; go on with the id in the error.
            EventsExpired: events are gone, and so is the result.
            JobError, Cancelled: the job failed or was cancelled, and no event says so.
            JobVanished: the job is gone without an ending.
            ConnectionLost: Redis stayed away.
            ClientClosed: the client was closed.
        """
        seen = START if last_id is None else EntryId.parse(last_id)
        await check()
        async with aclosing(self._entries(job_id, seen)) as events:
            async for event, entry_id in events:
                if not entry_id.is_next_to(seen):
                    break
                yield event
                if event.is_ending:
                    return
                seen = entry_id
            else:
                state = await read_state(self._connection, job_id)
                match state.standing(seen):
                    case Standing.ENDED:
                        return
                    case Standing.GONE:
                        raise JobVanished(job_id)
                if state.result is not None and not state.has_ending:
                    value_of(job_id, state.result)  # what raises here leaves nothing to be told
        async with aclosing(self._as_stored(job_id, seen)) as events_as_stored:
            async for event in events_as_stored:
                yield event

    async def _entries(self, job_id: str, after: EntryId) -> AsyncGenerator[tuple[Event, EntryId], None]:
        """Every entry after `after`, first what is there, then what comes; ends when nothing more can come."""
        while True:
            batch = await self._read(job_id, after)
            for entry in batch:
                event, after = parse_entry(entry)
                yield event, after
            if len(batch) == _BATCH:
                continue
            newest = after
            if not batch:
                state = await read_state(self._connection, job_id)
                if state.standing(after) is not Standing.GOES_ON:
                    return
                newest = state.newest_id
            live = self._feed.join(job_id, after, newest)
            if live is None:
                continue
            try:
                while (item := await live.next()) is not None:
                    yield item
                    after = item[1]
            finally:
                self._feed.leave(live)

    async def _read(self, job_id: str, after: EntryId) -> list[StreamEntry]:
        stream = keys.events(job_id)
        reply: Any = await self._connection.call(lambda redis: redis.xread({stream: str(after)}, count=_BATCH))
        return reply[0][1] if reply else []

    async def _as_stored(self, job_id: str, seen: EntryId) -> AsyncGenerator[Event, None]:
        """`gap`, then the whole answer from the job's result; before its last event, resuming leads here again."""
        yield _event(EventType.GAP, job_id, seen, reason=EVENTS_LOST)
        state = await self._ended(job_id)
        newest = None if state.last_entry is None else parse_entry(state.last_entry)
        ending = newest[0] if newest and newest[0].is_ending else None
        if ending and ending.type != EventType.DONE:
            yield ending
            return
        if state.result is None:
            raise EventsExpired(job_id) if ending else JobVanished(job_id)
        result = ChatResult.model_validate(value_of(job_id, state.result))
        yield _event(EventType.DELTA, job_id, seen, attempt=result.attempt, text=result.content)
        last = newest[1] if newest and ending else EntryId(result.attempt, AS_STORED_SEQ)
        told = result.model_dump(include={"message_id", "finish_reason", "usage"})
        yield _event(EventType.DONE, job_id, last, **told)

    async def _ended(self, job_id: str) -> JobState:
        """The state of a job once it has ended in any way."""
        delay_s = _FIRST_POLL_S
        while True:
            state = await read_state(self._connection, job_id)
            if state.result is not None or not state.is_alive:
                return state
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, _LONGEST_POLL_S)


def _event(kind: EventType, job_id: str, event_id: EntryId, **fields: Any) -> Event:
    place = {"attempt": event_id.attempt, "seq": event_id.seq}
    return Event.model_validate({"id": str(event_id), "v": 1, "type": kind, "job_id": job_id, **place, **fields})

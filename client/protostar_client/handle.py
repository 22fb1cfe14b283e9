"""A job that was enqueued, here or elsewhere: read it, wait for it, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

from protostar_client import keys
from protostar_client.connection import Connection
from protostar_client.contract import ChatResult, ErrorCode, Event, EventType, JobError
from protostar_client.errors import Cancelled, JobVanished
from protostar_client.reader import EventReader
from protostar_client.state import owner_of, read_state, value_of

_FIRST_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.25
CANCEL_TIMEOUT_S: Final = 15.0


class JobHandle:
    """One turn of a user. Nothing of another user's job is told, streamed or cancelled."""

    def __init__(
        self,
        job_id: str,
        *,
        user_uuid: UUID,
        connection: Connection,
        reader: EventReader,
        created: bool = False,
        is_owned: bool = False,
    ) -> None:
        self.job_id = job_id
        self.user_uuid = user_uuid
        self.created = created
        """Whether this call enqueued the job; False for a job that was known before."""
        self._connection = connection
        self._reader = reader
        self._is_owned = is_owned

    def __repr__(self) -> str:
        return f"<JobHandle {self.job_id}>"

    def events(self, last_id: str | None = None) -> AsyncGenerator[Event, None]:
        """The answer's events after `last_id` (from the first one without it), live or late, each once.

        Ends after `done`, `error` or `cancelled`, none of which raises here. Where events are gone, `gap` says that
        what was read is void, and the stored answer follows as one `delta`. So it is where `last_id` is later than the
        ending, and where the log has expired: nothing tells any more whether `last_id` was the ending itself.

        Raises:
            InvalidRequest: `last_id` is not the id of an event.
            ReaderTooSlow: the reader fell too far behind; go on with the error's `last_id`.
            EventsExpired: events are gone, and so is the result.
            JobError, Cancelled: the job failed or was cancelled, and no event says so.
            JobVanished: the job is gone without an ending, or is another user's.
            ConnectionLost: Redis stayed away; go on later with the last id.
            ClientClosed: the client was closed.
        """
        return self._reader.follow(self.job_id, last_id, check=self._require_owner)

    async def text(self) -> str:
        """The whole answer, once it is complete.

        Raises:
            JobError: the job failed.
            Cancelled: the job was cancelled.
            EventsExpired, JobVanished, ConnectionLost, ClientClosed: as for `events`.
        """
        async with aclosing(self.events()) as events:
            return await _last_attempt(events)

    async def result(self, timeout_s: float | None = None) -> ChatResult:
        """The job's result, once there is one.

        Raises:
            JobError: the job failed.
            Cancelled: the job was cancelled.
            TimeoutError: no result within `timeout_s` seconds; the job goes on.
            JobVanished: no result is there, and the job neither waits nor runs; or it is another user's.
        """
        return ChatResult.model_validate(await self.raw_result(timeout_s))

    async def raw_result(self, timeout_s: float | None = None) -> Any:
        """The result of a job of any function, as JSON values. Raises as `result` does."""
        await self._require_owner()
        async with asyncio.timeout(timeout_s):
            stored = await self._wait_for_result()
        return value_of(self.job_id, stored)

    async def cancel(self, *, timeout_s: float = CANCEL_TIMEOUT_S) -> bool:
        """End the job and wait for its end: True if it was cancelled, False if it ended otherwise before.

        Raises:
            TimeoutError: no worker has ended it within `timeout_s` seconds; the request stands.
            JobVanished: no result is there, and the job neither waits nor runs; or it is another user's.
        """
        await self._require_owner()
        await self._connection.run_script(
            "cancel",
            keys=[keys.job(self.job_id), keys.result(self.job_id), keys.ABORT, keys.QUEUE],
            args=[self.job_id, keys.WAKE, keys.WAKE_ABORT_PREFIX],
        )
        try:
            await self.raw_result(timeout_s)
        except Cancelled:
            return True
        except JobError:
            return False
        return False

    async def _wait_for_result(self) -> bytes:
        delay_s = _FIRST_POLL_S
        while True:
            state = await read_state(self._connection, self.job_id)
            if state.result is not None:
                return state.result
            if not state.is_alive:
                raise JobVanished(self.job_id)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, _LONGEST_POLL_S)

    async def _require_owner(self) -> None:
        if self._is_owned:
            return
        records: list[bytes | None] = await self._connection.call(
            lambda redis: redis.mget(keys.job(self.job_id), keys.result(self.job_id))
        )
        if self.user_uuid not in {owner_of(record) for record in records if record is not None}:
            raise JobVanished(self.job_id)
        self._is_owned = True


async def _last_attempt(events: AsyncGenerator[Event, None]) -> str:
    parts: list[str] = []
    attempt = 0
    async for event in events:
        if event.attempt != attempt or event.type == EventType.GAP:  # what came before is void
            parts.clear()
            attempt = event.attempt
        if event.type == EventType.DELTA:
            parts.append(event.text or "")
        elif event.type == EventType.ERROR:
            raise JobError(event.code or ErrorCode.INTERNAL, event.message or "the job failed")
        elif event.type == EventType.CANCELLED:
            raise Cancelled(event.job_id, event.message_id)
    return "".join(parts)

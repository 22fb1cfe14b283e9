"""The client: put a question into the queue, find a job again, read a session's history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Self, get_args
from uuid import UUID, uuid4

from protostar_client import keys
from protostar_client.codec import dump_json
from protostar_client.connection import Connection
from protostar_client.contract import (
    GENERATE_CHAT,
    READ_HISTORY,
    ChatRequest,
    HistoryMessage,
    HistoryRequest,
    HistoryResult,
    InvalidRequest,
    check_job_id,
    check_turn_id,
)
from protostar_client.errors import ConnectionLost, QueueFull, SessionBusy
from protostar_client.handle import JobHandle
from protostar_client.reader import EventReader
from protostar_client.tracing import enqueue_span

MAX_QUEUE: Final = 10_000
PATIENCE_S: Final = 15.0
HISTORY_TIMEOUT_S: Final = 30.0
OnBusy = Literal["enqueue", "reject", "interrupt"]
_JOB_LIFE_MS: Final = 86_400_000  # ARQ's own: a job that no worker took for a day is dropped


class ChatClient:
    """Questions in, answers out. Made by `ChatClient.connect`; shared by any number of tasks of one loop.

    Once its `async with` is over, every call of it and of its handles raises `ClientClosed`.
    """

    def __init__(self, connection: Connection, *, max_queue: int) -> None:
        self._connection = connection
        self._reader = EventReader(connection)
        self._max_queue = max_queue

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, redis_url: str, *, max_queue: int = MAX_QUEUE, patience_s: float = PATIENCE_S
    ) -> AsyncIterator[Self]:
        """A client of the Redis at `redis_url` (`redis://`, `rediss://`, `unix://`).

        `enqueue` refuses while the queue holds `max_queue` jobs. While Redis is away, calls are tried again
        for `patience_s` seconds.

        Raises:
            ConnectionLost: Redis can't be reached.
            InvalidUrl: `redis_url` is not a Redis URL.
        """
        connection = Connection(redis_url, patience_s=patience_s)
        client = cls(connection, max_queue=max_queue)
        try:
            await connection.open()
            yield client
        finally:
            await client._reader.close()
            await connection.close()

    async def enqueue(
        self,
        *,
        user_uuid: UUID | str,
        session_id: str,
        content: str,
        mode: str = "general",
        context: str = "",
        documents: Sequence[str] = (),
        job_id: str | None = None,
        on_busy: OnBusy = "enqueue",
    ) -> JobHandle:
        """Put a question into the queue, in one round trip.

        `documents` are glob patterns of the corpus paths that the answer may use; without any, all documents.
        `job_id` is the idempotency key: the same id again is the same turn, and its handle is returned, whatever
        `on_busy` is. Where the session has unfinished turns, queued or running, `on_busy` decides: `"enqueue"` waits
        for them, `"reject"` raises, `"interrupt"` asks in the same step that they be cancelled.

        Raises:
            InvalidRequest: an argument that no worker would take, or a `job_id` of another user's.
            SessionBusy: the session has an unfinished turn, and `on_busy` is `"reject"`; nothing was enqueued.
            QueueFull: too many jobs wait; nothing was enqueued.
            ConnectionLost: Redis stayed away; its `job_id` makes it safe to enqueue again.
            RedisRefused: Redis takes no writes.
        """
        if on_busy not in get_args(OnBusy):
            raise InvalidRequest("on_busy", f"is {on_busy!r}; say one of {', '.join(get_args(OnBusy))}")
        request = ChatRequest.parse(
            {
                "user_uuid": user_uuid,
                "session_id": session_id,
                "content": content,
                "mode": mode,
                "context": context,
                "documents": list(documents),
            }
        )
        job_id = uuid4().hex if job_id is None else check_turn_id(job_id)
        return await self._enqueue(GENERATE_CHAT, job_id, request, on_busy=on_busy)

    def handle(self, job_id: str, *, user_uuid: UUID | str) -> JobHandle:
        """The handle of a job that was enqueued elsewhere; only the job's own user reads or cancels it.

        Raises:
            InvalidRequest: not a job id, or not a UUID.
        """
        return self._handle(check_job_id(job_id), _checked_user(user_uuid))

    async def history(
        self,
        *,
        user_uuid: UUID | str,
        session_id: str,
        limit: int = 50,
        timeout_s: float = HISTORY_TIMEOUT_S,
    ) -> list[HistoryMessage]:
        """The newest `limit` messages of a session, oldest first, as a worker reads them from the database.

        Raises:
            InvalidRequest, QueueFull, ConnectionLost: as for `enqueue`.
            TimeoutError: no worker answered within `timeout_s` seconds.
            JobError: the worker could not read them.
        """
        request = HistoryRequest.parse({"user_uuid": user_uuid, "session_id": session_id, "limit": limit})
        job_id = f"history:{uuid4().hex}"
        handle = await self._enqueue(READ_HISTORY, job_id, request)
        result = HistoryResult.model_validate(await handle.raw_result(timeout_s))
        await self._connection.call(lambda redis: redis.delete(keys.result(job_id)))  # nobody reads it again
        return result.messages

    async def _enqueue(
        self, function: str, job_id: str, request: ChatRequest | HistoryRequest, *, on_busy: OnBusy = "enqueue"
    ) -> JobHandle:
        session = keys.session(request.user_uuid, request.session_id) if function == GENERATE_CHAT else ""
        where = [keys.job(job_id), keys.result(job_id), keys.QUEUE, keys.ABORT, keys.HOLDERS, keys.turns(session)]
        turn = [on_busy, session, GENERATE_CHAT, keys.JOB_PREFIX, keys.WAKE_ABORT_PREFIX]
        with enqueue_span(function, job_id) as trace:
            payload = dump_json({"t": None, "f": function, "a": [], "k": request.arguments(), **trace})
            what: list[str | bytes | int] = [job_id, payload[:-1] + b',"et":', _JOB_LIFE_MS, self._max_queue, keys.WAKE]
            try:
                reply, ran_before = await self._connection.run_script("enqueue", keys=where, args=[*what, *turn])
            except ConnectionLost as error:
                raise ConnectionLost(str(error), job_id=job_id) from error
        created = _is_created(reply, ran_before, request, self._max_queue)
        return self._handle(job_id, request.user_uuid, created=created, is_owned=True)

    def _handle(self, job_id: str, user_uuid: UUID, *, created: bool = False, is_owned: bool = False) -> JobHandle:
        return JobHandle(
            job_id,
            user_uuid=user_uuid,
            connection=self._connection,
            reader=self._reader,
            created=created,
            is_owned=is_owned,
        )


def _is_created(reply: list[Any], ran_before: bool, request: ChatRequest | HistoryRequest, max_queue: int) -> bool:
    match reply[0]:
        case b"full":
            raise QueueFull(reply[1], max_queue)
        case b"busy":
            raise SessionBusy(request.session_id, reply[1].decode(errors="backslashreplace"))
        case b"exists":
            if not _is_user(reply[1], request.user_uuid):
                raise InvalidRequest("job_id", "is the id of another job; use an id of your own")
            return ran_before  # after a try whose reply was lost this is that very job, not a duplicate
        case _:
            return True


def _checked_user(user_uuid: UUID | str) -> UUID:
    try:
        return user_uuid if isinstance(user_uuid, UUID) else UUID(user_uuid)
    except (ValueError, AttributeError, TypeError):
        raise InvalidRequest("user_uuid", "is not a UUID") from None


def _is_user(named: bytes, user_uuid: UUID) -> bool:
    try:
        return UUID(named.decode()) == user_uuid
    except ValueError:
        return False

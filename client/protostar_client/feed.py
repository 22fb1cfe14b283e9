"""Live events of many answers for many readers, over one blocking read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final
from uuid import uuid4

from redis.asyncio import Redis

from protostar_client import keys
from protostar_client.connection import Connection
from protostar_client.contract import Event, ProtostarError
from protostar_client.entry import EntryId, StreamEntry, parse_entry
from protostar_client.errors import ClientClosed, ConnectionLost, ReaderTooSlow, RedisRefused
from protostar_client.state import Standing, read_states

QUEUE_EVENTS: Final = 1_000
BATCH: Final = 200
BLOCK_MS: Final = 2_000
WATCH_S: Final = 1.0
# Events of several answers come together: a pause between two reads turns many replies into one.
PACE_S: Final = 0.005
_REFUSED_PAUSE_S: Final = 0.2
_WAKE_TTL_MS: Final = 60_000
_STATES_AT_ONCE: Final = 100


class Subscription:
    """What one reader has still to read. It holds at most `QUEUE_EVENTS` events."""

    def __init__(self, job_id: str, after: EntryId) -> None:
        self.job_id = job_id
        self._after = after
        self._events: deque[tuple[Event, EntryId]] = deque()
        self._is_over = False
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()  # asking for it at each event would cost a system call
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> tuple[Event, EntryId] | None:
        """The next event, once it has come; None where the reader has to look for itself how the answer stands.

        Raises:
            ReaderTooSlow: the reader was let go; every event before it was returned.
            ConnectionLost: Redis stayed away.
            ClientClosed: the client was closed.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._is_over:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._events.popleft()

    def offer(self, entry_id: EntryId, event: Event) -> bool:
        """Put an event into the queue; False where the reader is let go because its queue is full."""
        if entry_id <= self._after:
            return True
        if len(self._events) >= QUEUE_EVENTS:
            self.end(ReaderTooSlow(self.job_id, self._events[-1][0].id))
            return False
        self._events.append((event, entry_id))
        self._wake()
        return True

    def end(self, error: Exception | None = None) -> None:
        """Nothing comes any more: `next` raises `error`, or returns None, after what is in the queue."""
        self._is_over = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Stream:
    """One answer that is followed. `cursor` is the last entry that was handed on."""

    def __init__(self, job_id: str, cursor: EntryId) -> None:
        self.job_id = job_id
        self.cursor = cursor
        self.watched = cursor
        self.readers: set[Subscription] = set()

    def hand_on(self, entries: list[StreamEntry]) -> bool:
        """Give entries to every reader; False where nothing more is to be read for them."""
        for raw in entries:
            try:
                event, entry_id = parse_entry(raw)
            except ProtostarError as error:
                self.end(error)
                return False
            self.cursor = entry_id
            for reader in [reader for reader in self.readers if not reader.offer(entry_id, event)]:
                self.readers.discard(reader)
            if event.is_ending:
                self.end()
        return bool(self.readers)

    def end(self, error: Exception | None = None) -> None:
        for reader in self.readers:
            reader.end(error)
        self.readers.clear()


class Feed:
    """Follows any number of answers for any number of readers of one event loop.

    One XREAD blocks for all of them. A stream of the client's own is read along: an entry there ends the
    block when an answer is added.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: dict[str, _Stream] = {}
        self._wake_key = keys.reader(uuid4().hex)
        self._wake_cursor = "0-0"
        self._unread = False  # a stream was added that the read under way does not have
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def join(self, job_id: str, after: EntryId, newest: EntryId) -> Subscription | None:
        """Have the events after `after` put into a queue; None where they have been handed on already.

        `newest` is the last entry of the log, as far as is known: a reader who claims to be further must not take
        the others there. After None, read on until what has been is read, and join again.
        """
        key = keys.events(job_id)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(job_id, min(after, newest))
            self._unread = True
            self._ensure_tasks()
        elif stream.cursor > after:
            return None
        reader = Subscription(job_id, after)
        stream.readers.add(reader)
        return reader

    def leave(self, reader: Subscription) -> None:
        """Put nothing more into a reader's queue."""
        key = keys.events(reader.job_id)
        stream = self._streams.get(key)
        if stream is not None:
            stream.readers.discard(reader)
            if not stream.readers:
                del self._streams[key]

    async def close(self) -> None:
        """Let every reader go."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end_all(ClientClosed())

    def _ensure_tasks(self) -> None:
        for name, work in (("read", self._read_all), ("watch", self._watch), ("wake", self._wake)):
            if name not in self._tasks or self._tasks[name].done():
                self._tasks[name] = asyncio.create_task(work(), name=f"protostar-{name}")

    def _end_all(self, error: Exception | None) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(error)

    async def _read_all(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = 0.0
        while self._streams:
            await asyncio.sleep(max(0.0, last_s + PACE_S - loop.time()))
            last_s = loop.time()
            try:
                asked = dict(self._streams)
                self._hand_on(await self._read(asked), asked)
            except RedisRefused:  # one key's fault, most likely: each reader finds out about its own
                await asyncio.sleep(_REFUSED_PAUSE_S)
                self._end_all(None)
            except Exception as error:  # nobody may wait for a read that has ended
                self._end_all(error)

    async def _read(self, asked: dict[str, _Stream]) -> Any:
        self._unread = False
        cursors: dict[Any, Any] = {key: str(stream.cursor) for key, stream in asked.items()}
        cursors[self._wake_key] = self._wake_cursor
        return await self._connection.block(lambda redis: redis.xread(cursors, count=BATCH, block=BLOCK_MS))

    def _hand_on(self, reply: Any, asked: dict[str, _Stream]) -> None:
        for name, entries in reply:
            key = name.decode()
            if key == self._wake_key:
                self._wake_cursor = entries[-1][0].decode()
                continue
            stream = asked[key]
            # One that was left and joined again meanwhile starts elsewhere, and has its own read.
            if self._streams.get(key) is stream and not stream.hand_on(entries):
                del self._streams[key]

    async def _wake(self) -> None:
        """End the block of a read that does not have every stream."""
        try:
            while True:
                await asyncio.sleep(PACE_S)
                if not self._unread or not self._streams:
                    return
                # Not `call`, whose queue may be a thousand readers long who have just come.
                await self._connection.block(self._write_wake)
        except (ClientClosed, ConnectionLost, RedisRefused):
            pass  # the block ends by itself within BLOCK_MS

    async def _write_wake(self, redis: Redis) -> None:
        async with redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._wake_key, {"wake": 1}, maxlen=1, approximate=False)
            pipe.pexpire(self._wake_key, _WAKE_TTL_MS)
            await pipe.execute()

    async def _watch(self) -> None:
        """Have the readers of answers that are silent, and don't go on, look for themselves."""
        while self._streams:
            await asyncio.sleep(WATCH_S)
            silent = [stream for stream in self._streams.values() if stream.cursor == stream.watched]
            for stream in self._streams.values():
                stream.watched = stream.cursor
            for start in range(0, len(silent), _STATES_AT_ONCE):
                await self._look_at(silent[start : start + _STATES_AT_ONCE])

    async def _look_at(self, streams: list[_Stream]) -> None:
        try:
            states = await read_states(self._connection, [stream.job_id for stream in streams])
            over = [
                stream
                for stream, state in zip(streams, states, strict=True)
                if state.standing(stream.cursor) is not Standing.GOES_ON
            ]
        except ProtostarError:
            over = streams
        for stream in over:
            key = keys.events(stream.job_id)
            if self._streams.get(key) is stream:
                del self._streams[key]
                stream.end()

"""The client without async, for Django, Flask and scripts: the same names, the same errors, blocking calls.

A thread of its own runs the connections, so calls may come from any thread. Connect after a fork, not before.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Self, TypeVar
from uuid import UUID

from protostar_client import client as aio
from protostar_client.contract import ChatResult, Event, HistoryMessage
from protostar_client.errors import ClientClosed
from protostar_client.handle import CANCEL_TIMEOUT_S
from protostar_client.handle import JobHandle as AsyncJobHandle

__all__ = ["ChatClient", "JobHandle"]

T = TypeVar("T")


class _LoopThread:
    """An event loop in a thread; `run` waits for a coroutine there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="protostar-client", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self.is_closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:  # what comes after `close` would wait for a loop that does not run
            if self.is_closed:
                work.close()
                raise ClientClosed()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ClientClosed() from None  # nothing else cancels what is waited for here
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            last = asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop)
        last.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class JobHandle:
    """One turn of a user, as `protostar_client.JobHandle`."""

    def __init__(self, handle: AsyncJobHandle, thread: _LoopThread) -> None:
        self._handle = handle
        self._thread = thread
        self.job_id = handle.job_id
        self.user_uuid = handle.user_uuid
        self.created = handle.created

    def __repr__(self) -> str:
        return f"<JobHandle {self.job_id}>"

    def events(self, last_id: str | None = None) -> Iterator[Event]:
        """The answer's events after `last_id`, as `protostar_client.JobHandle.events`."""
        events = self._handle.events(last_id)
        try:
            while (event := self._thread.run(_next(events))) is not None:
                yield event
        finally:
            if not self._thread.is_closed:
                self._thread.run(events.aclose())

    def text(self) -> str:
        """The whole answer, as `protostar_client.JobHandle.text`."""
        return self._thread.run(self._handle.text())

    def result(self, timeout_s: float | None = None) -> ChatResult:
        """The job's result, as `protostar_client.JobHandle.result`."""
        return self._thread.run(self._handle.result(timeout_s))

    def cancel(self, *, timeout_s: float = CANCEL_TIMEOUT_S) -> bool:
        """End the job, as `protostar_client.JobHandle.cancel`."""
        return self._thread.run(self._handle.cancel(timeout_s=timeout_s))


class ChatClient:
    """Questions in, answers out, as `protostar_client.ChatClient`; safe to share by threads."""

    def __init__(self, client: aio.ChatClient, thread: _LoopThread) -> None:
        self._client = client
        self._thread = thread

    @classmethod
    @contextmanager
    def connect(
        cls, redis_url: str, *, max_queue: int = aio.MAX_QUEUE, patience_s: float = aio.PATIENCE_S
    ) -> Iterator[Self]:
        """A client of the Redis at `redis_url`, as `protostar_client.ChatClient.connect`."""
        thread = _LoopThread()
        stack = AsyncExitStack()
        try:
            client = thread.run(
                stack.enter_async_context(aio.ChatClient.connect(redis_url, max_queue=max_queue, patience_s=patience_s))
            )
            yield cls(client, thread)
        finally:
            thread.run(stack.aclose())
            thread.close()

    def enqueue(
        self,
        *,
        user_uuid: UUID | str,
        session_id: str,
        content: str,
        mode: str = "general",
        context: str = "",
        documents: Sequence[str] = (),
        job_id: str | None = None,
        on_busy: aio.OnBusy = "enqueue",
    ) -> JobHandle:
        """Put a question into the queue, as `protostar_client.ChatClient.enqueue`."""
        handle = self._thread.run(
            self._client.enqueue(
                user_uuid=user_uuid,
                session_id=session_id,
                content=content,
                mode=mode,
                context=context,
                documents=documents,
                job_id=job_id,
                on_busy=on_busy,
            )
        )
        return JobHandle(handle, self._thread)

    def handle(self, job_id: str, *, user_uuid: UUID | str) -> JobHandle:
        """The handle of a job enqueued elsewhere, as `protostar_client.ChatClient.handle`."""
        return JobHandle(self._client.handle(job_id, user_uuid=user_uuid), self._thread)

    def history(
        self,
        *,
        user_uuid: UUID | str,
        session_id: str,
        limit: int = 50,
        timeout_s: float = aio.HISTORY_TIMEOUT_S,
    ) -> list[HistoryMessage]:
        """The newest messages of a session, as `protostar_client.ChatClient.history`."""
        return self._thread.run(
            self._client.history(user_uuid=user_uuid, session_id=session_id, limit=limit, timeout_s=timeout_s)
        )


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _next(events: Any) -> Event | None:
    event: Event | None = await anext(events, None)
    return event

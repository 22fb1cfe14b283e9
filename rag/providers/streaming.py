"""Reads a streamed answer from an open response, within limits that only tokens extend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from rag.providers.answer import AnswerReader, prompt_texts
from rag.providers.bounded_body import ERROR_BYTES, may_be_events
from rag.providers.errors import Translator
from rag.providers.protocol import CompletionRequest, ProviderError, StalledError, StreamPart
from rag.providers.sse import EventReader, MalformedEventError

T = TypeVar("T")

USAGE_WAIT_S: Final = 5.0
"""The longest wait for the usage after the finish reason: the answer is whole without it."""


class Response(Protocol):
    """The used part of a response of httpx or httpx2."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, in any case of letters."""
        ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, decompressed."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds without a token: before the first one, and after one. A whole answer has `first_token_s`."""

    first_token_s: float
    stall_s: float


class Patience:
    """Token timeout. Counts only the time spent waiting for the provider, not the time spent in the consumer.

    Each wait sets a new deadline, and one timer checks from time to time whether it has passed: a timer per read would
    cost as much as the reading.
    """

    def __init__(self, provider: str, limits: Limits) -> None:
        self._provider = provider
        self._limits = limits
        self._limit_s = limits.first_token_s
        self._left_s = limits.first_token_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._deadline_s = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self._is_over = False

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await within the remaining time.

        Raises:
            StalledError: the time is over.
        """
        try:
            return await self.wait_for_part(awaitable)
        finally:
            self.rest()

    async def wait_for_part(self, awaitable: Awaitable[T]) -> T:
        """Await like `wait`, for one of many waits. Call `rest` after the last one."""
        task = asyncio.current_task(self._loop)
        assert task is not None, "only a task can wait"
        cancels_before = task.cancelling()
        start_s = self._loop.time()
        self._deadline_s, self._is_over, self._waiting = start_s + self._left_s, False, task
        self._set_timer()
        try:
            return await awaitable
        except asyncio.CancelledError:
            # As in `asyncio.timeout` since 3.11.3: another cancellation may come at the same moment, and a task that
            # is ending may have been cancelled before.
            if self._is_over and task.cancelling() <= cancels_before + 1:
                raise StalledError(f"{self._provider} sent no token within {self._limit_s:g} s; try again") from None
            raise
        finally:
            self._waiting = None
            self._left_s -= self._loop.time() - start_s
            if self._is_over:
                task.uncancel()

    def rest(self) -> None:
        """Clear the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def renew(self) -> None:
        """Start the time anew after a token."""
        self._limit_s = self._left_s = self._limits.stall_s

    def shorten(self) -> None:
        """Shorten the time after the finish reason: only the usage is missing."""
        self._left_s = min(self._left_s, USAGE_WAIT_S)

    def _set_timer(self) -> None:
        if self._timer is None or self._deadline_s < self._timer_s:
            self.rest()
            self._timer_s = self._deadline_s
            self._timer = self._loop.call_at(self._deadline_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._deadline_s:
            self._set_timer()
        else:
            self._is_over = True
            self._waiting.cancel()


async def read_parts(
    response: Response, request: CompletionRequest, *, patience: Patience, translator: Translator
) -> AsyncGenerator[StreamPart, None]:
    """Yield the parts of an answer that is being streamed.

    Raises:
        ProviderError: the answer broke off, stalled, or is an error.
    """
    if not may_be_events(response):
        with translator.guard():
            raise await patience.wait(_error_of(response, request, translator))
    answer = AnswerReader(request, translator)
    async with aclosing(_chunks(response, patience, translator)) as chunks:
        try:
            async for chunk in chunks:
                text, is_token = answer.take(chunk)
                if is_token:
                    patience.renew()
                if text:
                    yield text
                if answer.finish_reason:
                    patience.shorten()
        except ProviderError:
            # After the finish reason the answer is whole.
            if not answer.finish_reason:
                raise
        finally:
            patience.rest()
    yield answer.finish()


async def _chunks(
    response: Response, patience: Patience, translator: Translator
) -> AsyncGenerator[dict[str, Any], None]:
    events = EventReader()
    # httpx declares an iterator and returns a generator, which must be closed before its connection.
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as received:
        while not events.done:
            try:  # as `translator.guard()` does, which would cost a tenth of every token
                data = await patience.wait_for_part(anext(received, None))
            except ProviderError:
                raise
            except Exception as error:
                raise translator.of_exception(error) from None
            for chunk in _well_formed(events.end() if data is None else events.feed(data), translator):
                yield chunk
            if data is None:
                return


def _well_formed(events: Iterator[dict[str, Any]], translator: Translator) -> Iterator[dict[str, Any]]:
    try:
        yield from events
    except MalformedEventError as error:
        # It may have contained a token, and the answer would have a hole.
        raise translator.unavailable(f"sent a broken stream: {error}") from None


async def _error_of(response: Response, request: CompletionRequest, translator: Translator) -> ProviderError:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > ERROR_BYTES:
            break
    text = body.decode(errors="replace")
    return translator.of_response(response.status_code, text, response.headers, prompt_texts(request))

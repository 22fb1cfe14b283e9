"""Asks the worker from a terminal and shows the answer, its sources and its summary."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import asyncpg
from protostar_client import ChatClient, JobHandle, ProtostarError
from protostar_client.contract import Event, EventType, JobError, Source
from rich.console import Console
from rich.text import Text

from stack.errors import StackError
from stack.parts import Parts
from stack.processes import Process

_WATCH_S: Final = 0.2
_SUMMARY_TIMEOUT_S: Final = 60
_CANCEL_TIMEOUT_S: Final = 5
_SOURCES_SHOWN: Final = 4
_CONTROL_CHARACTERS: Final = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])
"""All but tab and newline."""

T = TypeVar("T")


def printable(text: str) -> str:
    """Remove control characters from a model's text."""
    return text.translate(_CONTROL_CHARACTERS)


@dataclass(slots=True)
class Answer:
    """An answer as it was read."""

    job_id: str
    text: str = ""
    sources: list[Source] = field(default_factory=list)


class Conversation:
    """One session with the worker. Answers go to `out`, everything about them to `notes`."""

    def __init__(self, parts: Parts, worker: Process, *, out: Console, notes: Console) -> None:
        self._parts = parts
        self._worker = worker
        self._out = out
        self._notes = notes
        self._user: UUID = uuid4()
        self._session_id = f"demo-{uuid4().hex[:8]}"

    def ask(self, question: str) -> Answer:
        """Ask and show the answer while it comes. Ctrl-C cancels the job.

        Raises:
            StackError: the worker ended, or the job failed.
        """
        try:
            return asyncio.run(self._while_worker_runs(self._ask(question)))
        except JobError as error:
            raise StackError(f"the job failed: {error}") from None

    def summary(self, answer: Answer) -> str:
        """Wait for the summary of an answer and give it.

        Raises:
            StackError: the worker ended, or there is none after a minute.
        """
        return asyncio.run(self._while_worker_runs(self._summary(answer.job_id)))

    def last_prompt(self) -> list[dict[str, str]] | None:
        """The newest question's messages as the local model server received them; None for other models."""
        if self._parts.model_server_url is None:
            return None
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self._parts.model_server_url}/requests") as response:
            requests: list[dict[str, Any]] = json.load(response)
        streamed = [request["body"] for request in requests if request["body"].get("stream")]
        messages: list[dict[str, str]] = streamed[-1]["messages"]
        return messages

    async def _ask(self, question: str) -> Answer:
        async with ChatClient.connect(self._parts.redis_url) as client:
            handle = await client.enqueue(user_uuid=self._user, session_id=self._session_id, content=question)
            try:
                return await self._show(handle)
            except asyncio.CancelledError:
                if self._worker.running:
                    with suppress(TimeoutError, ProtostarError):
                        await handle.cancel(timeout_s=_CANCEL_TIMEOUT_S)
                raise

    async def _show(self, handle: JobHandle) -> Answer:
        answer = Answer(handle.job_id)
        async with aclosing(handle.events()) as events:
            async for event in events:
                self._show_event(event, answer)
        self._show_sources(answer.sources)
        return answer

    def _show_event(self, event: Event, answer: Answer) -> None:
        match event.type:
            case EventType.DELTA:
                text = event.text or ""
                self._out.file.write(printable(text))
                self._out.file.flush()
                answer.text += text
            case EventType.SOURCES:
                answer.sources = event.sources or []
            case EventType.RESTART:
                self._notes.print(f"\n(starting again: {event.reason})", style="yellow", markup=False)
                answer.text, answer.sources = "", []
            case EventType.DONE:
                self._out.print()
            case EventType.ERROR | EventType.CANCELLED:
                self._out.print()
                raise JobError(event.code or event.type, event.message or "the job was cancelled")

    def _show_sources(self, sources: list[Source]) -> None:
        for number, source in enumerate(sources[:_SOURCES_SHOWN], start=1):
            heading = f" › {source.heading}" if source.heading else ""
            line = Text(f"  [{number}] {source.document}{heading}  ({source.score:.2f})", style="dim")
            self._notes.print(line)

    async def _summary(self, job_id: str) -> str:
        database = await asyncpg.connect(self._parts.database_url)
        try:
            async with asyncio.timeout(_SUMMARY_TIMEOUT_S):
                while True:
                    summary: str | None = await database.fetchval(
                        "SELECT summary FROM messages WHERE job_id = $1 AND role = 'assistant'", job_id
                    )
                    if summary is not None:
                        return summary
                    await asyncio.sleep(_WATCH_S)
        except TimeoutError:
            raise StackError(f"no summary after {_SUMMARY_TIMEOUT_S} s; see {self._worker.log}") from None
        finally:
            await database.close()

    async def _while_worker_runs(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_WATCH_S))[0]:
                if not self._worker.running:
                    raise StackError(
                        f"the worker has ended; the end of {self._worker.log}:\n{self._worker.last_lines()}"
                    )
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

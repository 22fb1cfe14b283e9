"""Shows an answer as it arrives."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import aclosing
from typing import Final

from protostar_client import Event, EventType, JobHandle, Source
from protostar_client.normalization import clean_text

from protostar.cli.support.errors import CommandError
from protostar.cli.support.output import note, one_line, write, write_json

_PATIENCE_S: Final = 5.0


def cancel_on_signals() -> None:
    """Let Ctrl-C and SIGTERM cancel the running task, and nothing else.

    asyncio.run's own handler cancels in the middle of a step, which redis-py can take for a timeout.
    """
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


class AnswerView:
    """Prints an answer's text to standard output and its circumstances to standard error; with `json` its events."""

    def __init__(self, *, json: bool = False) -> None:
        self.last_id: str | None = None
        """Of the last event that was shown."""
        self.has_ended = False
        """Whether that was the answer's ending."""
        self._json = json
        self._sources: list[Source] = []
        self._line_is_open = False

    async def follow(self, handle: JobHandle, last_id: str | None = None) -> None:
        """Show the events after `last_id` up to the ending.

        Raises:
            CommandError: the job failed or was cancelled.
            ProtostarError: as `JobHandle.events`.
        """
        hint = asyncio.get_running_loop().call_later(
            _PATIENCE_S,
            note,
            "no worker has taken the question yet; `protostar status` shows the workers, "
            "`arq arq_settings.WorkerSettings` starts one",
        )
        try:
            async with aclosing(handle.events(last_id)) as events:
                async for event in events:
                    hint.cancel()
                    self.last_id, self.has_ended = event.id, event.is_ending
                    self._show(event)
        finally:
            hint.cancel()
            self._end_line()

    def _show(self, event: Event) -> None:
        if self._json:
            write_json(event.model_dump(mode="json", exclude_none=True))
        else:
            self._tell(event)
        match event.type:
            case EventType.ERROR:
                self._end_line()
                raise CommandError(f"{event.code}: {event.message}")
            case EventType.CANCELLED:
                self._end_line()
                raise CommandError("the job was cancelled")

    def _tell(self, event: Event) -> None:
        match event.type:
            case EventType.DELTA:
                self._write(event.text or "")
            case EventType.SOURCES:
                self._sources = event.sources or []
            case EventType.RESTART | EventType.GAP:
                self._end_line()
                self._sources = []
                note(f"the answer starts again ({event.reason}); what came before is void")
            case EventType.DONE:
                self._end_line()
                for number, source in enumerate(self._sources, start=1):
                    place = " > ".join(filter(None, (source.document, source.heading)))
                    note(f"[{number}] {one_line(place)} ({source.score:.2f})")

    def _write(self, text: str) -> None:
        if text:
            # A terminal obeys control characters, so it gets none; a file gets the answer as it is.
            write(clean_text(text) if sys.stdout is not None and sys.stdout.isatty() else text)
            self._line_is_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._line_is_open:
            self._line_is_open = False
            write("\n")

"""`protostar ask`."""

from __future__ import annotations

import asyncio
import getpass
import signal
import sys
from contextlib import aclosing
from typing import Annotated, Final
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import typer
from protostar_client import (
    ChatClient,
    ConnectionLost,
    Event,
    EventsExpired,
    EventType,
    JobError,
    JobHandle,
    JobVanished,
    ProtostarError,
    ReaderTooSlow,
    RedisRefused,
    Source,
)
from protostar_client.contract import clean_text

from cli.errors import CommandError, failing_on
from cli.output import note, write
from settings import RedisSettings, SettingsError, load

_INTERRUPTED: Final = 130  # what a shell reports for Ctrl-C
_PATIENCE_S: Final = 5.0
_CANCEL_TIMEOUT_S: Final = 5.0


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    user: Annotated[UUID | None, typer.Option(help="Who asks.", show_default="a UUID of the account's name")] = None,
    session: Annotated[str | None, typer.Option(help="The session.", show_default="a new one")] = None,
    mode: Annotated[str, typer.Option(help="The prompt to answer with.")] = "general",
) -> None:
    """Ask the workers a question and print the answer while it comes. Ctrl-C cancels the job."""
    session_id = session if session is not None else f"cli-{uuid4().hex[:8]}"
    try:
        with failing_on(SettingsError, JobError, JobVanished, EventsExpired, ReaderTooSlow, RedisRefused):
            asyncio.run(_ask(load(RedisSettings), question, user or _account_uuid(), session_id, mode))
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    except (ConnectionLost, ValueError) as error:
        raise CommandError(f"{error}; check REDIS_URL and the server") from error
    if session is None:
        note(f"to go on in this session: --session {session_id}")


def _account_uuid() -> UUID:
    """The same UUID at every call of one account, so that its sessions can be gone on with."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        name = "somebody"
    return uuid5(NAMESPACE_URL, f"protostar-cli-{name}")


async def _ask(settings: RedisSettings, question: str, user: UUID, session_id: str, mode: str) -> None:
    _cancel_on_signals()
    redis_url = settings.redis_url.get_secret_value()
    async with ChatClient.connect(redis_url, max_queue=settings.max_queue) as client:
        handle = await client.enqueue(user_uuid=user, session_id=session_id, content=question, mode=mode)
        try:
            await _show(handle)
        except (asyncio.CancelledError, BrokenPipeError):
            # In a task of its own: before Python 3.11.3 a timeout in a cancelled task raises a second cancellation.
            await asyncio.create_task(_cancel(handle))
            raise


def _cancel_on_signals() -> None:
    # asyncio.run's own handler cancels in the middle of a step, which redis-py can take for a timeout.
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _show(handle: JobHandle) -> None:
    hint = asyncio.get_running_loop().call_later(
        _PATIENCE_S, note, "no worker has taken the question yet; start one: arq arq_settings.WorkerSettings"
    )
    printer = _Printer()
    try:
        async with aclosing(handle.events()) as events:
            async for event in events:
                hint.cancel()
                printer.show(event)
    finally:
        hint.cancel()


class _Printer:
    """Prints an answer's text to standard output and its circumstances to standard error."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._line_is_open = False

    def show(self, event: Event) -> None:
        """Print what an event says.

        Raises:
            CommandError: the job failed or was cancelled.
        """
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
                    note(f"[{number}] {place} ({source.score:.2f})")
            case EventType.ERROR:
                self._end_line()
                raise CommandError(f"{event.code}: {event.message}")
            case EventType.CANCELLED:
                self._end_line()
                raise CommandError("the job was cancelled")

    def _write(self, text: str) -> None:
        if text:
            # A terminal obeys control characters, so it gets none; a file gets the answer as it is.
            write(clean_text(text) if sys.stdout is not None and sys.stdout.isatty() else text)
            self._line_is_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._line_is_open:
            write("\n")
            self._line_is_open = False


async def _cancel(handle: JobHandle) -> None:
    try:
        await handle.cancel(timeout_s=_CANCEL_TIMEOUT_S)
    except JobVanished:
        return
    except (TimeoutError, ProtostarError):
        note(f"job {handle.job_id} was asked to end, but no worker has said that it did")

"""Acts whenever a folder changes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from protostar.cli.support.errors import CommandError
from protostar.cli.support.output import note

SETTLED_MS: Final = 1000
"""The quiet time after a change before it is acted on."""

_AT_THE_LATEST_MS: Final = 10_000
_AGAIN_AFTER_S: Final = 10.0


def watching(act: Callable[[], object], folder: Path, expected: tuple[type[Exception], ...]) -> None:
    """Act now and after every change in `folder`, one time after the other, until interrupted.

    What fails with an `expected` error is said and tried again; so is watching, while the folder is away.

    Raises:
        CommandError: the package that watches is not installed.
    """
    try:
        import watchfiles  # noqa: F401
    except ImportError as error:
        raise CommandError("--watch needs the package watchfiles; install the extra: protostar[watch]") from error
    changed, stopped = threading.Event(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, changed, stopped), daemon=True)
    watcher.start()
    failed = False
    try:
        with _interrupting(stopped, changed):
            while not stopped.is_set():
                changed.clear()
                try:
                    act()
                    failed = False
                except expected as error:
                    note(str(error))
                    failed = True
                changed.wait(_AGAIN_AFTER_S if failed else None)
    except KeyboardInterrupt:
        stopped.set()
    watcher.join(5 * SETTLED_MS / 1000)  # one that hangs on a folder that hangs is left to die with the process


@contextmanager
def _interrupting(*events: threading.Event) -> Iterator[None]:
    """Ctrl-C sets the events too: what runs at that moment may swallow its KeyboardInterrupt, as a destructor does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for event in events:
            event.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(folder: Path, changed: threading.Event, stopped: threading.Event) -> None:
    """Say what changes, and once as soon as changes are seen: what came before that may have been missed."""
    while not stopped.is_set():
        try:
            _watch_one(folder, changed, stopped)
        except (OSError, RuntimeError) as error:
            note(f"{folder} can't be watched ({error}); it is tried again")
            stopped.wait(_AGAIN_AFTER_S)


def _watch_one(folder: Path, changed: threading.Event, stopped: threading.Event) -> None:
    """As `_watch`, until another folder stands in its place: the one that was watched tells nothing more."""
    from watchfiles import watch

    watched = folder.stat()
    seen = False
    for changes in watch(
        folder,
        watch_filter=None,
        debounce=_AT_THE_LATEST_MS,
        step=SETTLED_MS,
        stop_event=stopped,
        rust_timeout=SETTLED_MS,
        yield_on_timeout=True,
        raise_interrupt=False,
        ignore_permission_denied=True,
    ):
        if changes or not seen:
            changed.set()
        seen = True
        if not os.path.samestat(watched, folder.stat()):
            return

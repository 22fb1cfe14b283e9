"""Prepares files in a child process with low priority, so that indexing does not slow down answers.

The child's standard input is a socket. The parent sends one request after the other; the child replies to each with
drafts and then None, or with an exception. Messages are pickled. The socket blocks the child until the parent reads.

Not `ProcessPoolExecutor`: it has no public way to end a running child, does not say which signal killed it, leaves it
behind when the parent is killed, and imports the parent's main module into it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from subprocess import DEVNULL, Popen
from typing import IO, Any, Final

from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import SourceFile
from rag.index.drafts import Draft, Known, prepare

LEAST_BYTES: Final = 256 * 1024
"""The least size of a batch for which a child is started, which takes half a second of processor time."""

_NICENESS: Final = 10
# The child imports from the same path as the parent, without its own folder.
_START: Final = "import sys; sys.path[:] = sys.argv[1:]; from rag.index.preparer import serve; serve()"


class PreparingError(Exception):
    """The process that prepares files could not start, or ended; committed chunks stay searchable."""


class Preparer:
    """Prepares drafts: large batches in a child that is started once and kept, small ones in a thread.

    Requests are handled one after the other. `close` ends the child.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._turn = asyncio.Lock()

    async def prepare(
        self, files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings
    ) -> AsyncGenerator[Draft, None]:
        """Read and cut files into drafts of bounded size, each prepared while the one before is used.

        Wrap it in `aclosing` where iteration may stop early.

        Raises:
            PreparingError: the child could not be started, or ended.
            UnreadableFileError: a file of more than one block changed while it was read.
        """
        async with self._turn:
            drafts = self._begin(files, known, settings)
            del known  # 30 MB for a gibibyte of text, which the child has now
            upcoming = asyncio.create_task(asyncio.to_thread(_next, drafts))
            try:
                while (draft := await upcoming) is not None:
                    upcoming = asyncio.create_task(asyncio.to_thread(_next, drafts))
                    yield draft
            finally:
                if self._child and self._child.is_busy:
                    await self.close()
                # A thread can't be cancelled, and two of them can't share a generator.
                with suppress(Exception):
                    await upcoming

    async def close(self) -> None:
        """Kill the child, also during a request."""
        child, self._child = self._child, None
        if child:
            await asyncio.to_thread(child.end)

    def _begin(
        self, files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings
    ) -> Iterator[Draft]:
        if self._child is None:
            if sum(file.size_bytes for file in files) < LEAST_BYTES:
                return prepare(files, known, settings)
            self._child = _Child()
        return self._child.prepare(files, known, settings)


class _Child:
    """The child process, seen from the parent."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                # Ctrl-C reaches the whole process group of the terminal; only the parent must handle it.
                self._process = Popen(
                    [sys.executable, "-c", _START, *sys.path], stdin=theirs.fileno(), stdout=DEVNULL, process_group=0
                )
            except OSError as error:
                raise PreparingError(f"no process to prepare files could be started: {error}; run again") from None
            self._line = ours.makefile("rwb")
        self.is_busy = False
        """Whether it is handling a request."""

    def prepare(
        self, files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings
    ) -> Iterator[Draft]:
        """Iterate over the drafts that the child prepares."""
        self.is_busy = True
        self._send((files, known, settings))
        del known
        while isinstance(answer := self._receive(), Draft):
            yield answer
        self.is_busy = False
        if answer is not None:
            raise answer

    def end(self) -> None:
        """Kill the child: it has no state to save."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._line.close()

    def _send(self, request: object) -> None:
        try:
            pickle.dump(request, self._line, pickle.HIGHEST_PROTOCOL)
            self._line.flush()
        except OSError:
            raise self._ended() from None

    def _receive(self) -> Any:
        try:
            return pickle.load(self._line)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._ended() from None

    def _ended(self) -> PreparingError:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        return PreparingError(
            f"the process that prepares files {how}; what was indexed is kept and serves; run again, "
            "with more memory if the system ran out of it"
        )


def serve() -> None:
    """Run as the child: handle requests from standard input until the parent closes the socket."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager sends it to all processes of a service
    os.nice(_NICENESS)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb")
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            _answer(pickle.load(requests), answers)
    os._exit(0)  # an ordinary exit would flush to the closed socket


def _answer(request: tuple[Sequence[SourceFile], Mapping[str, Known], ChunkSettings], answers: IO[bytes]) -> None:
    drafts = prepare(*request)
    is_draft = True
    while is_draft:
        answer = _next_or_error(drafts)
        is_draft = isinstance(answer, Draft)
        pickle.dump(answer, answers)
        answers.flush()


def _next_or_error(drafts: Iterator[Draft]) -> Draft | Exception | None:
    try:
        return _next(drafts)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error


def _next(drafts: Iterator[Draft]) -> Draft | None:
    # A future can't carry a StopIteration.
    return next(drafts, None)

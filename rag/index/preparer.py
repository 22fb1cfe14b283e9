"""Preparing files in a process of its own: questions share neither the interpreter nor a fair half of a core with it.

The child has a socket as its standard input. It is sent one request after the other, and answers each with its
drafts and None, or with an exception; all of it is pickled. The socket holds it back while nobody reads.
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
"""Files of so many bytes together are worth a child, which takes half a second of a processor to start."""

_NICENESS: Final = 10
# Its own folder is no part of the path: whatever is imported here is imported there.
_START: Final = "import sys; sys.path[:] = sys.argv[1:]; from rag.index.preparer import serve; serve()"


class PreparingError(Exception):
    """The process that prepares files could not be started, or ended; what is committed stays, and serves."""


class Preparer:
    """Makes drafts of files: of much in a child that is started once and kept, of little in a thread.

    Requests are done one after the other. `close` ends the child.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._turn = asyncio.Lock()

    async def prepare(
        self, files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings
    ) -> AsyncGenerator[Draft, None]:
        """Read and cut files into drafts of bounded size, each made while the one before is used.

        Close it (`aclosing`) where it may be left half used.

        Raises:
            PreparingError: the child could not be started, or ended.
            UnreadableFileError: a file of more than one block changed while it was read.
        """
        async with self._turn:
            drafts = self._begin(files, known, settings)
            del known  # of a gibibyte it is 30 MB, which a child holds for us
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
        """End the child, whatever it is doing."""
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
    """The process, as its parent sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                # Ctrl-C in a terminal goes to a whole process group: the parent's, which decides what follows.
                self._process = Popen(
                    [sys.executable, "-c", _START, *sys.path], stdin=theirs.fileno(), stdout=DEVNULL, process_group=0
                )
            except OSError as error:
                raise PreparingError(f"no process to prepare files could be started: {error}; run again") from None
            self._line = ours.makefile("rwb")
        self.is_busy = False
        """Whether it has more to say about a request."""

    def prepare(
        self, files: Sequence[SourceFile], known: Mapping[str, Known], settings: ChunkSettings
    ) -> Iterator[Draft]:
        """What `rag.index.drafts.prepare` gives there."""
        self.is_busy = True
        self._send((files, known, settings))
        del known
        while isinstance(answer := self._receive(), Draft):
            yield answer
        self.is_busy = False
        if answer is not None:
            raise answer

    def end(self) -> None:
        """Kill it: it has nothing to lose."""
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
    """Be the child: answer the requests on standard input until it ends, or nobody reads the answers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager tells all of a service's processes at once
    os.nice(_NICENESS)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb")
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            _answer(pickle.load(requests), answers)
    os._exit(0)  # an end in order would try to write what nobody reads


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
    # A StopIteration can't pass through a future.
    return next(drafts, None)

"""Child processes that end with this process, however it ends, and servers made of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stack.errors import StackError
from stack.places import Account

_LAUNCH: Final = Path(__file__).with_name("launch.py")
_POLL_S: Final = 0.01


def dying_with_us(
    command: Sequence[str | Path],
    *,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """The command line that runs `command` (an absolute path and arguments) as `account`.

    The kernel sends it `death_signal` when the thread that started it ends: start it in the main thread.
    """
    uid, gid = (account.uid, account.gid) if account else (-1, -1)
    launch = [sys.executable, "-I", "-S", _LAUNCH, os.getpid(), death_signal.value, uid, gid]
    return [str(argument) for argument in [*launch, *command]]


class Process:
    """A child that ends with this process. It has a session of its own, so that Ctrl-C does not reach it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        account: Account | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Start `command` (see `dying_with_us`); its output replaces what `log` held."""
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                dying_with_us(command, account=account, death_signal=death_signal),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        self.log = log

    @property
    def pid(self) -> int:
        """The process id; the program keeps it from the start."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, the negative number of the signal that killed it, or None while it runs."""
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._popen.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 10) -> None:
        """Ask it to end by `number`; kill it when it has not after `timeout_s`."""
        self.send(number)
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def last_lines(self, count: int = 8) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])


class Server(ABC):
    """A server that keeps its data in a folder and can be started again after any end.

    Subclasses say how it is prepared, started and known to be ready.
    """

    name: str
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    start_timeout_s: float = 30

    def __init__(self, base: Path, account: Account | None) -> None:
        self.account = account
        self.log = base / f"{self.name}.log"
        self._process: Process | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs on disk, and remove what a crash left."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the running server takes commands."""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.running

    def start(self) -> Self:
        """Start the server on its data and wait until it takes commands.

        Raises:
            StackError: it did not; the message holds the end of its log.
        """
        if self.running:
            raise StackError(f"{self.name} is running already")
        self._prepare()
        self._process = Process(
            self._command(),
            log=self.log,
            account=self.account,
            env=SERVER_ENVIRONMENT,
            cwd=Path("/"),
            death_signal=self.death_signal,
        )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._process.kill()
            raise
        return self

    def stop(self) -> None:
        """End the server cleanly; no effect where it does not run."""
        if self._process is not None:
            self.thaw()
            self._process.stop(self.stop_signal)

    def kill(self) -> None:
        """End the server as a crash would: at once, saving nothing."""
        helpers = children(self.pid)
        self._started().kill()
        for pid in helpers:
            _send(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, helpers)), timeout_s=10, what=f"{self.name} ends")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop the server's clock: connections stay open and nothing answers, until `thaw`."""
        pid = self.pid
        _send(pid, signal.SIGSTOP)
        for helper in children(pid):
            _send(helper, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on; no effect on one that runs or has ended."""
        if self.running:
            for pid in [*children(self.pid), self.pid]:
                _send(pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started(self) -> Process:
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process

    def _wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self._is_ready():
            if not process.running:
                raise StackError(f"{self.name} did not start; the end of {self.log}:\n{process.last_lines()}")
            if time.monotonic() > deadline:
                waited = f"{self.start_timeout_s:.0f} s"
                raise StackError(f"{self.name} was not ready after {waited}; see {self.log}")
            time.sleep(_POLL_S)


SERVER_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""The environment of a server: none of the user's variables."""


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        StackError: it did not come true within `timeout_s`; `what` says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(_POLL_S)


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than an entry that its parent has yet to read."""
    return _state_and_parent(pid)[0] not in ("", "Z", "X")


def children(pid: int) -> list[int]:
    """The process ids of a process's direct children."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child in pids if _state_and_parent(child)[1] == pid]


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        # The command's name stands in parentheses and may hold anything, also parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return fields[0], int(fields[1])


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return

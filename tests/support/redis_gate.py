"""A gate between workers and Redis that stops a command of your choice, on its way there or on its way back."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from tasks.engine.scripts import Script

Command = list[bytes]
Where = Literal["request", "reply"]

ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST_HOLD_S: Final = 60.0


def runs(name: str, *parts: str) -> Callable[[Command], bool]:
    """Matches a run of the script `{name}.lua` whose arguments hold every part."""
    [path] = ROOT.glob(f"tasks/*/lua/{name}.lua")
    script = Script(path)
    names = (script.text.encode(), script.sha1.encode())

    def matches(command: Command) -> bool:
        return len(command) > 1 and command[1] in names and _has(command, parts)

    return matches


def says(verb: str, *parts: str) -> Callable[[Command], bool]:
    """Matches a plain command whose arguments hold every part."""
    return lambda command: command[0].upper() == verb.encode() and _has(command, parts)


def _has(command: Command, parts: tuple[str, ...]) -> bool:
    return all(any(part.encode() in argument for argument in command) for part in parts)


class Hold:
    """One command that waits at the gate; `pid` is the process that sent it, once `reached`."""

    def __init__(self, matches: Callable[[Command], bool], where: Where, reply_has: bytes) -> None:
        self.matches = matches
        self.where = where
        self.reply_has = reply_has
        self.pid = 0
        self._reached = threading.Event()
        self._opened = threading.Event()
        self._dropped = False

    @property
    def reached(self) -> bool:
        """Whether the command waits here, or has."""
        return self._reached.is_set()

    def release(self) -> None:
        """Let the command, or its reply, go on."""
        self._opened.set()

    def drop(self) -> None:
        """Lose the command, or its reply, and break the connection off."""
        self._dropped = True
        self._opened.set()

    def wait(self, pid: int) -> bool:
        """Wait at the gate, from a connection's thread; says whether to go on."""
        self.pid = pid
        self._reached.set()
        self._opened.wait(LONGEST_HOLD_S)
        return not self._dropped


class RedisGate:
    """Listens on a Unix socket and passes everything on to a Redis, except for what a hold stops."""

    def __init__(self, redis_url: str) -> None:
        self._redis_path = urlsplit(redis_url).path
        self._folder = tempfile.TemporaryDirectory(prefix="gate-")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._holds: list[Hold] = []
        self._connections: set[_Connection] = set()
        self._cut_off: set[int] = set()
        self._lock = threading.Lock()
        path = Path(self._folder.name) / "redis.sock"
        self._listener.bind(str(path))
        self._listener.listen(64)
        self.url = f"unix://{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="gate", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        self.drop_connections()
        self._folder.cleanup()

    def hold(self, matches: Callable[[Command], bool], *, where: Where = "request", reply_has: str = "") -> Hold:
        """Stop the next command that matches; with `reply`, once Redis has run it and answered `reply_has`."""
        hold = Hold(matches, where, reply_has.encode())
        with self._lock:
            self._holds.append(hold)
        return hold

    def cut_off(self, pid: int) -> None:
        """Keep a process from Redis, until `reset`."""
        with self._lock:
            self._cut_off.add(pid)
        self.drop_connections(pid)

    def reset(self) -> None:
        """Forget every hold, let go of what waits and let everybody in."""
        with self._lock:
            holds, self._holds = self._holds, []
            self._cut_off.clear()
        for hold in holds:
            hold.release()

    def drop_connections(self, pid: int | None = None) -> None:
        """Break every connection off, or those of one process."""
        with self._lock:
            connections = [each for each in self._connections if pid in (None, each.pid)]
        for connection in connections:
            connection.close()

    def matching(self, command: Command) -> list[Hold]:
        """The holds this command may wait at."""
        with self._lock:
            return [hold for hold in self._holds if not hold.reached and hold.matches(command)]

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.discard(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                upstream.connect(self._redis_path)
            except OSError:
                client.close()
                upstream.close()
                continue
            connection = _Connection(self, client, upstream)
            with self._lock:
                self._connections.add(connection)
                welcome = connection.pid not in self._cut_off
            if not welcome:
                connection.close()
            connection.start()


class _Connection:
    """Two threads: one passes commands on, the other replies."""

    def __init__(self, gate: RedisGate, client: socket.socket, upstream: socket.socket) -> None:
        self._gate = gate
        self._client = client
        self._upstream = upstream
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid: int = struct.unpack("3i", credentials)[0]
        self._awaited: list[Hold] = []

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        for end in (self._client, self._upstream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        replies = threading.Thread(target=self._until_closed, args=(self._pass_replies,), daemon=True)
        replies.start()
        self._until_closed(self._pass_commands)
        replies.join()
        self._client.close()
        self._upstream.close()
        self._gate.forget(self)

    def _until_closed(self, target: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            target()
        self.close()

    def _pass_commands(self) -> None:
        with self._client.makefile("rb") as stream:
            for command, raw in _commands(stream):
                holds = self._gate.matching(command)
                self._awaited = [hold for hold in holds if hold.where == "reply"]
                if not all(hold.wait(self.pid) for hold in holds if hold.where == "request"):
                    return
                self._upstream.sendall(raw)

    def _pass_replies(self) -> None:
        while data := self._upstream.recv(1 << 20):
            heard = not data.startswith(b"-NOSCRIPT")  # else the worker sends the script's text next
            holds = [hold for hold in self._awaited if heard and hold.reply_has in data]
            if not all(hold.wait(self.pid) for hold in holds):
                return
            self._client.sendall(data)


def _commands(stream: BufferedReader) -> Iterator[tuple[Command, bytes]]:
    """Each command as its arguments and as its bytes."""
    while head := stream.readline():
        raw, command = [head], list[bytes]()
        for _ in range(int(head[1:])):
            length = stream.readline()
            argument = stream.read(int(length[1:]) + 2)
            raw += [length, argument]
            command.append(argument[:-2])
        yield command, b"".join(raw)

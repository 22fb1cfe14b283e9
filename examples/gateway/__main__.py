"""Run the gateway: `python -m examples.gateway --port 8000`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Final

import uvicorn
from pydantic import ValidationError

from .app import make_app
from .config import Config

_GRACE_S: Final = 2  # an answer that is followed would keep the process until its end


def main() -> None:
    """Listen, say where, and serve until told to stop; exit code 1 where that can't be."""
    arguments = _parser().parse_args()
    try:
        app = make_app(Config())  # type: ignore[call-arg]  # the environment gives the secret
        listener = socket.create_server((arguments.host, arguments.port), backlog=512)
    except (ValidationError, OSError) as error:
        sys.exit(f"gateway: {_problem(error)}")
    port = listener.getsockname()[1]
    if arguments.port_file is not None:
        unfinished = arguments.port_file.with_name(f"{arguments.port_file.name}.{os.getpid()}")
        unfinished.write_text(f"{port}\n")
        unfinished.replace(arguments.port_file)
    print(f"The gateway listens at http://{arguments.host}:{port}", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
    uvicorn.Server(config).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--port-file", type=Path, help="where to write the port once the gateway listens")
    return parser


def _problem(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return f"can't listen: {error.strerror or error}; choose another --port"
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])
    variable = name if name.isupper() else f"GATEWAY_{name.upper()}"
    return f"{variable} is not set or wrong: {first['msg']}"


if __name__ == "__main__":
    main()

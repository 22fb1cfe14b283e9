"""Run the model server until it is stopped."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from pathlib import Path
from typing import Final

import uvicorn

from stack.model_server.app import ModelServer
from stack.model_server.connections import protocol_class

DEFAULT_TOKENS_PER_SECOND: Final = 120.0
_GRACE_S: Final = 1


def main() -> None:
    """Listen on 127.0.0.1, write the port to the port file, and serve."""
    arguments = _parser().parse_args()
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=512)
    server = ModelServer(tokens_per_second=arguments.tokens_per_second)
    config = uvicorn.Config(
        server.app,
        http=protocol_class(server.connections),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )
    if arguments.port_file is not None:
        _write_port(arguments.port_file, listener.getsockname()[1])
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stack.model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--port-file", type=Path, help="where to write the port once the server listens")
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        default=DEFAULT_TOKENS_PER_SECOND,
        help="pace of a streamed answer; 0 is as fast as possible (default: %(default)g)",
    )
    return parser


def _write_port(path: Path, port: int) -> None:
    # A reader that polls for the file must never see half a number.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(f"{port}\n")
    unfinished.replace(path)


if __name__ == "__main__":
    main()

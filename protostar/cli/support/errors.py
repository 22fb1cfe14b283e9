"""Errors of commands: one line on standard error and exit code 1; for wrong use the usage and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from protostar_client import ConnectionLost, InvalidRequest, InvalidUrl, ProtostarError
from redis.exceptions import RedisError

from protostar.settings import SettingsError

INTERRUPTED: Final = 130
"""What a shell reports for Ctrl-C."""

_CHECK_REDIS: Final = "check REDIS_URL and the server"


class CommandError(Exception):
    """A command failed; the message is one line with the reason and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def failing_on(*expected: type[Exception]) -> Iterator[None]:
    """Turn the errors that a command expects, which explain themselves, into `CommandError`."""
    try:
        yield
    except expected as error:
        raise CommandError(str(error)) from error


@contextmanager
def using_client() -> Iterator[None]:
    """Turn what the client raises into `CommandError`, and what no worker would take into wrong use."""
    try:
        yield
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from error
    except (ConnectionLost, InvalidUrl) as error:
        raise CommandError(f"{error}; {_CHECK_REDIS}") from error
    except (SettingsError, ProtostarError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def using_redis() -> Iterator[None]:
    """Turn what a Redis that can't be asked raises into `CommandError`."""
    try:
        with failing_on(SettingsError):
            yield
    except BrokenPipeError:  # standard output's: its reader has left
        raise
    except TimeoutError as error:
        raise CommandError(f"Redis does not answer; {_CHECK_REDIS}") from error
    except (RedisError, OSError) as error:
        raise CommandError(f"Redis can't be asked: {error}; {_CHECK_REDIS}") from error

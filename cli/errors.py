"""How a command fails: one line on standard error, exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """A command failed; the message is one line that says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def failing_on(*expected: type[Exception]) -> Iterator[None]:
    """Turn the errors that a command expects, which explain themselves, into `CommandError`."""
    try:
        yield
    except expected as error:
        raise CommandError(str(error)) from error

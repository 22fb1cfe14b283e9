"""What happened to every job, in a file that all processes of a measurement map into memory.

Needs nothing but the standard library: it runs in the peers' venv too. Noting a start costs a microsecond and
survives a kill -9 of the process that noted it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BOARD_VARIABLE: Final = "DELIVERY_BOARD"
_ROW: Final = struct.Struct("=qqqqq")


@dataclass(frozen=True, slots=True)
class Row:
    """One job: times in ns of the machine's monotonic clock (0: not yet), starts so far, the pid of the last."""

    enqueued_ns: int
    first_start_ns: int
    last_start_ns: int
    starts: int
    pid: int

    @property
    def delay_ms(self) -> float:
        """From the call that enqueued it to its first start."""
        return (self.first_start_ns - self.enqueued_ns) / 1e6


class Board:
    """A row a job, by the job's number."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, rows: int) -> Board:
        """An empty board."""
        path.write_bytes(bytes(rows * _ROW.size))
        return cls(path)

    @classmethod
    def of_environment(cls) -> Board:
        """The board of this measurement."""
        return cls(Path(os.environ[BOARD_VARIABLE]))

    def __len__(self) -> int:
        return len(self._memory) // _ROW.size

    def __getitem__(self, number: int) -> Row:
        return Row(*_ROW.unpack_from(self._memory, number * _ROW.size))

    def rows(self, first: int, count: int) -> list[Row]:
        """The rows of the jobs `first` to `first + count - 1`."""
        return [self[number] for number in range(first, first + count)]

    def note_enqueue(self, number: int) -> None:
        """Called right before the job is enqueued."""
        _ROW.pack_into(self._memory, number * _ROW.size, time.monotonic_ns(), 0, 0, 0, 0)

    def note_start(self, number: int) -> None:
        """Called by the job, first thing."""
        now, row = time.monotonic_ns(), self[number]
        first = row.first_start_ns or now
        _ROW.pack_into(self._memory, number * _ROW.size, row.enqueued_ns, first, now, row.starts + 1, os.getpid())

"""How much memory it takes to index one huge file; run as a module, it is the process that does it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import protostar.log  # noqa: F401  (configures structlog)
from benchmarks.corpus.text import Writer
from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex

SETTINGS: Final = ChunkSettings(400, 60, "gpt-4o")
_PART_BYTES: Final = 4_000_000
_LOOK_EVERY_S: Final = 0.02


def write_document(file: Path, total_bytes: int) -> None:
    """A file of mixed Markdown."""
    parts = list(Writer().documents(_PART_BYTES, 20_000))
    with file.open("w") as output:
        for number in range(max(1, total_bytes // _PART_BYTES)):
            output.writelines(part.replace("---\n", "").replace(" a", f" a{number}") for part in parts)


def insert_line(file: Path) -> None:
    """A line before all others: it moves every chunk, and changes the first."""
    longer = file.with_suffix(".longer")
    with file.open("rb") as before, longer.open("wb") as after:
        after.write(b"A line that was not there.\n\n")
        shutil.copyfileobj(before, after)
    longer.replace(file)


def write_line(file: Path, total_bytes: int) -> None:
    """A file of one line without a space."""
    part = "가나다라마바사아자차카타파하" * 10_000
    with file.open("w") as output:
        for _ in range(max(1, total_bytes // len(part.encode()))):
            output.write(part)


def peak_mb(database_url: str, folder: Path) -> tuple[int, int]:
    """The most resident memory of a process before it indexes a folder, and of it and its child after, in megabytes."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.corpus.memory", database_url, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    before, after = map(int, done.stdout.split())
    return before, after


async def _main(database_url: str, folder: Path) -> None:
    before = _peak_mb("self")
    with _watched_children() as children:
        async with connect(database_url):
            done = await reindex(folder, settings=SETTINGS, max_file_bytes=1 << 31)
    if done.failures:
        raise SystemExit(f"{done.failures[0].path} {done.failures[0].reason}")
    print(before, _peak_mb("self") + sum(children.values()))


@contextmanager
def _watched_children() -> Iterator[dict[int, int]]:
    """The peaks of this process's children, by their ids, as they were when last seen alive."""
    peaks: dict[int, int] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            for children in Path("/proc/self/task").glob("*/children"):
                for child in map(int, children.read_text().split()):
                    with suppress(OSError, IndexError):  # it has ended
                        peaks[child] = _peak_mb(str(child))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peaks
    finally:
        is_over.set()
        watching.join()


def _peak_mb(process: str) -> int:
    # Not `ru_maxrss`, which begins with that of the process that forked this one.
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))

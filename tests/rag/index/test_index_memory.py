"""The memory of a process that indexes one huge file does not grow with the file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.corpus import memory
from models.database import connect
from models.transaction import transact

SMALL, LARGE = 4_000_000, 20_000_000


@pytest.mark.sample(1)
@pytest.mark.parametrize("fill", [memory.write_document, memory.write_line])
def test_memory_does_not_grow_with_the_file(
    database_url: str, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    peaks_mb = []
    for size in (SMALL, LARGE):
        folder = tmp_path / str(size)
        folder.mkdir()
        fill(folder / "huge.md", size)
        peaks_mb.append(memory.peak_mb(database_url, folder)[1])
        asyncio.run(clear(database_url))
    # The allocator's own growth levels off at some 35 MB; a list of all chunks would add as much again.
    assert peaks_mb[1] - peaks_mb[0] < 52, peaks_mb
    assert peaks_mb[1] < 300, peaks_mb


async def clear(database_url: str) -> None:
    async with connect(database_url):
        await transact(lambda connection: connection.execute_script("TRUNCATE documents, generations, folders CASCADE"))

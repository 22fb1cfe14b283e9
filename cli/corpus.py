"""`protostar reindex` and `protostar chunks`: the corpus folder and how its files are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.errors import CommandError, failing_on
from cli.output import note, notes, write, write_json
from settings import ChunkingSettings, CorpusSettings, SettingsError, load

if TYPE_CHECKING:
    from rag.chunking import Chunk, ChunkSettings
    from rag.index import Reindexed


def reindex(
    full: Annotated[bool, typer.Option("--full", help="Index every file anew, not only what changed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as a JSON object.")] = False,
) -> None:
    """Bring the index up to date with the corpus folder, here and now, and print what was done."""
    from models.database import DatabaseError
    from rag.corpus import CorpusError
    from rag.index import ReindexRunning
    from rag.tokens import TokenDataError

    with failing_on(SettingsError, DatabaseError, CorpusError, ReindexRunning, TokenDataError):
        done = asyncio.run(_reindex(load(CorpusSettings), full=full))
    for failure in done.failures:
        note(f"{failure.path} {failure.reason}")
    for folder in done.unproved:
        note(f"{folder or 'the corpus folder'} is empty or can't be read; its documents were kept")
    counts = done.result.model_dump()
    if json:
        write_json(counts)
    else:
        write(", ".join(f"{count} {name}" for name, count in counts.items()) + "\n")


async def _reindex(settings: CorpusSettings, *, full: bool) -> Reindexed:
    from models.database import connect
    from rag.index import reindex as bring_up_to_date

    async with connect(settings.database_url.get_secret_value()):
        with _progress_bar() as show:
            return await bring_up_to_date(
                settings.corpus_dir, settings=_chunk_settings(settings), full=full, on_progress=show
            )


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    columns = TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("documents", total=None)
        yield lambda done, total, _chunks: progress.update(task, completed=done, total=total)


def _chunk_settings(settings: ChunkingSettings) -> ChunkSettings:
    from rag.chunking import ChunkSettings

    return ChunkSettings(settings.chunk_tokens, settings.chunk_overlap, settings.chat_model)


def chunks(
    file: Annotated[Path, typer.Argument(help="A Markdown file, in the corpus folder or not.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a chunk.")] = False,
) -> None:
    """Print how a file is cut into chunks. Needs neither Redis nor PostgreSQL."""
    from rag.chunking import cut
    from rag.corpus import UnreadableFileError, open_content
    from rag.tokens import TokenDataError

    with failing_on(SettingsError, TokenDataError):
        how = _chunk_settings(load(ChunkingSettings))
        try:
            for chunk in cut(open_content(file.resolve()).blocks(), how):
                write_json(asdict(chunk)) if json else write(_readable(chunk))
        except UnreadableFileError as error:
            raise CommandError(f"{file} {error}") from error


def _readable(chunk: Chunk) -> str:
    place = f"{chunk.start_offset}-{chunk.end_offset}, {chunk.token_count} tokens"
    return f"--- {chunk.position} · {chunk.heading or '(no heading)'} · {place}\n{chunk.text}\n\n"

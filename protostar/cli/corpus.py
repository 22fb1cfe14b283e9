"""`protostar reindex` and `protostar chunks`: the corpus folder and how its files are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protostar.cli.support.errors import CommandError, failing_on
from protostar.cli.support.folder_watch import watching
from protostar.cli.support.output import note, notes, write, write_json
from protostar.settings import ChunkingSettings, CorpusSettings, SettingsError, load

if TYPE_CHECKING:
    from rag.corpus.chunk import Chunk
    from rag.index.preview import Preview
    from rag.index.reindex import Reindexed


def reindex(
    full: Annotated[bool, typer.Option("--full", help="Index every file again, not only the changed ones.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what a run would do, without doing it.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep running and index every change of the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as a JSON object.")] = False,
) -> None:
    """Bring the index up to date with the corpus folder now, and print what changed."""
    if watch and dry_run:
        raise typer.BadParameter("give either --watch or --dry-run")
    if watch and full:
        raise typer.BadParameter("give --full first, and --watch by itself")
    with failing_on(*_expected()):
        settings = load(CorpusSettings)
        if dry_run:
            _print_preview(asyncio.run(_preview(settings, full=full)), json=json)
        elif watch:
            watching(lambda: _print(asyncio.run(_reindex(settings)), json=json), settings.corpus_dir, _expected())
        else:
            _print(asyncio.run(_reindex(settings, full=full)), json=json)


def _expected() -> tuple[type[Exception], ...]:
    """The errors that explain themselves."""
    from models.database import DatabaseError
    from rag.analysis.morphemes import MissingAnalyserError
    from rag.corpus.encodings import TokenDataError
    from rag.corpus.walk import CorpusError
    from rag.index.preparer import PreparingError
    from rag.index.reindex import ReindexRunning
    from rag.providers import ProviderError

    of_the_index = CorpusError, ReindexRunning, PreparingError, MissingAnalyserError
    return SettingsError, DatabaseError, *of_the_index, ProviderError, TokenDataError


def _print(done: Reindexed, *, json: bool) -> None:
    _tell_problems(done)
    result = done.result.model_dump(exclude_defaults=True)
    write_json(result) if json else write(_counts(result) + "\n")


def _print_preview(found: Preview, *, json: bool) -> None:
    _tell_problems(found.reindexed)
    result = found.reindexed.result.model_dump(exclude_defaults=True) | {"embedding_tokens": found.embedding_tokens}
    write_json(result) if json else write(f"would be: {_counts(result)}\n")


def _counts(result: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result.items() if name != "failures")


def _tell_problems(done: Reindexed) -> None:
    for failure in done.failures:
        note(f"{failure.path} {failure.reason}")
    for folder in done.unproved:
        why = "can't be read, is a link, or holds no Markdown and is not the folder it was; its documents are kept"
        note(f"{folder} {why}: mount it, allow reading, put the folder itself here, or remove it")


async def _reindex(settings: CorpusSettings, *, full: bool = False) -> Reindexed:
    from models.database import connect
    from rag.corpus.chunk import ChunkSettings
    from rag.index.reindex import reindex as bring_up_to_date
    from rag.providers.embedder import embedding

    async with connect(settings.database_url.get_secret_value()), embedding(settings) as embedder:
        with _progress_bar() as show:
            return await bring_up_to_date(
                settings.corpus_dir,
                settings=ChunkSettings.of(settings),
                full=full,
                max_file_bytes=settings.max_file_bytes,
                ignore=_ignored(settings),
                on_progress=show,
                embedder=embedder,
                vector_index=settings.vector_search == "auto",
            )


async def _preview(settings: CorpusSettings, *, full: bool) -> Preview:
    from models.database import connect
    from rag.corpus.chunk import ChunkSettings
    from rag.index.preview import preview

    async with connect(settings.database_url.get_secret_value()):
        return await preview(
            settings.corpus_dir,
            settings=ChunkSettings.of(settings),
            full=full,
            max_file_bytes=settings.max_file_bytes,
            ignore=_ignored(settings),
            embedding_model=settings.embedding_model,
        )


def _ignored(settings: CorpusSettings) -> tuple[str, ...]:
    from rag.corpus.walk import IGNORED

    return IGNORED + settings.corpus_ignore


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    columns = TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("documents", total=None)
        yield lambda done, total, _chunks: progress.update(task, completed=done, total=total)


def chunks(
    file: Annotated[Path, typer.Argument(help="A Markdown file, inside or outside the corpus folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per chunk.")] = False,
) -> None:
    """Print how a file is cut into chunks. Needs neither Redis nor PostgreSQL."""
    from rag.corpus.chunk import ChunkSettings, cut
    from rag.corpus.encodings import TokenDataError
    from rag.corpus.read import UnreadableFileError, open_content

    with failing_on(SettingsError, TokenDataError):
        how = ChunkSettings.of(load(ChunkingSettings))
        try:
            for chunk in cut(open_content(file.resolve()).blocks(), how):
                write_json(asdict(chunk)) if json else write(_readable(chunk))
        except UnreadableFileError as error:
            raise CommandError(f"{file} {error}") from error


def _readable(chunk: Chunk) -> str:
    place = f"{chunk.start_offset}-{chunk.end_offset}, {chunk.token_count} tokens"
    return f"--- {chunk.position} · {chunk.heading or '(no heading)'} · {place}\n{chunk.text}\n\n"

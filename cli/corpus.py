"""`protostar chunks`: how a file is cut."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CommandError, failing_on
from cli.output import write, write_json
from settings import ChunkingSettings, SettingsError, load

if TYPE_CHECKING:
    from rag.chunking import Chunk


def chunks(
    file: Annotated[Path, typer.Argument(help="A Markdown file, in the corpus folder or not.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a chunk.")] = False,
) -> None:
    """Print how a file is cut into chunks. Needs neither Redis nor PostgreSQL."""
    from rag.chunking import ChunkSettings, cut
    from rag.corpus import UnreadableFileError, open_content
    from rag.tokens import TokenDataError

    with failing_on(SettingsError, TokenDataError):
        settings = load(ChunkingSettings)
        how = ChunkSettings(settings.chunk_tokens, settings.chunk_overlap, settings.chat_model)
        try:
            for chunk in cut(open_content(file.resolve()).blocks(), how):
                write_json(asdict(chunk)) if json else write(_readable(chunk))
        except UnreadableFileError as error:
            raise CommandError(f"{file} {error}") from error


def _readable(chunk: Chunk) -> str:
    place = f"{chunk.start_offset}-{chunk.end_offset}, {chunk.token_count} tokens"
    return f"--- {chunk.position} · {chunk.heading or '(no heading)'} · {place}\n{chunk.text}\n\n"

"""`protostar search`: what the corpus says of a question."""

from __future__ import annotations

import asyncio
import json as json_format
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from protostar.cli.support.errors import CommandError, failing_on
from protostar.cli.support.output import note, write, write_json
from protostar.settings import CorpusSettings, SettingsError, load

if TYPE_CHECKING:
    from rag.search.retrieve import Passage

_TOP: Final = 8
_FIELDS: Final = ("chunk_id", "document", "heading", "score", "start_offset", "end_offset")


@dataclass(frozen=True, slots=True)
class _Question:
    id: Any
    text: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """Questions, and how to search for each."""

    questions: Sequence[_Question]
    top: int
    floor: bool
    documents: tuple[str, ...]


def search(
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    file: Annotated[
        Path | None, typer.Option(help='Questions in place of QUESTION, one a line: {"id", "text"}.')
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="The most passages to print.")] = _TOP,
    no_floor: Annotated[
        bool, typer.Option("--no-floor", help="Print passages even where the corpus seems not to know.")
    ] = False,
    documents: Annotated[
        list[str] | None,
        typer.Option(help="Search only the documents whose path matches this glob pattern; may be repeated."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="With --json: add the question's words that a passage shares, and how.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a question.")] = False,
) -> None:
    """Print the passages of the corpus that speak of a question, best first, and why. Asks no chat model."""
    if (question is None) == (file is None):
        raise typer.BadParameter("give either QUESTION or --file QUESTIONS.jsonl")
    if question is not None and not question.strip():
        raise typer.BadParameter("the question is empty")
    questions = _read(file) if file is not None else [_Question(None, question or "")]

    from models.database import DatabaseError
    from rag.providers import ProviderError

    with failing_on(SettingsError, DatabaseError, ProviderError):
        settings = load(CorpusSettings)
        asked = _Asked(questions, top=top, floor=not no_floor, documents=tuple(documents or ()))
        asyncio.run(_print_all(settings, asked, why=why, json=json))


def _read(file: Path) -> list[_Question]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CommandError(f"{file} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file} is not UTF-8; save it as UTF-8") from error
    return [_parse(line, f"{file} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, place: str) -> _Question:
    try:
        record = json_format.loads(line)
        question = _Question(record["id"], record["text"])
    except (ValueError, KeyError, TypeError):
        raise CommandError(f'{place} is not a question; write {{"id": ..., "text": "..."}}') from None
    if not isinstance(question.text, str):
        raise CommandError(f'{place} has a "text" that is no text')
    return question


async def _print_all(settings: CorpusSettings, asked: _Asked, *, why: bool, json: bool) -> None:
    async for question, passages, reasons, error in _answers(settings, asked):
        if error:
            note(f"searched by words alone, the question could not be embedded: {error}")
        if json:
            found = [{name: getattr(passage, name) for name in _FIELDS} for passage in passages]
            if why:
                for result, words in zip(found, reasons, strict=True):
                    result["why"] = words
            write_json({"id": question.id, "results": found} | ({"embedding_error": error} if error else {}))
        else:
            _print(question, passages, reasons, with_question=len(asked.questions) > 1, floor=asked.floor)


async def _answers(
    settings: CorpusSettings, asked: _Asked
) -> AsyncIterator[tuple[_Question, list[Passage], list[list[str]], str]]:
    """Each question with its passages, the words each was found by, and why vectors did not help, if they should."""
    from models.database import connect
    from rag.analysis.synonyms import read_synonyms
    from rag.providers.embedder import embedding
    from rag.search.document_filter import DocumentFilter
    from rag.search.explain import shared_words
    from rag.search.rerank import reranking
    from rag.search.retrieve import retrieve

    async with (
        connect(settings.database_url.get_secret_value()),
        embedding(settings) as embedder,
        reranking(settings) as reranker,
    ):
        synonyms = await asyncio.to_thread(read_synonyms, settings.corpus_dir)
        for question in asked.questions:
            passages = await retrieve(
                question.text,
                top_k=asked.top,
                floor=asked.floor,
                embedder=embedder,
                reranker=reranker,
                documents=DocumentFilter.of(asked.documents),
                synonyms=synonyms,
            )
            reasons = [shared_words(question.text, passage, synonyms) for passage in passages]
            yield question, passages, reasons, embedder.question_error if embedder else ""


def _print(
    question: _Question,
    passages: Sequence[Passage],
    reasons: Sequence[Sequence[str]],
    *,
    with_question: bool,
    floor: bool,
) -> None:
    if with_question:
        write(f"# {question.text}\n\n")
    for number, (passage, shared) in enumerate(zip(passages, reasons, strict=True), start=1):
        place = " > ".join(filter(None, (passage.document, passage.heading)))
        words = ", ".join(shared) or "its document's title, or nearness in meaning"
        write(f"{number}. {place} ({passage.score:.2f})\nfound by: {words}\n{passage.text}\n\n")
    if not passages:
        nearest = "--no-floor prints what comes nearest, " if floor else ""
        note(f"nothing found; {nearest}protostar reindex indexes the corpus folder")

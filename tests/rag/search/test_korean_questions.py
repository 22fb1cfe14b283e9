"""A question finds its page however it is written: question words inside of nouns, decomposed text, identifiers."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.retrieve import retrieve

DATA = Path(__file__).parents[2] / "data"
PAGES: list[dict[str, Any]] = [
    json.loads(line)
    for name in ("korean_questions.jsonl", "identifiers.jsonl", "more_questions.jsonl")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines()
]
QUESTIONS = [(page["document"], question) for page in PAGES for question in page["questions"]]


@pytest.fixture
async def pages(database_url: str, tmp_path: Path) -> AsyncIterator[None]:
    for page in PAGES:
        (tmp_path / page["document"]).write_text(page["text"], encoding="utf-8")
    async with connect(database_url):
        await reindex(tmp_path, settings=ChunkSettings(400, 60, "gpt-4o"))
        yield


@pytest.mark.parametrize("form", ["NFC", "NFD"])
async def test_every_question_finds_its_page_first(pages: None, form: Any) -> None:
    found = {
        question: [passage.document for passage in await retrieve(unicodedata.normalize(form, question))][:1]
        for _, question in QUESTIONS
    }
    assert {
        question: documents for document, question in QUESTIONS if (documents := found[question]) != [document]
    } == {}

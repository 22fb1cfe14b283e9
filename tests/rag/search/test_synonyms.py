"""Synonyms of a corpus, from its file."""

from __future__ import annotations

from pathlib import Path

from models.database import connect
from rag.analysis.synonyms import FILE_NAME, SynonymsFile
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.retrieve import retrieve


async def test_a_word_finds_the_page_of_its_synonym_as_soon_as_the_file_names_it(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# 반품\n\n반품은 이레 안에 한다.\n")
    (tmp_path / "b.md").write_text("# 배송\n\n배송은 이틀 걸린다.\n")
    file = SynonymsFile(tmp_path)
    async with connect(database_url):
        await reindex(tmp_path, settings=ChunkSettings(400, 60, "gpt-4o"))
        assert await retrieve("환불은 어떻게 하나요?", synonyms=await file.current()) == []
        (tmp_path / FILE_NAME).write_text("# 말\n환불, 반품, refund\n")
        for question in ("환불은 어떻게 하나요?", "refund?"):
            found = await retrieve(question, synonyms=await file.current())
            assert [passage.document for passage in found] == ["a.md"]
        (tmp_path / FILE_NAME).unlink()
        assert await retrieve("환불은 어떻게 하나요?", synonyms=await file.current()) == []

"""Korean morphemes as terms of the index, by the extra `kiwi`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tortoise import Tortoise

from models.database import connect
from rag.analysis import morphemes as analyser
from rag.analysis.morphemes import MissingAnalyserError, morphemes
from rag.corpus.chunk import ChunkSettings
from rag.index.generations import Generation, fingerprint
from rag.index.reindex import reindex
from rag.index.shared_runs import Plan
from rag.search.query import Question
from rag.search.retrieve import retrieve

PLAIN = ChunkSettings(400, 60, "gpt-4o")
WITH_MORPHEMES = replace(PLAIN, morphemes=True)
TEXTS = {
    "refund.md": "# 환불\n\n환불을 받을 때까지 사흘 걸린다.\n",
    "walk.md": "# 산책\n\n저녁마다 강가를 따라 걷는다.\n",
    "hang.md": "# 그림\n\n벽에 그림을 거는 방법을 적는다.\n",
}


@pytest.fixture
async def corpus(database_url: str, tmp_path: Path) -> AsyncIterator[Path]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    async with connect(database_url):
        yield tmp_path


async def documents(question: str) -> list[str]:
    return [passage.document for passage in await retrieve(question, floor=False)]


async def morphemes_in_the_index() -> int:
    rows = await Tortoise.get_connection("default").execute_query_dict(
        "SELECT count(*) FROM postings JOIN segments ON segments.id = segment_id JOIN generations"
        " ON generations.id = generation_id WHERE is_current AND term LIKE '/%'"
    )
    return int(rows[0]["count"])


def test_a_word_is_the_same_whatever_its_ending() -> None:
    assert set(morphemes("걸려요")) == set(morphemes("걸리면")) == {"/걸리"}
    assert set(morphemes("환불을")) == set(morphemes("환불까지는")) == {"/환불"}
    assert morphemes("the worker ...") == []


async def test_a_verb_is_found_in_another_form(corpus: Path) -> None:
    await reindex(corpus, settings=PLAIN)
    assert await documents("걸어") == []
    assert await morphemes_in_the_index() == 0
    await reindex(corpus, settings=WITH_MORPHEMES)
    assert await morphemes_in_the_index() > 0
    assert await documents("걸어") == ["walk.md"]
    await reindex(corpus, settings=PLAIN)
    assert await morphemes_in_the_index() == 0
    assert await documents("걸어") == []


async def test_the_index_says_whether_it_has_them(corpus: Path) -> None:
    # A term that the corpus lacks weighs most: were they asked for in vain, nothing would be found.
    await reindex(corpus, settings=PLAIN)
    assert await retrieve("환불을 받을 때까지")
    await reindex(corpus, settings=WITH_MORPHEMES)
    assert (await retrieve("환불을 받을 때까지"))[0].document == "refund.md"


async def test_a_process_without_the_analyser_searches_by_the_other_terms(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await reindex(corpus, settings=WITH_MORPHEMES)
    plan = Plan(Generation(1, is_current=True), WITH_MORPHEMES, 0).dump()
    assert Plan.load(plan) is not None
    analyser._analyser.cache_clear()
    monkeypatch.setitem(sys.modules, "kiwipiepy", None)
    assert await documents("환불을 받을 때") == ["refund.md"]
    assert "morphemes_not_searched" in caplog.text
    assert Plan.load(plan) is None
    with pytest.raises(MissingAnalyserError, match="install the extra"):
        await reindex(corpus, settings=WITH_MORPHEMES)
    assert await documents("환불을 받을 때") == ["refund.md"]


def test_the_session_lends_morphemes_too() -> None:
    lent = Question("그건 왜?", ["환불은 어떻게 받나요?"]).query(with_morphemes=True)
    assert (
        0 < lent.morphemes["/환불"] <= Question("환불은 어떻게 받나요?").query(with_morphemes=True).morphemes["/환불"]
    )
    assert Question("환불은 어떻게 받나요?").query().morphemes == {}


def test_settings_without_them_are_what_workers_of_before_know() -> None:
    assert "morphemes" not in Plan(Generation(1, is_current=True), PLAIN, 0).dump()
    assert "morphemes" not in fingerprint(PLAIN)
    assert fingerprint(WITH_MORPHEMES) != fingerprint(PLAIN)


def test_nothing_loads_the_analyser_that_does_not_use_it() -> None:
    modules = "rag.search.retrieve, rag.index.preparer, rag.index.reindex"
    code = f"import sys, {modules}; sys.exit('kiwipiepy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])

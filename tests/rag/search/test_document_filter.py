"""A filter of documents: what its patterns match, and that a page outside of it influences nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.document_filter import DocumentFilter
from rag.search.retrieve import Passage, retrieve

SETTINGS = ChunkSettings(400, 60, "gpt-4o")
PAGES = {
    "hr/leave.md": "# 휴가\n\n연차 휴가는 입사일에 열다섯 날이 생긴다.\n",
    "hr/pay/salary.md": "# 급여\n\n급여는 매달 스무닷새에 지급한다.\n",
    "legal/leave.md": "# 휴가 소송\n\n연차 휴가 소송은 삼 년 안에 낸다. 연차 휴가 수당을 다툰다.\n",
    "legal/contract.md": "# 계약\n\n계약서는 두 부를 만든다.\n",
    "top.md": "# 안내\n\n연차 휴가와 급여 안내.\n",
}


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("hr/leave.md", "hr/leave.md", True),
        ("hr/leave.md", "hr/leave.mdx", False),
        ("hr/*", "hr/leave.md", True),
        ("hr/*", "hr/pay/salary.md", False),
        ("hr/**", "hr/pay/salary.md", True),
        ("hr/", "hr/pay/salary.md", True),
        ("hr/", "hrx/a.md", False),
        ("**/leave.md", "leave.md", True),
        ("**/leave.md", "a/b/leave.md", True),
        ("hr/**/salary.md", "hr/salary.md", True),
        ("hr/**/salary.md", "hr/a/b/salary.md", True),
        ("hr/**/salary.md", "legal/a/salary.md", False),
        ("*.md", "top.md", True),
        ("*.md", "hr/leave.md", False),
        ("h?/l[ea]*.md", "hr/leave.md", True),
        ("HR/*", "hr/leave.md", False),
        ("**", "hr/pay/salary.md", True),
        ("", "hr/leave.md", False),
        ("가\u1100\u1161/*", "가가/a.md", True),
    ],
)
def test_a_pattern_matches_inside_of_names_and_over_folders(pattern: str, path: str, is_match: bool) -> None:
    assert DocumentFilter.of([pattern]).allows(path) == is_match
    assert DocumentFilter.of([pattern]).choose([path]) == ([0] if is_match else [])


def test_documents_are_chosen_among_sorted_paths() -> None:
    assert DocumentFilter.of(["hr/**", "top.md"]).choose(sorted(PAGES)) == [0, 1, 4]


def test_every_group_must_hold() -> None:
    wanted = DocumentFilter.of(["hr/**", "legal/*"], [], ["**/leave.md"])
    assert [path for path in PAGES if wanted.allows(path)] == ["hr/leave.md", "legal/leave.md"]
    assert not DocumentFilter.of([], [])


def test_patterns_take_time_in_proportion_to_a_path() -> None:
    wanted = DocumentFilter.of(["*a" * 140 + "b", "**/a" * 70 + "/b"])
    assert not wanted.allows("a" * 4000)
    assert not wanted.allows("a/" * 2000 + "a")


@pytest.fixture
async def index(database_url: str, tmp_path: Path) -> AsyncIterator[Path]:
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        yield tmp_path


async def ask(question: str, *patterns: str, floor: bool = True) -> list[Passage]:
    return await retrieve(question, documents=DocumentFilter.of(patterns), floor=floor)


async def test_only_matching_documents_are_found(index: Path) -> None:
    assert {passage.document for passage in await ask("연차 휴가는 며칠인가요?", floor=False)} >= {
        "hr/leave.md",
        "legal/leave.md",
    }
    assert {passage.document for passage in await ask("연차 휴가는 며칠인가요?", "hr/**", floor=False)} == {
        "hr/leave.md"
    }


async def test_patterns_that_match_nothing_give_no_passages(index: Path) -> None:
    assert await ask("연차 휴가는 며칠인가요?", "nothing/**", floor=False) == []


async def test_the_floor_knows_only_the_documents_of_the_filter(index: Path) -> None:
    assert await ask("계약서는 몇 부 만드나요?")
    assert await ask("계약서는 몇 부 만드나요?", "hr/**") == []


async def test_scores_are_those_of_a_corpus_without_the_other_documents(index: Path) -> None:
    filtered = [(passage.document, passage.score) for passage in await ask("연차 휴가와 급여", "hr/**")]
    for name in PAGES:
        if not name.startswith("hr/"):
            (index / name).unlink()
    (index / "legal").rmdir()
    await reindex(index, settings=SETTINGS, full=True)
    alone = [(passage.document, passage.score) for passage in await ask("연차 휴가와 급여")]
    assert filtered == alone
    assert filtered


async def test_a_page_that_comes_later_is_found_by_the_same_filter(index: Path) -> None:
    assert await ask("재택 근무 장비", "hr/**") == []
    (index / "hr" / "remote.md").write_text("# 재택 근무\n\n재택 근무 장비는 총무팀이 보낸다.\n")
    await reindex(index, settings=SETTINGS)
    assert [passage.document for passage in await ask("재택 근무 장비", "hr/**")] == ["hr/remote.md"]
    assert await ask("재택 근무 장비", "legal/**") == []

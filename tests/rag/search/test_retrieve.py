"""Retrieval over the sample corpus and over small ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.database import connect
from rag.analysis.loan_words import HANGUL_SOUND, LATIN_SOUND
from rag.analysis.terms import terms
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex
from rag.search.retrieve import retrieve

SAMPLE = Path(__file__).parents[3] / "corpus"
SETTINGS = ChunkSettings(400, 60, "gpt-4o")
ABOUT_THE_SAMPLE = [
    "작업이 두 번 실행되지 않게 하려면?",
    "큐가 뭐야?",
    "SKIP LOCKED는 왜 쓰나요?",
    "what does max_jobs do?",
    "How does a worker recover after kill -9?",
    "한국어 검색은 어떻게 되나요?",
    "토큰 수는 어떻게 세나요",
    "BM25가 무엇인가요?",
    "스트리밍 답변이 끊기면?",
    "How are chunks overlapped?",
    "idempotency key",
    "Redis 스트림과 Pub/Sub의 차이는?",
]
ABOUT_SOMETHING_ELSE = [
    "How do I bake sourdough?",
    "김치찌개 맛있게 끓이는 법 알려줘",
    "What is the capital of France?",
    "비트코인 가격 전망은?",
    "파이썬으로 피보나치 수열 짜줘",
    "부산 여행 코스 추천해줘",
    "Tell me a joke about cats",
    "대한민국 대통령은 누구야?",
    "How many calories are in an apple?",
    "주말에 볼 만한 영화 추천",
    "안녕",
    "",
    "?!",
]


@pytest.fixture
async def sample(database_url: str) -> AsyncIterator[None]:
    async with connect(database_url):
        await reindex(SAMPLE, settings=SETTINGS)
        yield


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("작업 큐는", ["작업", "큐는", "큐"]),
        ("Retrying jobs", ["retri", "job"]),
        ("max_jobs", ["max_jobs", "job", "max"]),
        ("XREADGROUP을", ["xreadgroup"]),
        ("SKIP LOCKED", ["skip", "lock"]),
        ("ＦＵＬＬ width", ["full", "width"]),
        ("WorkerSettings", ["workersettings", "set", "worker"]),
        ("漢字です", ["漢字", "字で", "です"]),
        ("1.2", ["1.2", "1", "2"]),
        ("the of and", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert sorted(term for term in terms(text) if term[0] not in (HANGUL_SOUND, LATIN_SOUND)) == sorted(expected)


@pytest.mark.parametrize("question", ABOUT_THE_SAMPLE)
async def test_a_question_about_the_corpus_finds_passages(sample: None, question: str) -> None:
    passages = await retrieve(question)
    assert passages
    assert [passage.score for passage in passages] == sorted((p.score for p in passages), reverse=True)


@pytest.mark.parametrize("question", ABOUT_SOMETHING_ELSE)
async def test_a_question_about_something_else_finds_none(sample: None, question: str) -> None:
    assert await retrieve(question) == []


async def test_without_the_floor_whatever_shares_a_term_is_found(sample: None) -> None:
    assert await retrieve("How many workers are in an apple?", floor=False)


async def test_one_word_of_many_is_no_evidence(database_url: str, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.md").write_text(f"# Note {number}\n\nSome text of topic{number}.\n")
    (tmp_path / "a.md").write_text("# Queues\n\nThe worker reads the oldest job and keeps a lease.\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        assert await retrieve("oldest volcano explained") == []
        assert await retrieve("oldest job explained")
        assert await retrieve("volcano lease")


async def test_in_korean_a_chunk_that_holds_more_of_the_question_stands_first(
    database_url: str, tmp_path: Path
) -> None:
    # BM25 alone prefers the one that says a part of the question over and over.
    texts = {
        "part": "임대 " * 10,
        "all": "오래 걸리는 일이라도 임대 시간이 지나기 전에 갱신 요청이 나간다.",
        "other": "갱신 " * 10,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.md").write_text(f"{text}\n")
    for number in range(20):
        (tmp_path / f"{number}.md").write_text("다른 글에는 다른 말만 있고 여기서도 그렇다.\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        assert (await retrieve("임대 갱신", floor=False))[0].document == "all.md"


async def test_a_follow_up_question_uses_the_session(sample: None) -> None:
    history = ["SKIP LOCKED는 어떻게 쓰나요?"]
    assert await retrieve("그건 왜?") == []
    passages = await retrieve("그건 왜?", history=history)
    assert passages[0].document == "postgresql/skip-locked.md"


async def test_a_session_about_something_else_hides_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 전달 보장\n\n임대 시간은 15초이다.\n\n## 재시도\n\n오류는 다시 시도한다.\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        session = ["워커가 죽으면 작업은 몇 초 안에 이어받나요?", "그리고 답변의 요약은 누가 언제 쓰나요?"]
        [passage, *_] = await retrieve("재시도는 어떻게 하나요?", history=session)
        assert passage.heading.endswith("재시도")


async def test_a_question_that_says_enough_does_not_use_the_session(sample: None) -> None:
    question = "How does a worker recover after kill -9?"
    assert await retrieve(question, history=["한국어 검색은?"]) == await retrieve(question)


async def test_passages_that_say_the_same_are_given_once(database_url: str, tmp_path: Path) -> None:
    text = "# 임대\n\n임대가 만료되면 다른 워커가 작업을 넘겨받아 처음부터 다시 실행한다.\n"
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text(text.replace("처음부터", "처음부터 모두"))
    (tmp_path / "c.md").write_text("# 다른 글\n\n임대와 상관없는 내용도 조금 있다.\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        assert sorted(passage.document for passage in await retrieve("임대가 만료되면?", floor=False)) in (
            ["a.md", "c.md"],
            ["b.md", "c.md"],
        )


async def test_a_passage_is_the_files_text_at_its_offsets(sample: None) -> None:
    for passage in await retrieve("재시도는 몇 번까지 하나요?"):
        text = (SAMPLE / passage.document).read_bytes().decode()
        assert passage.text == text[passage.start_offset : passage.end_offset]


async def test_a_term_of_the_heading_alone_finds_the_chunk(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: Zebra\n---\n\n# Manual\n\n## Xylophone\n\nplain body\n")
    async with connect(database_url):
        await reindex(tmp_path, settings=SETTINGS)
        assert [passage.heading for passage in await retrieve("xylophone")] == ["Zebra > Manual > Xylophone"]
        assert len(await retrieve("zebra")) == 1

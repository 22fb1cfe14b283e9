"""What a chunk guarantees, over hostile and over ordinary Markdown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.corpus.chunk import Chunk, ChunkSettings, cut
from rag.corpus.graphemes import is_boundary
from rag.corpus.markdown import read_front_matter
from rag.corpus.tokens import TokenCounter

ROOT = Path(__file__).resolve().parents[3]
MODEL = "gpt-4o"
COUNTER = TokenCounter(MODEL)

WORDS = st.sampled_from(
    [
        "큐는",
        "작업을",
        "워커에게",
        "넘긴다.",
        "재시도는",
        "세",
        "번까지",
        "합니다.",
        "청크는",
        "토큰으로",
        "잰다。",
        "queue",
        "worker",
        "retries",
        "the",
        "job.",
        "max_jobs=100",
        "XREADGROUP",
        "e.g.",
        "3.14",
        "漢字です。",
        "👩\u200d👩\u200d👧",
        "🇰🇷🇺🇸",
        "é각",
        "<|endoftext|>",
        "*",
        "-",
        ">",
        "[링크](http://x.y)",
        "$$",
        "\\",
    ]
)
LINES = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)
PARAGRAPHS = st.lists(LINES, min_size=1, max_size=4).map("\n".join)
HEADINGS = st.builds("{} {}".format, st.sampled_from(["#", "##", "###"]), LINES.map(lambda line: line[:60]))
FENCES = st.builds(
    lambda mark, body: f"{mark}python\n{body}\n{mark}",
    st.sampled_from(["```", "~~~~"]),
    st.lists(st.sampled_from(["def f(x):", "    return x + 1", "", "# no heading", "값 = 1"]), max_size=40).map(
        "\n".join
    ),
)
TABLES = st.lists(WORDS, min_size=1, max_size=30).map(
    lambda cells: "| 이름 | value |\n|---|:-:|\n" + "\n".join(f"| {cell} | {cell} |" for cell in cells)
)
RUNS = st.builds(
    lambda unit, count: unit * count,
    st.sampled_from(["가", "a", "👨‍👩‍👧‍👦", "ab가", "-", "e\u0301"]),
    st.integers(1, 700),
)
SPACES = st.sampled_from(["\n\n", "\n", "\n\n\n", "\n \t\n", "   "])
BLOCKS = st.one_of(PARAGRAPHS, HEADINGS, FENCES, TABLES, RUNS)
DOCUMENTS = st.lists(st.tuples(BLOCKS, SPACES), max_size=12).map(lambda blocks: "".join(a + b for a, b in blocks))
TEXTS = st.one_of(
    DOCUMENTS,
    DOCUMENTS.map(lambda text: text.replace("\n", "\r\n")),
    st.text(max_size=400),
    st.text(alphabet="#`~|- \n\r:a가", max_size=400),
)
SETTINGS = st.sampled_from([(16, 0), (16, 8), (24, 6), (64, 12), (64, 32), (400, 60)])


def chunks_of(text: str, max_tokens: int, overlap: int, part: int = 1000) -> list[Chunk]:
    parts = [text[start : start + part] for start in range(0, len(text), part)]
    return list(cut(parts, ChunkSettings(max_tokens, overlap, MODEL)))


@settings(max_examples=100, deadline=None)
@given(TEXTS, SETTINGS)
def test_chunks_hold_every_character_of_the_body_within_the_cap(text: str, sizes: tuple[int, int]) -> None:
    chunks = chunks_of(text, *sizes)
    _, body_start, _ = read_front_matter([text])
    covered = bytearray(len(text))
    for position, chunk in enumerate(chunks):
        assert chunk.position == position
        assert chunk.text == text[chunk.start_offset : chunk.end_offset]
        assert chunk.text.strip() == chunk.text != ""
        assert chunk.token_count == COUNTER.count(chunk.text) <= sizes[0]
        covered[chunk.start_offset : chunk.end_offset] = b"\1" * len(chunk.text)
    missing = [i for i in range(body_start, len(text)) if not covered[i] and not text[i].isspace()]
    assert missing == []
    assert all(chunk.start_offset >= body_start for chunk in chunks)


@settings(max_examples=100, deadline=None)
@given(TEXTS, SETTINGS)
def test_neighbours_never_share_more_than_twice_the_overlap(text: str, sizes: tuple[int, int]) -> None:
    chunks = chunks_of(text, *sizes)
    for before, after in pairwise(chunks):
        assert before.start_offset <= after.start_offset
        assert before.end_offset < after.end_offset
        shared = text[after.start_offset : before.end_offset]
        assert COUNTER.count(shared) <= 2 * sizes[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(LINES, min_size=1, max_size=30).map("\n".join),
    st.sampled_from([(24, 6), (64, 12), (64, 32), (400, 60)]),
)
def test_neighbours_in_running_text_share_at_least_half_of_the_overlap(text: str, sizes: tuple[int, int]) -> None:
    chunks = chunks_of(text, *sizes)
    for before, after in pairwise(chunks):
        if before.heading == after.heading and not re.search(r"(?m)^ {0,3}(#|[-=]+\s*$)", text):
            assert COUNTER.count(text[after.start_offset : before.end_offset]) * 2 >= sizes[1]


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, SETTINGS)
def test_no_chunk_breaks_a_character(text: str, sizes: tuple[int, int]) -> None:
    for chunk in chunks_of(text, *sizes):
        assert "\ufffd" not in chunk.text
        assert is_boundary(text, chunk.start_offset)
        assert is_boundary(text, chunk.end_offset)


@settings(max_examples=40, deadline=None)
@given(TEXTS, SETTINGS, st.integers(1, 50))
def test_the_same_text_is_cut_the_same_way_however_it_arrives(text: str, sizes: tuple[int, int], part: int) -> None:
    assert chunks_of(text, *sizes) == chunks_of(text, *sizes, part=part)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PARAGRAPHS, FENCES, TABLES), min_size=1, max_size=10), st.booleans())
def test_fences_and_tables_that_fit_are_whole_in_some_chunk(blocks: list[str], headed: bool) -> None:
    text = "\n\n".join(["# 제목\n", *blocks] if headed else blocks)
    chunks = chunks_of(text, 64, 12)
    for block in blocks:
        if block.startswith(("```", "~~~", "|")) and COUNTER.count(block) <= 64:
            assert any(block in chunk.text for chunk in chunks)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HEADINGS, st.one_of(PARAGRAPHS, FENCES, TABLES)), min_size=1, max_size=8))
def test_no_chunk_ends_with_a_heading(sections: list[tuple[str, str]]) -> None:
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in sections)
    for chunk in chunks_of(text, 64, 12):
        last = chunk.text.rstrip().rsplit("\n", 1)[-1]
        assert last not in {heading for heading, _ in sections} or last in {body for _, body in sections}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PARAGRAPHS, FENCES, TABLES), min_size=2, max_size=8), st.sampled_from([(64, 12), (64, 32)]))
def test_neighbours_share_at_least_half_of_the_overlap_where_the_next_block_leaves_room(
    blocks: list[str], sizes: tuple[int, int]
) -> None:
    blocks = [block for block in blocks if not re.search(r"(?m)^ {0,3}(#|[-=]+\s*$)", block)]
    text = "\n\n".join(blocks)
    longest = max((COUNTER.count(block) for block in blocks if block.startswith(("```", "~~~", "|"))), default=0)
    chunks = chunks_of(text, *sizes)
    for before, after in pairwise(chunks):
        if longest + sizes[1] <= sizes[0]:
            assert COUNTER.count(text[after.start_offset : before.end_offset]) * 2 >= sizes[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), PARAGRAPHS), min_size=1, max_size=8))
def test_every_chunk_knows_the_headings_it_stands_under(sections: list[tuple[int, str]]) -> None:
    text = ""
    paths: list[tuple[int, str]] = []
    path: list[tuple[int, str]] = []
    for number, (level, body) in enumerate(sections):
        path = [(above, title) for above, title in path if above < level] + [(level, f"제목 {number}")]
        paths.append((len(text), " > ".join(title for _, title in path)))
        text += f"{'#' * level} 제목 {number}\n\n" + re.sub(r"(?m)^ {0,3}([#=-])", r"x\1", body) + "\n\n"
    for chunk in chunks_of(text, 64, 12):
        assert chunk.heading == [heading for start, heading in paths if start < chunk.end_offset][-1]


def test_every_process_cuts_a_text_the_same_way() -> None:
    script = (
        "import sys; from rag.corpus.chunk import ChunkSettings, cut; "
        "print(list(cut([sys.stdin.read()], ChunkSettings(64, 12, 'gpt-4o'))))"
    )
    text = "".join(path.read_text() for path in sorted((ROOT / "corpus" / "retrieval").glob("*.md")))
    cuts = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "random")
    }
    assert cuts == {f"{chunks_of(text, 64, 12)}\n"}


def test_a_heading_that_nearly_fills_a_chunk_keeps_the_beginning_of_its_text() -> None:
    heading = "# " + "큐는 " * 18 + "큐는"
    first, *_ = chunks_of(f"{heading}\n\n큐는 큐는 큐는 큐는 큐는\n", 64, 12)
    assert first.text.startswith(f"{heading}\n\n큐는")


def test_emoji_without_spaces_are_cut_between_them() -> None:
    family = "👨\u200d👩\u200d👧\u200d👦"
    assert [chunk.text for chunk in chunks_of(f"가\n\n{family * 2}\n", 16, 0)] == ["가", family, family]


def test_heading_is_the_path_and_front_matter_is_metadata() -> None:
    text = '---\ntitle: "큐 안내"\ndate: 2025-01-02\ntags: [redis, 큐]\n---\n\n# 시작\n\n본문.\n\n## 재시도\n\n세 번.\n'
    file = cut([text], ChunkSettings(64, 12, MODEL))
    assert [(chunk.heading, chunk.text) for chunk in file] == [
        ("큐 안내 > 시작", "# 시작\n\n본문."),
        ("큐 안내 > 시작 > 재시도", "## 재시도\n\n세 번."),
    ]
    assert (file.metadata.title, file.metadata.date, file.metadata.tags) == (
        "큐 안내",
        "2025-01-02",
        ["redis", "큐"],
    )


def test_a_decomposed_text_keeps_its_characters_and_its_headings_are_composed() -> None:
    text = unicodedata.normalize("NFD", "---\ntitle: 큐\n---\n# 작업 큐\n\n재시도는 세 번까지 한다.\n")
    file = cut([text], ChunkSettings(400, 60, MODEL))
    [chunk] = file
    assert chunk.text == text[chunk.start_offset : chunk.end_offset]
    assert (file.metadata.title, chunk.heading) == ("큐", "큐 > 작업 큐")


def test_a_rule_at_the_beginning_is_no_front_matter() -> None:
    text = "---\nThis is a paragraph, not metadata.\n\n---\n\nMore.\n"
    assert "".join(chunk.text for chunk in chunks_of(text, 64, 0)).count("paragraph") == 1


def test_a_heading_without_a_body_goes_with_the_next_section() -> None:
    chunks = chunks_of("# Guide\n\n## Install\n\nRun it.\n", 64, 12)
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("Guide > Install", "# Guide\n\n## Install\n\nRun it.")
    ]


def test_hash_signs_in_a_fence_are_no_headings() -> None:
    chunks = chunks_of("# A\n\n```sh\n# not a heading\n```\n\nText\n====\n\nmore\n", 64, 12)
    assert [chunk.heading for chunk in chunks] == ["A", "Text"]


def test_korean_sentences_are_kept_whole() -> None:
    text = " ".join(f"{number}번째 작업은 큐에서 순서대로 처리됩니다." for number in range(200))
    chunks = chunks_of(text, 64, 12)
    assert all(chunk.text.endswith("처리됩니다.") for chunk in chunks)


@pytest.mark.parametrize("sizes", [(8, 0), (64, 33), (64, -1)])
def test_impossible_settings_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        ChunkSettings(*sizes, MODEL)

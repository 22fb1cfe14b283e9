"""Passages have at least half of the room, and the best one is cut around its best match where none fits whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protostar.settings import SHIPPED_PROMPTS_DIR
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import FORMAT_TOKENS, PASSAGES_SHARE, Prompt, Turn, build_prompt
from rag.prompt.excerpt import excerpt
from rag.prompt.modes import GENERAL, load_prompts
from rag.prompt.parts import PassagePart, note_after_persona, passage_block
from rag.prompt.tags import PromptTags
from rag.prompt.token_memo import TokenMemo
from rag.prompt.token_ratio import CorrectedCount

CODE = "0123abcd"
TAGS = PromptTags(CODE)
COUNT = CorrectedCount(TokenMemo(TokenCounter("gpt-4o")).count, 1.26)
BEFORE = "# 운영\n\n"
SENTENCES = [f"{name} 노드는 {number}번 선반에 놓인다." for number, name in enumerate(["첫째", "둘째", "셋째"] * 20)]
ANSWER = "임대는 15초 뒤에 만료되고 다른 워커가 작업을 이어받는다."
FILE = BEFORE + " ".join([*SENTENCES[:30], ANSWER, *SENTENCES[30:]]) + "\n"
QUESTION = "임대가 만료되면 누가 작업을 이어받나요?"


@dataclass(frozen=True)
class Chunk:
    document: str
    heading: str
    text: str
    start_offset: int
    end_offset: int
    chunk_id: int = 1


def chunk(text: str, start: int = 0) -> Chunk:
    return Chunk("leases.md", "운영", text, start, start + len(text))


LONG = chunk(FILE[len(BEFORE) :].rstrip(), len(BEFORE))


@pytest.mark.parametrize("room", [30, 60, 150, 400, 900])
def test_a_passage_is_cut_at_sentences_around_its_best_match(room: int) -> None:
    cut = excerpt(LONG, QUESTION, room, COUNT)
    assert cut is not None
    assert ANSWER in cut.text
    assert cut.text.startswith((*tuple(f"{name} 노드는" for name in ("첫째", "둘째", "셋째")), "임대는"))
    assert cut.text.endswith(("놓인다.", "이어받는다."))
    assert COUNT(cut.text) <= room
    assert FILE[cut.start_offset : cut.end_offset] == cut.text


def test_a_cut_uses_its_room() -> None:
    cut = excerpt(LONG, QUESTION, 400, COUNT)
    assert cut is not None
    assert COUNT(cut.text) > 350


def test_a_sentence_that_is_too_long_is_cut_itself() -> None:
    for text in ("임대 " * 3_000, "임대" * 3_000, "👩‍👩‍👧‍👦" * 500):
        cut = excerpt(chunk(text, 7), QUESTION, 50, COUNT)
        assert cut is not None
        assert 0 < COUNT(cut.text) <= 50
        assert text[cut.start_offset - 7 : cut.end_offset - 7] == cut.text


@settings(deadline=None)
@given(st.text(st.sampled_from("임대가만료. \n!?`12"), max_size=600) | st.text(max_size=200), st.integers(-5, 300))
def test_any_cut_fits_and_has_its_offsets(text: str, room: int) -> None:
    cut = excerpt(chunk(text, 100), QUESTION, room, len)
    if cut is None:
        return
    assert len(cut.text) <= room
    assert text[cut.start_offset - 100 : cut.end_offset - 100] == cut.text
    assert cut.text == cut.text.strip() != ""


def prompt_of(**changes: object) -> Prompt[Chunk]:
    arguments: dict[str, object] = {"context_window": 2_000, "max_output_tokens": 100, "count": len, "tag_code": CODE}
    return build_prompt("persona", "question?", **(arguments | changes))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    turns=st.lists(
        st.builds(Turn, st.just("q " * 20), st.just("a " * 40), st.none() | st.just("s " * 20)), max_size=40
    ),
    summary=st.integers(0, 3_000).map("요약이다. ".__mul__),
    page=st.integers(0, 6_000).map("쪽의 문장이다. ".__mul__),
    window=st.integers(3_000, 30_000),
    size=st.integers(1, 12),
)
def test_passages_have_at_least_half_of_the_room(
    turns: list[Turn], summary: str, page: str, window: int, size: int
) -> None:
    passages = [chunk(f"{number}번 문장이다. " * size) for number in range(400)]
    prompt = prompt_of(
        history=turns, session_summary=summary, page_context=page, passages=passages, context_window=window
    )
    room = window - 100 - len("persona" + note_after_persona(TAGS)) - len("question?") - FORMAT_TOKENS
    sizes = [len(passage_block(TAGS, PassagePart(p.document, p.heading, p.text))) for p in prompt.passages]
    assert sum(sizes) >= room * PASSAGES_SHARE - max(sizes) - 1
    assert prompt.token_count <= window - 100


def test_the_best_passage_is_cut_even_where_a_smaller_one_fits_whole() -> None:
    prompt = build_prompt(
        "persona",
        QUESTION,
        passages=[LONG, chunk("다른 이야기다. " * 3)],
        context_window=1_000,
        max_output_tokens=400,
        count=COUNT,
        tag_code=CODE,
    )
    assert ANSWER in prompt.passages[0].text
    assert len(prompt.passages[0].text) > 300


def test_a_page_that_fits_beside_few_passages_is_whole() -> None:
    page = "A sentence. " * 50
    prompt = prompt_of(page_context=page, passages=[chunk("A short passage. " * 3)], context_window=4_000)
    assert not prompt.page_is_cut
    assert len(prompt.passages) == 1


@pytest.mark.parametrize("max_output_tokens", [300, 700])
def test_each_prompt_of_a_long_session_in_a_small_window_holds_a_passage(max_output_tokens: int) -> None:
    persona = load_prompts(SHIPPED_PROMPTS_DIR).persona(GENERAL)
    turns = [Turn(f"{QUESTION} {number}", ANSWER * 20, ANSWER * 2) for number in range(16)]
    for length in range(16):
        prompt = build_prompt(
            persona,
            QUESTION,
            history=turns[:length],
            session_summary=ANSWER * 30,
            passages=[LONG] * 8,
            context_window=1_700,
            max_output_tokens=max_output_tokens,
            count=COUNT,
        )
        assert [ANSWER in passage.text for passage in prompt.passages] == [True]
        assert prompt.token_count <= 1_700 - max_output_tokens
        assert prompt.messages[0]["content"].startswith(persona)
        assert prompt.messages[-1]["content"].endswith(QUESTION)

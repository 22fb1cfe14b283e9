"""Sentences, summaries and their numbers, in Korean and in English."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.prompt.numbers import unsupported_numbers
from rag.prompt.sentences import cut_to_tokens, sentence_ends, split_sentences
from rag.prompt.summary import (
    MAX_CHARACTERS,
    MAX_SENTENCES,
    build_summary_prompt,
    short_enough,
    to_session_summary,
    to_summary,
    to_supported_summary,
    what_is_wrong,
)

messy = st.text(st.sampled_from("가다요. \n!?。…`\"'()*#-1a,|~"), max_size=200) | st.text(max_size=100)


@pytest.mark.parametrize(
    "sentences",
    [
        ["임대는 15초다.", "소유자가 사라지면 다시 시작해요.", "그렇습니까?", "네!"],
        ["The lease is 15 s.", "It is renewed by a thread.", "Is that all?", "Yes!"],
        ["중앙값은 3.5 ms다.", "ARQ 0.28.0을 쓴다."],
        ["Redis 7.0.15 took 2.4 ms at p50.", "That is 3.5 times less."],
        ["설정은 arq_settings.py에 있다.", "다른 파일은 settings.py 하나뿐이다."],
        [
            "Start it with arq_settings.py as usual.",
            "Nothing else is needed, e.g. no broker, i.e. only Redis.",
        ],
        ["It was Dr. Kim vs. the queue.", "He said no.", "See No. 5 and Fig. 2."],
        ["U.S. servers are used, etc. and so on.", "They start at 9 a.m. every day."],
        ['그는 "끝났다."라고 말했다.', "**정말이다.**", "(확인했다.)"],
        ["`await x. y` 는 코드다.", "Run `a. b. c` now."],
        ["正しい。", "次です。"],
        ["큐에 넣는다.", "꺼낸다.", "끝난 뒤에 지운다"],
        ["1. 첫째 항목이다.", "둘째 문장이다."],
        ["Wait... what is this?", "잠깐만…", "아니다."],
    ],
)
def test_sentences_are_told_apart(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


def test_korean_sentences_without_a_space_between_them_are_told_apart() -> None:
    assert split_sentences("큐에 넣었다.그리고 꺼냈다.") == ["큐에 넣었다.", "그리고 꺼냈다."]


@settings(deadline=None)
@given(messy)
def test_sentence_ends_rise_and_cover_the_text(text: str) -> None:
    ends = list(sentence_ends(text))
    assert ends == sorted(set(ends))
    assert not text[ends[-1] if ends else 0 :].strip()


@settings(deadline=None)
@given(messy, st.integers(0, 250))
def test_a_cut_text_is_a_start_that_fits(text: str, room: int) -> None:
    cut = cut_to_tokens(text, room, len)
    assert text.startswith(cut)
    assert len(cut) <= room
    if len(text) <= room:
        assert cut == text.rstrip()


@pytest.mark.parametrize(
    ("answer", "short"),
    [
        ("임대는 15초다. 3.5 ms마다 갱신하지는 않는다. arq_settings.py를 보라.", True),
        ("One. Two. Three.", True),
        ("One line,\nwrapped. Two.", True),
        ("One. Two. Three. Four.", False),
        ("하나다. 둘이다. 셋이다. 넷이다.", False),
        ("첫 문단이다.\n\n둘째 문단이다.", False),
        ("- 하나\n- 둘", False),
        ("```sh\nls\n```", False),
        ("| a | b |\n|---|---|", False),
        ("가" * (MAX_CHARACTERS + 1), False),
        ("", True),
    ],
)
def test_a_short_answer_is_its_own_summary(answer: str, short: bool) -> None:
    assert short_enough(answer) is short


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("One. Two is 3.5. Three.\n\nFour.", "One. Two is 3.5. Three."),
        ("하나다. 둘은 3.5다. 셋이다. 넷이다.", "하나다. 둘은 3.5다. 셋이다."),
        ("## 요약\n\n임대는 15초다.\n\n그 뒤에 넘어간다.", "임대는 15초다. 그 뒤에 넘어간다."),
        ("**요약:** 임대는 15초다.", "임대는 15초다."),
        ("Summary: It is 15 s.", "It is 15 s."),
        ("- 큐에 넣는다\n- 꺼낸다\n- 끝낸다\n- 지운다", "큐에 넣는다. 꺼낸다. 끝낸다."),
        ("1. Put it in.\n2. Take it out.", "Put it in. Take it out."),
        ("이렇게 쓴다.\n```py\nx = 1. \ny = 2\n```\n그러면 된다.", "이렇게 쓴다. 그러면 된다."),
        ("여러 줄에\n걸친 문장이다.", "여러 줄에 걸친 문장이다."),
        ("", ""),
    ],
)
def test_a_models_text_becomes_one_short_paragraph(text: str, summary: str) -> None:
    assert to_summary(text) == summary


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("잃지 않습니다. 다시 해요. 정말이에요! 넷째예요.", "잃지 않습니다. 다시 해요. 정말이에요!"),
        ("잃지 않습니다.다시 해요.정말이에요.넷째예요.", "잃지 않습니다.다시 해요.정말이에요."),
        ('그는 말했다. "끝났습니다." 정말? 네.', '그는 말했다. "끝났습니다." 정말?'),
        ("값은 3.5만원입니다. v1.2.3이에요. 15.0 ms예요. 넷째.", "값은 3.5만원입니다. v1.2.3이에요. 15.0 ms예요."),
        (
            "See https://example.com/a.b?c=1.5. Use e.g. this one, i.e. No. 5. It ends at 5 p.m. today. Fourth.",
            "See https://example.com/a.b?c=1.5. Use e.g. this one, i.e. No. 5. It ends at 5 p.m. today.",
        ),
        ("가다… 나다... 다다. 라다.", "가다… 나다... 다다."),
        ("Wait... and see. Two. Three. Four.", "Wait... and see. Two. Three."),
        ("<think>셋. 넷. 99.</think>\n하나다. 둘이다.", "하나다. 둘이다."),
        ("끝이 없는 말", "끝이 없는 말."),
        ("하나이고\n둘이고\n셋이고\n넷이고", "하나이고 둘이고 셋이고 넷이고."),
        ("一。二！三？四。", "一。二！三？"),
    ],
)
def test_of_a_nasty_text_three_sentences_are_kept_whole(text: str, summary: str) -> None:
    assert to_summary(text) == summary


def test_a_number_is_not_cut_in_two() -> None:
    assert to_summary("가" * 990 + "1234567890123") == "가" * 990 + "…"
    assert to_summary("가" * 999 + "1") == "가" * 999 + "…"


@pytest.mark.parametrize(
    ("text", "source", "said"),
    [
        ("하나다. 둘이다. 셋이다.", "", ""),
        ("15초다.", "15초", ""),
        ("하나다. 둘이다. 셋이다. 넷이다.", "", "4 sentences, and 3 are the most"),
        ("15초다. 20번이다.", "15초", "(20)"),
        ("가" * 1_001, "", "too long"),
        ("```", "", "empty"),
        (" ".join(f"{n}1" for n in range(10, 40)), "", "(101, 111, 121, 131, 141, 151, 161, 171, 181, 191)"),
        ("9" * 500, "", f"({'9' * 20})"),
    ],
)
def test_a_model_is_told_what_is_wrong_with_its_summary(text: str, source: str, said: str) -> None:
    told = what_is_wrong(text, source)
    assert said in told
    assert bool(told) is bool(said)
    assert len(told) < 500


@settings(deadline=None)
@given(messy, messy)
def test_a_supported_summary_holds_only_its_sources_numbers(text: str, source: str) -> None:
    summary = to_supported_summary(text, source)
    assert unsupported_numbers(summary, source) == []
    assert len(split_sentences(summary)) <= MAX_SENTENCES
    assert what_is_wrong(summary or "x", source) == ""


@settings(deadline=None)
@given(messy, messy, st.integers(0, 250))
def test_a_sessions_summary_fits_and_holds_only_its_sources_numbers(text: str, source: str, room: int) -> None:
    summary = to_session_summary(text, source, max_tokens=room, count=len)
    assert unsupported_numbers(summary, source) == []
    assert len(summary) <= room
    assert "\n" not in summary


def test_a_sessions_summary_is_cut_at_a_sentence_end() -> None:
    text = "- 사용자는 하늘색을 바란다.\n- 값은 3만원이다.\n- 넷째는 99다. 끝이다."
    assert to_session_summary(text, "30,000원", max_tokens=1_000, count=len) == (
        "사용자는 하늘색을 바란다. 값은 3만원이다. 끝이다."
    )
    assert to_session_summary(text, "30,000원", max_tokens=27, count=len) == "사용자는 하늘색을 바란다. 값은 3만원이다."


def test_a_sentence_without_an_end_is_cut_at_a_word() -> None:
    summary = to_summary("말이 " * 1_000)
    assert len(summary) <= MAX_CHARACTERS
    assert summary.endswith("말이…")


@settings(deadline=None)
@given(messy)
def test_any_summary_is_one_paragraph_of_at_most_three_sentences(text: str) -> None:
    summary = to_summary(text)
    assert "\n" not in summary
    assert len(split_sentences(summary)) <= MAX_SENTENCES
    assert len(summary) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    ("summary", "source", "unsupported"),
    [
        ("It took 2.4 ms, not 280.", "p50 was 2.4 ms against 280 ms", []),
        ("It took 24 ms.", "p50 was 2.4 ms", ["24"]),
        ("초당 1294건이다.", "1,294/s를 처리했다", []),
        ("약 3만 건이다.", "30,000건을 넣었다", []),
        ("1만 2천 명", "12,000명", []),
        ("40k tokens", "40,000 tokens", []),
        ("4만 건이다.", "30,000건을 넣었다", ["4"]),
        ("2.50배", "2.5배", []),
        ("3가지 방법", "세 가지 방법이 있다", []),
        ("All 3 workers", "three workers", []),
        ("ARQ 0.28.0이다.", "ARQ 0.28.1이다.", ["0.28.0"]),
        ("ARQ 0.28이다.", "ARQ 0.28이다.", []),
        ("BM25와 o200k_base를 쓴다.", "이름뿐이다", []),
        ("2026년 1월 9일", "date: 2026-01-09", []),
        ("15초, 15초, 20초", "10초", ["15", "20"]),
        ("숫자가 없다", "", []),
        ("１５초", "15초", []),
        ("2천만원", "20,000,000원", []),
        ("3백만 명", "300만 명", []),
        ("20 workers", "twenty workers", []),
        ("GPT-4", "GPT-5", ["4"]),
    ],
)
def test_numbers_that_the_source_does_not_hold_are_found(summary: str, source: str, unsupported: list[str]) -> None:
    assert unsupported_numbers(summary, source) == unsupported


@settings(deadline=None)
@given(messy, messy)
def test_a_text_supports_its_own_numbers(text: str, more: str) -> None:
    assert unsupported_numbers(text, f"{more}\n{text}") == []


def test_a_summary_is_asked_for_by_the_rules_and_with_the_answer_between_tags() -> None:
    system, user = build_summary_prompt(
        "rules", "The answer.", context_window=2_000, max_output_tokens=50, count=len, tag_code="0123abcd"
    )
    assert system["content"].startswith("rules")
    assert user["content"].strip() == "<page-0123abcd>\nThe answer.\n</page-0123abcd>"

"""The token counter: exact, offline, safe."""

from __future__ import annotations

import os
import socket
import time

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.corpus.graphemes import is_boundary, next_boundary, previous_boundary
from rag.corpus.tokens import TokenCounter, counts_add

KOREAN = "작업 큐는 요청을 받아 두었다가 워커가 가져가게 한다. "


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        ("gpt-4o", "hello world", 2),
        ("gpt-4o", "안녕하세요", 2),
        ("gpt-4", "안녕하세요", 5),
        ("openai/gpt-4o-mini", "tiktoken is great!", 6),
        ("gpt-4o", "<|endoftext|>", 7),
        ("gpt-4o", "", 0),
    ],
)
def test_counts_are_those_of_the_models_encoding(model: str, text: str, tokens: int) -> None:
    counter = TokenCounter(model)
    assert counter.exact
    assert counter.count(text) == tokens


def test_an_unknown_model_is_counted_with_the_newest_encoding_and_said_to_be_inexact() -> None:
    counter = TokenCounter("my-own-model")
    assert not counter.exact
    assert counter.encoding_name == "o200k_base"


def test_counting_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    assert "TIKTOKEN_CACHE_DIR" not in os.environ
    assert TokenCounter("gpt-4").count("offline") == 1


@pytest.mark.parametrize("unit", ["a", "가", " ", "\n", "-", "👩‍👩‍👧", KOREAN])
def test_a_huge_text_is_counted_in_bounded_time(unit: str) -> None:
    started = time.monotonic()
    assert TokenCounter("gpt-4o").count(unit * (1_000_000 // len(unit))) > 1000
    assert time.monotonic() - started < 10


def test_prose_counted_in_parts_counts_as_in_one() -> None:
    counter = TokenCounter("gpt-4o")
    text = (KOREAN + "The queue keeps its jobs. ") * 2000
    assert counter.count(text) == len(counter._encoding.encode_ordinary(text))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.integers(0, 40))
def test_head_and_tail_fit_and_are_ends_of_the_text(text: str, tokens: int) -> None:
    counter = TokenCounter("gpt-4o")
    head, tail = counter.head(text, tokens), counter.tail(text, tokens)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert counter.count(head) <= tokens
    assert counter.count(tail) <= tokens


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["가", "나다", "x", "1,", "👩\u200d👧", "e\u0301", "🇰🇷", " ", "漢"]), max_size=60).map(
        "".join
    ),
    st.integers(1, 12),
)
def test_pieces_are_the_text_cut_between_characters_within_the_limit(text: str, tokens: int) -> None:
    counter = TokenCounter("gpt-4o")
    pieces = list(counter.pieces(text, tokens))
    assert "".join(pieces) == text
    place = 0
    for piece in pieces:
        place += len(piece)
        assert is_boundary(text, place)
        assert counter.count(piece) <= tokens or len(regex.findall(r"\X", piece)) == 1


def test_head_does_not_break_a_character_that_readers_see_as_one() -> None:
    text = "가족 👩‍👩‍👧‍👦 입니다"
    counter = TokenCounter("gpt-4o")
    for tokens in range(1, counter.count(text)):
        assert is_boundary(text, len(counter.head(text, tokens)))


@pytest.mark.parametrize(
    ("text", "at", "boundary"),
    [
        ("e\u0301", 1, 0),
        ("🇰🇷🇺🇸", 1, 0),
        ("🇰🇷🇺🇸", 2, 2),
        ("a\r\nb", 2, 1),
        ("👍🏽", 1, 0),
        ("\u1112\u1161\u11ab", 2, 0),
        ("ab", 1, 1),
    ],
)
def test_boundaries(text: str, at: int, boundary: int) -> None:
    assert previous_boundary(text, at) == boundary


COMBINING = [
    "\u11ab",
    "\u0600",
    "क",
    "\u094d",
    "a",
    " ",
    "\r",
    "\n",
    "각",
    "\u0301",
    "\u200d",
    "👩",
    "🏽",
    "🇰",
    "\u1112",
    "\u1161",
    "\u11ab",
    "\u0600",
    "क",
    "\u094d",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(COMBINING), max_size=12).map("".join))
def test_boundaries_are_those_of_unicodes_grapheme_clusters(text: str) -> None:
    clusters = {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}
    for at in range(len(text) + 1):
        assert previous_boundary(text, at) == max(place for place in clusters if place <= at)
        assert next_boundary(text, at) == min(place for place in clusters if place >= at)


@pytest.mark.parametrize("unit", ["\u0301", "👩\u200d", "🇰", "\u1161"])
def test_boundaries_in_a_huge_cluster_take_linear_time(unit: str) -> None:
    text = "e" + unit * 200_000
    started = time.monotonic()
    for at in range(1, len(text), 100):
        assert at - 32 <= previous_boundary(text, at) <= at <= next_boundary(text, at) <= at + 32
    assert time.monotonic() - started < 5


WORDS = st.sampled_from(
    ["큐는", "a", "don't", "3.14", ".", "/", "```", "é", "e\u0301", "👩", " ", "\t", "\n", "\r\n", "!", "'s", "漢"]
)
TEXTS = st.lists(WORDS, max_size=12).map("".join)


@pytest.mark.parametrize("encoding", ["cl100k_base", "o200k_base"])
@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_counts_add_where_it_is_said_that_they_do(encoding: str, before: str, after: str) -> None:
    count = TokenCounter(encoding).count
    if counts_add(before, after):
        assert count(before + after) == count(before) + count(after)


@pytest.mark.parametrize("encoding", ["cl100k_base", "o200k_base"])
@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_count_without_the_white_space_at_the_end_follows_from_the_count(encoding: str, text: str) -> None:
    counter = TokenCounter(encoding)
    assert counter.count_stripped(text, counter.count(text)) == counter.count(text.rstrip())


def test_an_encoding_can_be_named_in_place_of_a_model() -> None:
    assert TokenCounter("cl100k_base").encoding_name == TokenCounter("gpt-4").encoding_name

"""Patterns and functions that read text from outside take time in proportion to its length."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest

from rag.corpus.markdown import read_blocks, read_front_matter
from rag.corpus.tokens import TokenCounter
from rag.prompt.budget import Turn, build_prompt
from rag.providers.errors import Translator
from rag.providers.sse import EventReader
from rag.search.query import Question
from tests.support.linear_time import RUNS, functions, matching, patterns, slow_at, texts_for

TEXT_FUNCTIONS = functions("rag.prompt", "rag.analysis", "rag.search.query", "rag.providers", "rag.corpus.markdown")
PATTERNS = patterns()


def build_whole_prompt(text: str) -> None:
    turns = [Turn(text, text, text), Turn(text, text)]
    for page in ("", text):
        build_prompt(
            "persona",
            "question",
            history=turns,
            session_summary=text,
            page_context=page,
            context_window=4_000,
            max_output_tokens=500,
            count=len,
        )


def translate_error(text: str) -> None:
    body = json.dumps({"error": {"message": text, "code": text, "type": text}})
    Translator("openai", api_key="key").of_response(400, body, {"retry-after": text}, [text, "question"])


def read_events(text: str) -> None:
    reader = EventReader()
    data = text.encode()
    for start in range(0, len(data), 1_000):
        with suppress(ValueError):
            list(reader.feed(data[start : start + 1_000]))


OTHERS = {
    "Question.query": lambda text: Question(text).query(),
    "Question.query with history": lambda text: Question("왜?", [text, text]).query(),
    "build_prompt": build_whole_prompt,
    "Translator.of_response": translate_error,
    "EventReader.feed": read_events,
    "read_front_matter": lambda text: read_front_matter(["---\n" + text]),
    "read_blocks": lambda text: list(read_blocks([text], start=0, limit=4_000)),
    "TokenCounter.count": TokenCounter("gpt-4o").count,
    "TokenCounter.head": lambda text: TokenCounter("gpt-4o").head(text, 100),
}
"""What reads such text and is not a function of one text: methods, and functions that need more than a text."""


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name: str) -> None:
    pattern = PATTERNS[name]
    assert slow_at(matching(pattern), texts_for(pattern)) == ""


@pytest.mark.parametrize("name", TEXT_FUNCTIONS)
def test_a_function_of_a_text_is_linear(name: str) -> None:
    assert slow_at(TEXT_FUNCTIONS[name], [("", run, end) for run in RUNS for end in ("", "\0")]) == ""


@pytest.mark.parametrize("name", OTHERS)
def test_another_reader_of_text_is_linear(name: str) -> None:
    assert slow_at(OTHERS[name], [("", run, end) for run in RUNS for end in ("", "\0")]) == ""


@pytest.mark.parametrize("slow", [r"\d+x", r"(?:가+)+$", r"`.*?`!", r" \s*\n", r"(?<!\d)(?:\d+[,.]?)+만"])
def test_a_quadratic_pattern_is_found(slow: str) -> None:
    pattern = re.compile(slow)
    assert slow_at(matching(pattern), texts_for(pattern))

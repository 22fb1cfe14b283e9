"""Why a passage was found, word by word."""

from __future__ import annotations

import pytest

from rag.analysis.synonyms import parse_synonyms
from rag.search.explain import shared_words
from rag.search.retrieve import Passage

PASSAGE = Passage(
    1, "a.md", "Redis in production", "An outbox, and a queue of PPR-6966. 반품은 이레 안에.", 1.0, 0, 9, 9
)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("레디스는 어떻게 운영하나요?", ["레디스는 (by sound)"]),
        ("아웃박스 큐", ["아웃박스 (by sound)", "큐 (as queue)"]),
        ("PPR6966은 무엇인가요?", ["PPR6966은"]),
        ("반품이 되나요?", ["반품이"]),
        ("환불이 되나요?", ["환불이 (as 반품)"]),
        ("화성에 생명체가 있나요?", []),
    ],
)
def test_a_word_says_how_it_was_found(question: str, why: list[str]) -> None:
    assert shared_words(question, PASSAGE, parse_synonyms(["환불, 반품"])) == why

"""Why a passage was found: for people who look at what a search gives."""

from __future__ import annotations

from rag.analysis.terms import terms
from rag.search.query import Question
from rag.search.retrieve import Passage


def shared_words(question: str, passage: Passage) -> list[str]:
    """The question's words that the passage or its headings speak of, in the question's order, each once.

    A word is shared with its particle or ending, where a part of it is found. None where the document's title alone,
    or nearness in meaning, has brought the passage up.
    """
    found = Question(question).query().weights.keys() & set(terms(f"{passage.heading}\n{passage.text}"))
    return [word for word in dict.fromkeys(question.split()) if not found.isdisjoint(terms(word))]

"""Why a passage was found: for people who look at what a search gives."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from rag.analysis.loan_words import HANGUL_SOUND, LATIN_SOUND
from rag.analysis.synonyms import NO_SYNONYMS, Synonyms
from rag.analysis.terms import fold, terms
from rag.search.query import WEAK_WEIGHT, Question, Word
from rag.search.retrieve import Passage

_SOUNDS: Final = (HANGUL_SOUND, LATIN_SOUND)


def shared_words(question: str, passage: Passage, synonyms: Synonyms = NO_SYNONYMS) -> list[str]:
    """The question's words that the passage or its headings speak of, in the question's order, each once.

    A word is shared with its particle or ending, where a part of it is found. A word that is found in another spelling
    says so: "레디스 (by sound)". None where the document's title alone, or nearness in meaning, has brought the passage
    up.
    """
    found = set(terms(f"{passage.heading}\n{passage.text}"))
    words = {word.text: word for word in Question(question, synonyms=synonyms).query().words}
    shared = (_shared(word, words, found) for word in dict.fromkeys(question.split()))
    return [word for word in shared if word]


def _shared(asked: str, words: dict[str, Word], found: Set[str]) -> str:
    """A word as it was asked, with how it was found if that is not as written; empty if it was not."""
    folded = fold(asked)
    inside = [word for text, word in words.items() if text in folded]
    if any(not found.isdisjoint(word.terms) for word in inside):
        return asked
    for word in inside:
        for other in word.alternatives:
            if word.importance > WEAK_WEIGHT and other <= found:
                return f"{asked} ({_kind(other)})"
    return ""


def _kind(other: Set[str]) -> str:
    written = sorted(term for term in other if term[0] not in _SOUNDS)
    return "as " + " ".join(written) if written else "by sound"

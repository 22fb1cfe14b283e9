"""The end of a Korean word: particles, endings of verbs, and words that only make a question.

Everything here looks at the end of a whole word, in time that does not depend on the word's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast

from rag.analysis.word_lists import read_sections, read_words

Tail = Literal["", "particle", "copula", "noun_verb", "verb"]
"""What a word ends with: a particle, "is", a verb made of a noun ("보관해요"), or any other verb."""


_LONGEST_TAIL: Final = 5


_QUESTION_WORDS: Final = frozenset(read_sections("weak_words.txt")["question"])
_HOMONYMS: Final = frozenset(read_sections("weak_words.txt")["homonym"])
WEAK_WORDS: Final = frozenset(read_words("weak_words.txt"))
_ENDS: Final = read_sections("word_ends.txt")
_NOUNS: Final = frozenset(_ENDS.pop("noun"))
_TAILS: Final = {form: cast(Tail, kind) for kind, forms in _ENDS.items() for form in forms}
_BEFORE_A_QUESTION_WORD: Final = frozenset("은는이가을를도에서로면고")
_UNSPACED_SYLLABLES: Final = 5
"""From so many syllables on, a word may be a question that was typed without spaces."""


@dataclass(frozen=True, slots=True)
class WordParts:
    """A Korean word: the `core`, which carries its meaning, and what follows it.

    `is_weak` says that the word only makes a question or is polite; its core is then all of it.
    """

    core: str
    tail: Tail
    is_weak: bool


def word_parts(word: str, before: str = "", after: str = "") -> WordParts:
    """Separate a run of Hangul syllables from its particle or ending; `before` and `after` are the words beside it."""
    if word in WEAK_WORDS:
        return WordParts(word, "", is_weak=not (word in _HOMONYMS and _is_noun(word, before, after)))
    core, tail = _strip(word)
    if core in _HOMONYMS and tail in ("particle", "copula"):
        return WordParts(core, tail, is_weak=False)
    if tail in ("copula", "noun_verb") and core not in WEAK_WORDS:
        core = without_particle(core)
    if tail != "verb" and (core in WEAK_WORDS or core in _TAILS):
        return WordParts(word, "", is_weak=True)
    if len(word) >= _UNSPACED_SYLLABLES:
        core = _without_question_words(core)
    return WordParts(core, tail, is_weak=False)


def _is_noun(word: str, before: str, after: str) -> bool:
    """Whether a homonym is a noun here: "관해 판정" but "요금에 관해", "감사 일정" but "감사 드려요"."""
    return not before.endswith("에") if word == "관해" else bool(after) and not after.startswith("드")


def without_particle(word: str) -> str:
    """Remove the particle, if the word ends with one and is more than that."""
    for length in range(min(4, len(word) - 1), 0, -1):
        if _TAILS.get(word[-length:]) in ("particle", "copula"):
            return word[:-length]
    return word


def _strip(word: str) -> tuple[str, Tail]:
    for length in range(min(_LONGEST_TAIL, len(word) - 1), 0, -1):
        tail = _TAILS.get(word[-length:])
        if tail and (len(word) - length >= 2 or tail in ("particle", "copula") or length >= 2):
            return word[:-length], tail
    if len(word) >= 2 and word[-1] == "요" and word[-2:] not in _NOUNS:
        return word[: max(1, len(word) - 2)], "verb"
    return word, ""


def _without_question_words(core: str) -> str:
    """Remove question words from the end of a question that was typed without spaces."""
    while True:
        for length in range(min(4, len(core) - 2), 0, -1):
            rest = core[:-length]
            if core[-length:] in WEAK_WORDS and (length > 1 or rest[-1] in _BEFORE_A_QUESTION_WORD):
                core = without_particle(rest) if len(rest) > 2 else rest
                break
        else:
            return core


def unspaced_words(core: str) -> list[str]:
    """Split a question that was typed without spaces at its question words, which follow a particle.

    A word of fewer than five syllables is returned as it is. The question words are not among the parts.
    """
    if len(core) < _UNSPACED_SYLLABLES:
        return [core]
    parts, start, place = [], 0, 2
    while place < len(core):
        length = _question_word_at(core, place) if core[place - 1] in _BEFORE_A_QUESTION_WORD else 0
        if length:
            parts.append(core[start:place])
            start = place = place + length
        place += 1
    return [part for part in (*parts, core[start:]) if part]


def _question_word_at(core: str, place: int) -> int:
    return next((length for length in (3, 2, 1) if core[place : place + length] in _QUESTION_WORDS), 0)

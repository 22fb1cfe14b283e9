"""What a question asks the index for: its words, how much each counts, and the terms that show that a chunk has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Final

from rag.analysis.loan_words import (
    HANGUL_SOUND,
    LATIN_SOUND,
    SHORT_LOAN_WORDS,
    latin_sounds,
    may_be_loan_word,
    sound_of_hangul,
)
from rag.analysis.morphemes import morphemes
from rag.analysis.particles import WEAK_WORDS, Tail, WordParts, unspaced_words, word_parts
from rag.analysis.synonyms import NO_SYNONYMS, Synonyms
from rag.analysis.terms import RUNS, fold, terms, terms_of_run

MOST_CHARACTERS: Final = 2_000
"""Retrieval reads no more of a question: what it is about is said by then."""

_MOST_WORDS: Final = 80
_COVERAGE_HANGUL: Final = 0.5
_ENOUGH: Final = 4.0
_HISTORY_QUESTIONS: Final = 3
_HISTORY_WEIGHT: Final = 0.6
_MORPHEME_WEIGHT: Final = 0.75
_ALTERNATIVE_WEIGHT: Final = 0.8
WEAK_WEIGHT: Final = 0.1
"""The importance of a word that only makes a question or is polite."""

_STRADDLING_WEIGHT: Final = 0.3
_IMPORTANCE: Final[Mapping[Tail, float]] = {"": 1.0, "particle": 1.0, "copula": 1.0, "noun_verb": 0.8, "verb": 0.4}
_HANGUL = re.compile("[가-힣]")
_CODE_LETTERS: Final = 8
_SOUNDS: Final = (HANGUL_SOUND, LATIN_SOUND)
_SINGLE_SYLLABLE: Final = 0.7
_BARE_NUMBER: Final = 0.6


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a question.

    Attributes:
        text: the word as it was asked, folded.
        importance: how much it counts beside the other words before its rarity in the corpus is known, 0 to 1.
        units: the parts of its core; a part is in a chunk that has any of its terms.
        alternatives: other spellings of the whole word, each a set of terms that a chunk must have together.
    """

    text: str
    importance: float
    units: tuple[frozenset[str], ...]
    alternatives: tuple[frozenset[str], ...] = ()

    @property
    def terms(self) -> frozenset[str]:
        """All terms of its core."""
        return frozenset().union(*self.units)

    def is_in(self, found: Set[str]) -> bool:
        """Whether all of it is among some terms, in any spelling."""
        return bool(self.units) and (
            all(not unit.isdisjoint(found) for unit in self.units) or any(other <= found for other in self.alternatives)
        )


@dataclass(frozen=True, slots=True)
class Query:
    """The terms to look for, with how much each counts, and the words that they belong to.

    A chunk that has all words counts for `coverage` more than one that reaches its score with a few. `morphemes`
    are further terms, which decide the order and not what is enough.
    """

    weights: Mapping[str, float]
    words: tuple[Word, ...]
    coverage: float
    morphemes: Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """A question in its session; `history` are the earlier ones, oldest first."""

    text: str
    history: Sequence[str] = ()
    synonyms: Synonyms = field(default=NO_SYNONYMS, compare=False)

    @property
    def has_hangul(self) -> bool:
        """Whether it has Hangul, composed or decomposed."""
        return _HANGUL.search(_read(self.text)) is not None

    def in_session(self) -> str:
        """The question for an embedding: one that says too little comes with the one before."""
        asked = _read(self.text)
        return asked if not self.history or self._says_enough() else f"{_read(self.history[-1])}\n{asked}"

    def alone(self, *, with_morphemes: bool = False) -> Query:
        """Make the query of the question by itself."""
        return (replace(self, history=()) if self.history else self).query(with_morphemes=with_morphemes)

    def query(self, *, with_morphemes: bool = False) -> Query:
        """Make the query; the session lends its words to a question that says too little ("그건 왜?").

        Raises:
            MissingAnalyserError: morphemes are wanted, and what finds them is not installed.
        """
        lent = () if self._says_enough() else [_read(earlier) for earlier in self.history[-_HISTORY_QUESTIONS:]]
        asked = _read(self.text)
        weights = _with_lent(lambda text: _weights(self._words(text)), asked, lent)
        return Query(
            weights=weights,
            words=_distinct([*self._words(asked), *(word for text in lent for word in self._words(text))]),
            # A bigram meets those of other words by chance; many of one question in one chunk are no chance.
            coverage=_COVERAGE_HANGUL if self.has_hangul else 0.0,
            morphemes=_with_lent(_morpheme_weights, asked, lent) if with_morphemes else {},
        )

    def _says_enough(self) -> bool:
        content = [word for word in self._words(_read(self.text)) if word.importance > WEAK_WEIGHT]
        return sum(word.importance * max(1, len(word.units) - 1) for word in content) >= _ENOUGH

    def _words(self, text: str) -> list[Word]:
        if text not in self._known_words:
            self._known_words[text] = list(islice(_words_of(text, self.synonyms), _MOST_WORDS))
        return self._known_words[text]

    @cached_property
    def _known_words(self) -> dict[str, list[Word]]:
        """The words of the question, and of those before it, which several steps need."""
        return {}


def _read(text: str) -> str:
    return fold(text[:MOST_CHARACTERS])[:MOST_CHARACTERS]


def _distinct(words: Iterable[Word]) -> tuple[Word, ...]:
    return tuple({word.text: word for word in words}.values())


def _words_of(text: str, synonyms: Synonyms) -> Iterable[Word]:
    tokens = list(RUNS.finditer(text))
    for place, token in enumerate(tokens):
        run = token[0]
        before = tokens[place - 1] if place else None
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        if _HANGUL.match(run) and len(terms_of_run(run)) and not run.startswith("제"):
            parts = word_parts(run, before[0] if before else "", after[0] if after else "")
            yield from _hangul_words(parts, run, synonyms, before=_beside(before, token), after=_beside(token, after))
        elif found := terms_of_run(run):
            yield from _other_word(run, found, synonyms)
        if code := _spaced_code(token, after, text):
            yield Word(code, 0.0, (), (frozenset((code,)),))


def _beside(left: re.Match[str] | None, right: re.Match[str] | None) -> str:
    """The syllables on both sides of a space that may be one too many: it sets off a single syllable."""
    if left is None or right is None or right.start() - left.end() != 1 or min(len(left[0]), len(right[0])) > 1:
        return ""
    bridge = left[0][-1] + right[0][0]
    return bridge if _HANGUL.fullmatch(bridge[0]) and _HANGUL.fullmatch(bridge[1]) else ""


def _spaced_code(token: re.Match[str], after: re.Match[str] | None, text: str) -> str:
    """A product code that was typed with a space ("ppr 6966"), as `rag.analysis.terms` writes it; else empty."""
    letters = token[0]
    if after is None or not (letters.isascii() and letters.isalpha() and len(letters) <= _CODE_LETTERS):
        return ""
    digits = after[0]
    is_code = digits.isdigit() and len(digits) >= 2 and text[token.end() : after.start()] == " "
    return f"{letters}{digits}".lower() if is_code else ""


def _hangul_words(parts: WordParts, run: str, synonyms: Synonyms, *, before: str, after: str) -> Iterable[Word]:
    if parts.is_weak:
        yield Word(run, WEAK_WEIGHT, _units(run, before, after))
        return
    first, *others = unspaced_words(parts.core)
    if others:
        # The run itself gives the order its bigrams; its parts say what is enough.
        yield Word(run, WEAK_WEIGHT, _units(parts.core, before, ""))
        for part in (first, *others):
            yield from _hangul_words(word_parts(part), part, synonyms, before="", after="")
        return
    units = _units(parts.core, before, after if parts.core == run else "")
    if len(parts.core) == 1 and parts.tail == "verb":
        units = (frozenset((run[:2],)),)
    importance = _IMPORTANCE[parts.tail] * (_SINGLE_SYLLABLE if len(parts.core) == 1 else 1.0)
    yield Word(run, importance, units, _other_spellings(parts.core, synonyms))


def _units(core: str, before: str, after: str) -> tuple[frozenset[str], ...]:
    """For each syllable, the bigrams that it is in; `before` and `after` reach over a single space."""
    units = []
    for place, syllable in enumerate(core):
        left = core[place - 1] + syllable if place else before
        right = core[place : place + 2] if place + 1 < len(core) else after
        alone = syllable if len(core) == 1 else ""
        units.append(frozenset({left, right, alone} - {""}))
    return tuple(filter(None, units))


def _other_word(run: str, found: Sequence[str], synonyms: Synonyms) -> Iterable[Word]:
    own = [term for term in found if term[0] not in _SOUNDS]
    if run.lower() in WEAK_WORDS:
        yield Word(run, WEAK_WEIGHT, (frozenset(own),))
        return
    alternatives = _other_spellings(run.lower(), synonyms)
    if len(own) > 1:
        # An identifier: it is there as a whole, or its parts are.
        yield Word(run, 1.0, (frozenset(own[:1]),), (frozenset(own[1:]), *alternatives))
    else:
        yield Word(run, _BARE_NUMBER if run.isdigit() else 1.0, (frozenset(own),), alternatives)


def _other_spellings(word: str, synonyms: Synonyms) -> tuple[frozenset[str], ...]:
    spellings = [*_LOAN_WORDS.get(word, ()), *synonyms.of(word)]
    found = [frozenset(terms(spelling)) for spelling in spellings]
    if _HANGUL.match(word):
        sound = sound_of_hangul(word) if may_be_loan_word(word) else ""
        sounds = [LATIN_SOUND + sound] if sound else []
    else:
        sounds = [HANGUL_SOUND + sound for sound in latin_sounds(word)]
    return tuple(filter(None, [*found, *(frozenset((sound,)) for sound in sounds)]))


def _weights(words: Sequence[Word]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        own = (
            {term: word.importance for term in terms_of_run(word.text) if term[0] not in _SOUNDS} if word.units else {}
        )
        core = word.terms
        for term in own:
            if core and term not in core:
                # A word with another particle is the same word, so the bigrams that reach into it say little.
                own[term] = _STRADDLING_WEIGHT * word.importance
        for term in core:
            own.setdefault(term, _STRADDLING_WEIGHT * word.importance)
        for other in word.alternatives:
            # Another spelling counts as much as the bigrams of this one.
            for term in other:
                own.setdefault(term, _ALTERNATIVE_WEIGHT * max(1, len(word.units) - 1) / len(other))
        for term, weight in own.items():
            weights[term] = max(weights.get(term, 0.0), weight)
    return weights


def _with_lent(weigh: Callable[[str], dict[str, float]], text: str, lent: Sequence[str]) -> dict[str, float]:
    """Weigh a question's terms, and those that earlier questions lend it."""
    weights = weigh(text)
    share = _HISTORY_WEIGHT if weights else 1.0
    for earlier in reversed(lent):
        found = weigh(earlier)
        for term, weight in found.items():
            weights[term] = max(weights.get(term, 0.0), share * weight)
        if found:
            share *= _HISTORY_WEIGHT
    return weights


def _morpheme_weights(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for term in morphemes(text):
        found[term] = found.get(term, 0.0) + _MORPHEME_WEIGHT
    return found


def _loan_words() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for pair in SHORT_LOAN_WORDS:
        for spelling in pair:
            found[spelling] = (*found.get(spelling, ()), *(other for other in pair if other != spelling))
    return found


_LOAN_WORDS: Final = _loan_words()

"""What a question asks the index for: its terms with their weights, without the words that only make it a question."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rag.analysis.morphemes import morphemes
from rag.analysis.terms import terms, words

_COVERAGE_HANGUL: Final = 0.5
_ENOUGH: Final = 4.0
_HISTORY_QUESTIONS: Final = 3
_HISTORY_WEIGHT: Final = 0.6
_MORPHEME_WEIGHT: Final = 0.75
_PARTICLE_WEIGHT: Final = 0.3
_HANGUL = re.compile("[가-힣]")
_HANGUL_WORD = re.compile("[가-힣]+")
_PARTICLE_ENDING = re.compile(
    r"(에서는|으로는|에게서|이라는|에서|에게|에는|으로|까지|부터|하고|이나|라는|이랑|보다|처럼|은요|는요|은|는|이|가|을|를|의|에|도|로|와|과|만)\Z"
)
_LONGEST_PARTICLE: Final = 3
_QUESTION_WORDS = re.compile(
    r"무엇\w*|무슨|뭐\w*|뭔\w*|어떻게|어떤|어때\w*|어떠\w*|어디\w*|언제\w*|누가|누구\w*|얼마\w*|왜\w*|"
    r"그건|그것\w*|그게|그래\w*|이건|이것\w*|이게|저것\w*|거기\w*|여기\w*|대해서?|관해서?|궁금\w*|"
    r"너는|너희\w*|나는|저는|내가|제가|우리는|잘\s?지냈\w*|반가\w*|반갑\w*|"
    r"알려\s?\w*|설명\s?해\w*|말해\w*|해\s?줘\w*|해\s?주세요|주세요|안녕\w*|고마워\w*|감사\w*|"
    # A verb's last syllable and its interrogative ending: "쓰나요", "실행되나요".
    r"[가-힣](?:나요|가요|까요|습니까|니까|지요|죠)(?![가-힣])"
)


@dataclass(frozen=True, slots=True)
class Query:
    """Terms to look for, with how much each counts, and the words that they are parts of.

    A chunk that holds all of them counts for `coverage` more than one that reaches its score with a few. `morphemes`
    are further terms, which say what is better, not what is enough.
    """

    weights: Mapping[str, float]
    words: frozenset[frozenset[str]]
    coverage: float
    morphemes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Question:
    """A question in its session; `history` are the earlier ones, oldest first."""

    text: str
    history: Sequence[str] = ()

    @property
    def has_hangul(self) -> bool:
        """Whether there is Hangul in it."""
        return _HANGUL.search(self.text) is not None

    def in_session(self) -> str:
        """The question for an embedding: one that says too little comes with the one before."""
        return self.text if not self.history or _says_enough(self.text) else f"{self.history[-1]}\n{self.text}"

    def alone(self, *, with_morphemes: bool = False) -> Query:
        """What it asks for by itself."""
        return Question(self.text).query(with_morphemes=with_morphemes)

    def query(self, *, with_morphemes: bool = False) -> Query:
        """What it asks for; the session lends its terms to a question that says too little ("그건 왜?").

        Raises:
            MissingAnalyserError: morphemes are wanted, and what finds them is not installed.
        """
        lent = () if _says_enough(self.text) else self.history[-_HISTORY_QUESTIONS:]
        return Query(
            weights=_with_lent(_weights, self.text, lent),
            words=_words(self.text).union(*map(_words, lent)),
            # A bigram meets those of other words by chance; many of one question in one chunk are no chance.
            coverage=_COVERAGE_HANGUL if self.has_hangul else 0.0,
            morphemes=_with_lent(_morpheme_weights, self.text, lent) if with_morphemes else {},
        )


def _with_lent(weigh: Callable[[str], dict[str, float]], text: str, lent: Sequence[str]) -> dict[str, float]:
    """The weights of a question's terms, and of those that earlier questions lend it."""
    weights = weigh(text)
    share = _HISTORY_WEIGHT if weights else 1.0
    for earlier in reversed(lent):
        found = weigh(earlier)
        for term, weight in found.items():
            weights[term] = max(weights.get(term, 0.0), share * weight)
        if found:
            share *= _HISTORY_WEIGHT
    return weights


def _says_enough(text: str) -> bool:
    return sum(_weights(text).values()) >= _ENOUGH


def _words(text: str) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(found) for found in words(_QUESTION_WORDS.sub(" ", text)) if found)


def _weights(text: str) -> dict[str, float]:
    asked = _QUESTION_WORDS.sub(" ", text)
    weights: dict[str, float] = dict(Counter(terms(asked)))
    for word in _HANGUL_WORD.findall(asked):
        particle = _PARTICLE_ENDING.search(word, max(1, len(word) - _LONGEST_PARTICLE))
        # A noun with another particle is the same noun, so the bigrams that reach into the particle say little.
        for start in range(particle.start() - 1, len(word) - 1) if particle else ():
            bigram = word[start : start + 2]
            if bigram in weights:
                weights[bigram] *= _PARTICLE_WEIGHT
    return weights


def _morpheme_weights(text: str) -> dict[str, float]:
    counts = Counter(morphemes(_QUESTION_WORDS.sub(" ", text)))
    return {term: _MORPHEME_WEIGHT * count for term, count in counts.items()}

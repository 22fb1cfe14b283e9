"""The terms of a text, which are the same for documents and questions.

Terms are the character bigrams of Hangul, Han and Kana, the stems of other words, identifiers (`ppr6966`, `3.11.4`,
`c++`, `12조의3`) beside their parts, and the sound of words that may be loan words. So Korean is found without a
morphological analyser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Final

import snowballstemmer  # type: ignore[import-untyped]
from protostar_client.normalization import normalize

from rag.analysis.loan_words import HANGUL_SOUND, LATIN_SOUND, latin_sounds, may_be_loan_word, sound_of_hangul
from rag.analysis.morphemes import morphemes
from rag.analysis.particles import without_particle

TERMS_VERSION: Final = 2
LONGEST_TERM: Final = 40

_HEADING_WEIGHT: Final = 2
_REMEMBERED_RUNS: Final = 65_536

_SYLLABLES: Final = "가-힣"
_IDEOGRAPHS: Final = "぀-ヿ㐀-䶿一-鿿"
_LETTER: Final = rf"[^\W_{_SYLLABLES}{_IDEOGRAPHS}]"
_ARTICLE: Final = r"제\s?\d{1,4}\s?조(?:\s?의\s?\d{1,3}(?!\d))?|\d{1,4}\s?조\s?의\s?\d{1,3}(?!\d)"
RUNS: Final = re.compile(
    # Blanks and punctuation fail at once, and the most frequent kinds come first: every alternative costs time.
    r"(?=[\w.])(?:"
    rf"(?!제\s?\d)[{_SYLLABLES}]++"
    r"|[A-Za-z]++(?![\w.@/:+#-])"
    rf"|(?!\d){_LETTER}++(?:(?:\+\+|\#)(?![a-z\d])|(?:[._@/:+-]++{_LETTER}++)*+)"
    rf"|{_ARTICLE}"
    r"|\d{1,3}(?:,\d{3})++"
    rf"|{_LETTER}++(?:[._@/:+-]++{_LETTER}++)*+"
    rf"|[{_SYLLABLES}]++|[{_IDEOGRAPHS}]++"
    r"|(?<![\w.])\.(?:NET|net|Net)(?!\w))"
)
"""One token of a text: an article of a law, a run of one script, a number, or an identifier with its signs."""

_NO_WORD = re.compile(rf"[{_SYLLABLES}{_IDEOGRAPHS}]")
_IS_ARTICLE = re.compile(r"제?\s?(\d{1,4})\s?조(?:\s?의\s?(\d{1,3}))?")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_IS_CAMEL = re.compile(r"[a-z][A-Z]")
_SIGNS = re.compile(r"[._@/:+-]+")
_LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+|\d+")
_CODE = re.compile(r"[^\W\d_]{1,5}\d{2,}")
_PARTICLES: Final = frozenset("은는이가을를의에도로와과만")
_SOFT_SIGNS: Final = str.maketrans("", "", "-_")
_FUNCTION_WORDS: Final = """
a an and are as at be but by can do does for from had has have hello hi how i if in into is it its many me much my no
not of on or our please should so tell than thank thanks that the their them then there these they this to was we were
what when where which who why will with would about you your
"""
_STOPWORDS: Final = frozenset(_FUNCTION_WORDS.split())

_stemmer = snowballstemmer.stemmer("english")


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_stemmer.stemWord(word)) if word.isascii() else word


def terms(text: str) -> list[str]:
    """List the index terms of a text, in order, with repetitions. Function words of English have no terms."""
    return list(chain.from_iterable(map(_terms_of.__getitem__, RUNS.findall(fold(text)))))


def terms_of_run(run: str) -> Sequence[str]:
    """List the index terms of one token that `RUNS` has found in a folded text."""
    return _terms_of[run]


def fold(text: str) -> str:
    """Unify the spellings of a text that Unicode tells apart: full-width letters, decomposed Hangul, sharp signs."""
    return normalize("NFKC", text).replace("♯", "#")


class _TermsOfRuns(dict[str, Sequence[str]]):
    """The terms of a token, remembered: a text repeats its words."""

    def __missing__(self, run: str) -> Sequence[str]:
        found: list[str] = []
        if not run:
            return found
        if article := _IS_ARTICLE.fullmatch(run):
            _add_article(found, article[1], article[2])
        elif _NO_WORD.match(run):
            _add_bigrams(found, run)
        else:
            _add_word(found, run)
        if len(run) <= LONGEST_TERM:
            if len(self) >= _REMEMBERED_RUNS:
                self.clear()
            self[run] = found
        return found


_terms_of: Final = _TermsOfRuns()


def _add_article(found: list[str], number: str, branch: str | None) -> None:
    found += [f"{number}조", number]
    if branch:
        found += [f"{number}조의{branch}", branch]


def _add_bigrams(found: list[str], run: str) -> None:
    if len(run) == 1:
        if run not in _PARTICLES:
            found.append(run)
        return
    found.extend(map("".join, pairwise(run)))
    bare = without_particle(run)
    if len(bare) == 1:
        found.append(bare)  # "큐는" is found by "큐"
    elif may_be_loan_word(bare) and (sound := sound_of_hangul(bare)):
        found.append(HANGUL_SOUND + sound)


def _add_word(found: list[str], word: str) -> None:
    if word.isalpha() and not _IS_CAMEL.search(word):
        lowered = word.lower()
        if lowered not in _STOPWORDS:
            found.append(_stem(lowered[:LONGEST_TERM]))
            found.extend(LATIN_SOUND + sound for sound in latin_sounds(lowered))
        return
    if word[-1] in "+#" or word[0] == ".":
        found.append(word.lower()[-LONGEST_TERM:])
        return
    if "," in word:
        found.append(word.replace(",", "")[:LONGEST_TERM])
        return
    whole = _whole(word)[:LONGEST_TERM]
    parts = {_stem(part.lower()[:LONGEST_TERM]) for part in _parts(word)} - _STOPWORDS
    found.append(whole)
    found.extend(sorted(parts - {whole}))


def _whole(word: str) -> str:
    """Write an identifier in one way: a product code without its hyphens, all in lower case."""
    lowered = word.lower()
    is_code = any(map(str.isalpha, word)) and "-" in word and not any(sign in word for sign in "./@:")
    return lowered.translate(_SOFT_SIGNS) if is_code else lowered


def _parts(word: str) -> Iterable[str]:
    for part in _SIGNS.split(word.replace("_", ".")):
        if part and part != word:
            yield part
        if _IS_CAMEL.search(part):
            yield from _CAMEL.findall(part)
        elif _CODE.fullmatch(part):
            yield from _LETTERS_OR_DIGITS.findall(part)


def term_frequencies(text: str, heading: str, title: str, *, with_morphemes: bool = False) -> tuple[Counter[str], int]:
    """Count a chunk's terms with their weights, and its length in terms, to which morphemes do not count.

    A term of the heading path or of the document's title counts as often as one that is in the text twice more.
    """
    frequencies = Counter(terms(text))
    length = frequencies.total()
    if with_morphemes:
        frequencies.update(morphemes(text))
    for term in heading_terms(heading, title, with_morphemes):
        frequencies[term] += _HEADING_WEIGHT
    return frequencies, length


@lru_cache(maxsize=4096)
def heading_terms(heading: str, title: str, with_morphemes: bool = False) -> frozenset[str]:
    """Collect the terms of a heading path and of a title."""
    found = frozenset(terms(heading)) | frozenset(terms(title))
    return found | frozenset(morphemes(f"{heading}\n{title}")) if with_morphemes else found

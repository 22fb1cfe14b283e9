"""The sound of a word, so that a loan word and its Latin spelling find each other ("레디스", "Redis").

The sound is the row of the word's consonants, each in a class of those that Korean spells alike, after a sign for a
word that begins with a vowel. Consonants of fewer than three classes say too little: such pairs are in a table.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from rag.analysis.word_lists import read_words

LATIN_SOUND: Final = "~"
HANGUL_SOUND: Final = "^"
"""Begin every term that is a sound, by the script of the word; no other term begins so. A question looks for the sounds
of the other script: within one script, words that only sound alike are other words."""

_LEAST_CONSONANTS: Final = 3
_MOST_LETTERS: Final = 24
_MOST_SYLLABLES: Final = 10
_FIRST: Final = ord("가")
_INITIALS: Final = ("k", "k", "n", "t", "t", "l", "m", "p", "p", "s", "s", "", "j", "j", "j", "k", "t", "p", "h")
_FINALS: Final = (
    "", "k", "k", "k", "n", "n", "n", "t", "l", "l", "l", "l", "l", "l", "l", "l", "m", "p", "p", "t", "t", "n", "t",
    "t", "k", "t", "p", "t",
)  # fmt: skip
_ASPIRATED: Final = frozenset((15, 16, 17))  # ㅋ ㅌ ㅍ, by the number of the initial
_LIQUID: Final = 5
_LOAN_SYLLABLES: Final = frozenset(
    "스즈그드브르므츠션젝텍넷웹봇샵숍젠헬베버커터러레네메데테케페젯셋콜롤볼닝링싱딩밍팅킹핑빙블앤센셔쉬퓨엔젤"
)

_SOFT: Final = frozenset("eiy")
_VOWELS: Final = frozenset("aeiouyw")
_CLASSES: Final = {
    "b": "p", "c": "k", "d": "t", "f": "p", "g": "k", "h": "h", "j": "j", "k": "k", "l": "l", "m": "m", "n": "n",
    "p": "p", "q": "k", "r": "l", "s": "s", "t": "t", "v": "p", "x": "ks", "z": "j",
}  # fmt: skip
_GROUPS: Final = (
    ("tion", "sn"), ("sion", "sn"), ("ture", "j"), ("tch", "j"), ("sch", "s"), ("dge", "j"), ("ch", "j"), ("ck", "k"),
    ("sh", "s"), ("ph", "p"), ("gh", ""), ("ng", "n"), ("wh", ""), ("kn", "n"), ("wr", "l"), ("qu", "k"), ("rh", "l"),
    ("dj", "j"), ("gg", "k"),
)  # fmt: skip
_LATIN_WORD: Final = re.compile(r"[a-z]{3,24}")
_SILENT_BEFORE: Final = frozenset("bcdfghjklmnpqstvxz")


def may_be_loan_word(word: str) -> bool:
    """Whether a Hangul word of 2 to 10 syllables has a syllable that loan words have and few other words do."""
    return 2 <= len(word) <= _MOST_SYLLABLES and any(map(_is_loan_syllable, word))


@lru_cache(maxsize=4096)
def _is_loan_syllable(syllable: str) -> bool:
    initial = (ord(syllable) - _FIRST) // 588
    return initial in _ASPIRATED or initial == _LIQUID or syllable in _LOAN_SYLLABLES


def sound_of_hangul(word: str) -> str:
    """Spell the sound of a Hangul word; empty where it has too few consonants or too many syllables."""
    if len(word) > _MOST_SYLLABLES:
        return ""
    classes: list[str] = []
    for place, syllable in enumerate(word):
        number = ord(syllable) - _FIRST
        if not 0 <= number < 11_172:
            return ""
        initial, final = _INITIALS[number // 588], _FINALS[number % 28]
        # A doubled consonant ("엘라스틱", "컬럼") is one letter of the Latin spelling.
        if initial and not (place and classes and classes[-1] == initial and _ends_in(word[place - 1])):
            classes.append(initial)
        if final:
            classes.append(final)
    return _sound(classes, begins_with_vowel=bool(word) and _INITIALS[(ord(word[0]) - _FIRST) // 588] == "")


def _ends_in(syllable: str) -> bool:
    return (ord(syllable) - _FIRST) % 28 != 0


@lru_cache(maxsize=65_536)
def latin_sounds(word: str) -> tuple[str, ...]:
    """Spell the sounds of a Latin word in lower case, with `th` as ㅅ and as ㅌ. Empty where it is too short."""
    if not _LATIN_WORD.fullmatch(word):
        return ()
    sounds = {_latin_sound(word, th) for th in (("s", "t") if "th" in word else ("t",))}
    return tuple(sorted(sounds - {""}))


def _latin_sound(word: str, th: str) -> str:
    classes: list[str] = []
    place = 0
    while place < len(word):
        group, length = _group(word, place, th)
        for one in group:
            if not (classes and classes[-1] == one and place and word[place - 1] == word[place]):
                classes.append(one)
        place += length
    return _sound(classes, begins_with_vowel=word[0] in _VOWELS)


def _group(word: str, place: int, th: str) -> tuple[str, int]:
    if word.startswith("th", place):
        return th, 2
    if word.startswith("ng", place) and word[place + 2 : place + 3] in ("a", "o", "u"):
        return "nk", 2
    for letters, classes in _GROUPS:
        if word.startswith(letters, place):
            return classes, len(letters)
    letter, after = word[place], word[place + 1 : place + 2]
    if letter in _VOWELS:
        return "", 1
    if letter == "r" and place and word[place - 1] in _VOWELS and (not after or after in _SILENT_BEFORE):
        return "", 1
    if letter == "c" and after and after in _SOFT:
        return "s", 1
    if letter == "g" and after and after in _SOFT:
        return "j", 1
    return _CLASSES.get(letter, ""), 1


def _sound(classes: list[str], *, begins_with_vowel: bool) -> str:
    if len(classes) < _LEAST_CONSONANTS:
        return ""
    return ("'" if begins_with_vowel else "") + "".join(classes)[:_MOST_LETTERS]


SHORT_LOAN_WORDS: Final = tuple(tuple(pair.split("=")) for pair in read_words("loan_words.txt"))
"""Pairs of a Hangul spelling and a Latin word whose sounds are too short or too unlike to meet."""

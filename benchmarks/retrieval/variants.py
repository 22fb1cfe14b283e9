"""Question-page pairs of three trades, and other ways to ask each question, derived by code.

A line of `invariance_pages/*.txt` is a page and its questions: `title|text|question|question`. In a question `{은}`,
`{을}` and `{이}` stand for a particle, `{나요}` for an ending.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("invariance_pages")
CORPORA: Final = ("hospital", "software", "city")
ORIGINAL: Final = "original"
FOLLOW_UP: Final = "follow-up in a session"
_FIRST: Final = ord("가")
_CODAS: Final = 28
_RIEUL, _BIEUP = 8, 17
_PARTICLES: Final = {"은": ("은", "는"), "을": ("을", "를"), "이": ("이", "가")}
_OTHER_PARTICLE: Final = {"은": "이", "을": "은", "이": "은"}
_SLOT: Final = re.compile(r"\{(은|을|이|나요)\}")
_LATIN: Final = {
    "인슐린": "insulin", "헤파린": "heparin", "알코올": "alcohol", "매트리스": "mattress", "스테로이드": "steroid",
    "빌리루빈": "bilirubin", "스티커": "sticker", "레디스": "Redis", "쿠버네티스": "Kubernetes", "레플리카": "replica",
    "도커": "Docker", "웹훅": "webhook", "토큰": "token", "데이터베이스": "database", "그래프": "graph",
    "대시보드": "dashboard", "프로젝트": "project", "카프카": "Kafka", "파티션": "partition", "엑셀": "Excel",
    "메타데이터": "metadata", "캐시": "cache", "모바일": "mobile", "플러그인": "plugin", "바이러스": "virus",
    "알고리즘": "algorithm", "파이썬": "Python", "트랜잭션": "transaction", "와이파이": "wifi", "타임아웃": "timeout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its slots, and the page that answers it."""

    template: str
    document: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One way to ask: the text, and the questions before it in the session."""

    text: str
    history: tuple[str, ...] = ()


def pages(corpus: str) -> Mapping[str, str]:
    """The pages of a corpus by file name."""
    return {f"{number:02}.md": f"# {title}\n\n{text}\n" for number, (title, text, *_) in enumerate(_lines(corpus))}


def pairs(corpus: str) -> list[Pair]:
    """The questions of a corpus."""
    return [
        Pair(question, f"{number:02}.md")
        for number, (_, _, *questions) in enumerate(_lines(corpus))
        for question in questions
    ]


def off_corpus() -> list[str]:
    """Questions that no page of any corpus answers."""
    return (FOLDER / "off_corpus.txt").read_text(encoding="utf-8").splitlines()


def _lines(corpus: str) -> list[list[str]]:
    return [line.split("|") for line in (FOLDER / f"{corpus}.txt").read_text(encoding="utf-8").splitlines()]


def variants(pair: Pair) -> dict[str, Asked]:
    """The ways to ask a question, by name; the same on every run."""
    rng = random.Random(pair.template)
    original = fill(pair.template)
    found = {ORIGINAL: Asked(original)}
    found |= {name: Asked(make(pair.template, rng)) for name, make in _WAYS.items()}
    found[FOLLOW_UP] = Asked("그건 왜 그런가요?", (original,))
    return {name: asked for name, asked in found.items() if name == ORIGINAL or asked.text != original}


def fill(template: str, *, particles: Mapping[str, str] | None = None, ending: str = "나요") -> str:
    """A question with its slots filled."""
    text = template
    while match := _SLOT.search(text):
        before, slot = text[: match.start()], match[1]
        if slot == "나요":
            text = _with_ending(before, ending) + text[match.end() :]
        else:
            closed, opened = _PARTICLES[(particles or {}).get(slot, slot)]
            text = before + (closed if _coda(before[-1]) else opened) + text[match.end() :]
    return text


def _with_ending(stem: str, ending: str) -> str:
    last, coda = stem[-1], _coda(stem[-1])
    if ending == "니까":
        return f"{stem[:-1]}{_with_coda(last, _BIEUP)}니까" if coda in (0, _RIEUL) else f"{stem}습니까"
    if coda == _RIEUL:
        return stem[:-1] + _with_coda(last, 0) + ending  # 만드는지, 만드니
    return stem + ending


def _coda(syllable: str) -> int:
    return (ord(syllable) - _FIRST) % _CODAS if "가" <= syllable <= "힣" else 1


def _with_coda(syllable: str, coda: int) -> str:
    return chr(ord(syllable) - _coda(syllable) + coda)


def _in_latin(template: str) -> str:
    for hangul, latin in _LATIN.items():
        template = template.replace(hangul, latin)
    return fill(template)


def _with_spaces(text: str, rng: random.Random) -> str:
    """Each word of three syllables or more is cut in two."""
    cut = []
    for word in text.split():
        place = rng.randrange(1, len(word) - 1) if len(word) >= 3 else 0
        cut.append(f"{word[:place]} {word[place:]}" if place else word)
    return " ".join(cut)


def _with_wrong_jamo(text: str, rng: random.Random) -> str:
    """One consonant or vowel of the first two words is another one."""
    places = [place for place in range(len(" ".join(text.split()[:2]))) if "가" <= text[place] <= "힣"]
    place = rng.choice(places)
    number = ord(text[place]) - _FIRST
    initial, vowel, coda = number // 588, number // _CODAS % 21, number % _CODAS
    if rng.random() < 0.5:
        vowel = (vowel + rng.choice((1, 4, 20))) % 21
    else:
        initial = (initial + rng.choice((1, 2, 17))) % 19
    return text[:place] + chr(_FIRST + (initial * 21 + vowel) * _CODAS + coda) + text[place + 1 :]


def _in_other_order(text: str) -> str:
    first, *rest = text.rstrip("?").split()
    return f"{' '.join(rest)} {first}?"


def _short(template: str) -> str:
    return " ".join(_SLOT.sub("", word) for word in template.split()[:2])


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


_WAYS: Final[Mapping[str, Callable[[str, random.Random], str]]] = {
    "particle changed": lambda template, _: fill(template, particles=_OTHER_PARTICLE),
    "ending: 습니까": lambda template, _: fill(template, ending="니까"),
    "ending: 니": lambda template, _: fill(template, ending="니"),
    "ending: 는지 알려 주세요": lambda template, _: fill(template, ending="는지 알려 주세요").rstrip("?"),
    "spaces removed": lambda template, _: fill(template).replace(" ", ""),
    "spaces added": lambda template, rng: _with_spaces(fill(template), rng),
    "NFD": lambda template, _: unicodedata.normalize("NFD", fill(template)),
    "full-width": lambda template, _: _full_width(fill(template)),
    "Latin spelling": lambda template, _: _in_latin(template),
    "one jamo wrong": lambda template, rng: _with_wrong_jamo(fill(template), rng),
    "word order": lambda template, _: _in_other_order(fill(template)),
    "two words": lambda template, _: _short(template),
    "greeting and thanks": lambda template, _: f"안녕하세요, {fill(template)} 감사합니다.",
}

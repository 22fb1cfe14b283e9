"""The numbers of a text, and those that its source does not hold. Pure."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Final

_DIGITS: Final = r"\d+(?:[.,]\d+)*"
_STANDING_NUMBER: Final = re.compile(rf"(?<![A-Za-z_\d])(?<![\d][.,])({_DIGITS})")
_ANY_NUMBER: Final = re.compile(_DIGITS)
_SCALE: Final = r"[십백천]?[만억조]|[백천]"
_SCALED: Final = re.compile(rf"(?:{_DIGITS}\s?(?:{_SCALE})\s?)+(?:{_DIGITS})?|{_DIGITS}\s?(?:k|K|M)\b")
_SCALED_PART: Final = re.compile(rf"({_DIGITS})\s?({_SCALE}|[kKM]|)")
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SCALES: Final = {
    "십": 10, "백": 100, "천": 10**3, "만": 10**4, "억": 10**8, "조": 10**12, "k": 10**3, "K": 10**3, "M": 10**6,
}  # fmt: skip
_COUNTERS: Final = r"\s?(?:개|가지|번|명|단계|문장|문단|곳|배|줄|쪽|시간|달|해|종류|차례|사람|대)"
_KOREAN_WORDS: Final = {
    "한": 1, "두": 2, "세": 3, "네": 4, "다섯": 5, "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9, "열": 10,
}  # fmt: skip
_ENGLISH_WORDS: Final = {
    "zero": 0, "no": 0, "one": 1, "once": 1, "two": 2, "twice": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30,
    "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
    "hundred": 100, "thousand": 1000,
}  # fmt: skip
_KOREAN_COUNT: Final = re.compile(rf"({'|'.join(_KOREAN_WORDS)}){_COUNTERS}")
_ENGLISH_COUNT: Final = re.compile(rf"\b({'|'.join(_ENGLISH_WORDS)})\b", re.IGNORECASE)


def unsupported_numbers(text: str, source: str) -> list[str]:
    """The numbers of a text that its source doesn't hold, as written, in order, each once.

    `1,294` and `1294`, `3만` and `30,000`, `2.50` and `2.5`, and small numbers written as words are the same
    number. Digits inside a name (`BM25`, `o200k`) are no numbers.
    """
    known = _source_numbers(unicodedata.normalize("NFKC", source))
    text = unicodedata.normalize("NFKC", text)
    unknown: dict[str, None] = {}
    scaled_spans = [match.span() for match in _SCALED.finditer(text) if _scaled_value(match[0]) in known]
    for match in _STANDING_NUMBER.finditer(text):
        if any(start <= match.start() < end for start, end in scaled_spans):
            continue
        if not _values(match[0]) <= known:
            unknown[match[0]] = None
    return list(unknown)


def _source_numbers(source: str) -> set[str]:
    known: set[str] = set()
    for match in _ANY_NUMBER.finditer(source):
        known |= _values(match[0])
        known |= {_plain(part) for part in re.split("[.,]", match[0])}
    known |= {_scaled_value(match[0]) for match in _SCALED.finditer(source)}
    known |= {str(_KOREAN_WORDS[match[1]]) for match in _KOREAN_COUNT.finditer(source)}
    known |= {str(_ENGLISH_WORDS[match[1].lower()]) for match in _ENGLISH_COUNT.finditer(source)}
    return known


def _values(digits: str) -> set[str]:
    """`1,294` is one number, `1,2` is two, and `0.28.0` is a version, compared as text."""
    if _THOUSANDS.fullmatch(digits):
        return {_plain(digits.replace(",", ""))}
    return {_plain(part) for part in digits.split(",")}


def _plain(digits: str) -> str:
    if digits.count(".") > 1:
        return digits
    number = Decimal(digits)
    return format(number.normalize() if number else Decimal(0), "f")


def _scaled_value(text: str) -> str:
    total = Decimal(0)
    for digits, scales in _SCALED_PART.findall(text):
        value = digits.replace(",", "")
        if value.count(".") > 1:
            return text
        part = Decimal(value)
        for scale in scales:
            part *= _SCALES[scale]
        total += part
    return _plain(format(total, "f"))

"""The numbers of a text, and those that its source does not hold. Pure."""

from __future__ import annotations

import re
from collections.abc import Set
from decimal import Decimal
from typing import Final

from protostar_client.normalization import normalize

_DIGITS: Final = r"[0-9]++(?:[.,][0-9]++)*+"
_START: Final = r"(?<![0-9])(?<![0-9][.,])"
_SCALE: Final = r"[십백천]?[만억조]|[백천]"
_ANY_NUMBER: Final = re.compile(_DIGITS)
_STANDING_NUMBER: Final = re.compile(rf"(?<![A-Za-z_]){_START}{_DIGITS}")
_SCALED: Final = re.compile(rf"{_START}(?:(?:{_DIGITS}\s?(?:{_SCALE})\s?)++(?:{_DIGITS})?|{_DIGITS}\s?(?:k|K|M)\b)")
_SCALED_PART: Final = re.compile(rf"({_DIGITS})\s?({_SCALE}|[kKM]|)")
_LONGEST_SCALED: Final = 24
_THOUSANDS: Final = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]++)?")
_SCALES: Final = {
    "십": 10, "백": 100, "천": 10**3, "만": 10**4, "억": 10**8, "조": 10**12, "k": 10**3, "K": 10**3, "M": 10**6,
}  # fmt: skip
_COUNTERS: Final = r"\s?(?:개|가지|번|명|단계|문장|문단|곳|배|줄|쪽|시간|달|해|종류|차례|사람|대)"
_KOREAN_WORDS: Final = {
    "한": "1", "두": "2", "세": "3", "네": "4", "다섯": "5", "여섯": "6", "일곱": "7", "여덟": "8", "아홉": "9",
    "열": "10",
}  # fmt: skip
_ENGLISH_WORDS: Final = {
    "zero": "0", "no": "0", "one": "1", "once": "1", "two": "2", "twice": "2", "three": "3", "four": "4",
    "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
    "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18",
    "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60",
    "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000",
}  # fmt: skip
_KOREAN_COUNT: Final = re.compile(rf"({'|'.join(_KOREAN_WORDS)}){_COUNTERS}")
_ENGLISH_COUNT: Final = re.compile(rf"\b({'|'.join(_ENGLISH_WORDS)})\b", re.IGNORECASE)


def unsupported_numbers(text: str, source: str) -> list[str]:
    """List the numbers of a text that its source does not hold, as written, in order, each once.

    `1,294` and `1294`, `3만` and `30,000`, `2.50` and `2.5`, and small numbers written as words are the same
    number. Digits inside a name (`BM25`, `o200k`) are not a number.
    """
    return numbers_outside(numbers_of(source), text)


def numbers_of(source: str) -> Set[str]:
    """Collect the numbers that a source supports, in the form in which `numbers_outside` compares them."""
    source = normalize("NFKC", source)
    known: set[str] = set()
    for match in _ANY_NUMBER.finditer(source):
        known |= _values(match[0])
        known.update(_plain(part) for part in match[0].replace(",", ".").split("."))
    known.update(_scaled_value(match[0]) for match in _SCALED.finditer(source))
    known.update(_KOREAN_WORDS[match[1]] for match in _KOREAN_COUNT.finditer(source))
    known.update(_ENGLISH_WORDS[match[1].lower()] for match in _ENGLISH_COUNT.finditer(source))
    return known


def numbers_outside(known: Set[str], text: str) -> list[str]:
    """List the numbers of a text that are not among `known`, as written, in order, each once."""
    unscaled = _SCALED.sub(lambda match: " " if _scaled_value(match[0]) in known else match[0], normalize("NFKC", text))
    found = (match[0] for match in _STANDING_NUMBER.finditer(unscaled))
    return list(dict.fromkeys(number for number in found if not _values(number) <= known))


def _values(digits: str) -> set[str]:
    """`1,294` is one number, `1,2` is two, and `0.28.0` is a version, compared as text."""
    if _THOUSANDS.fullmatch(digits):
        return {_plain(digits.replace(",", ""))}
    return {_plain(part) for part in digits.split(",")}


def _plain(digits: str) -> str:
    whole, _, fraction = digits.partition(".")
    if "." in fraction:
        return digits
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


def _scaled_value(text: str) -> str:
    total = Decimal(0)
    for digits, scales in _SCALED_PART.findall(text):
        value = digits.replace(",", "")
        if value.count(".") > 1 or len(value) > _LONGEST_SCALED:
            return text
        part = Decimal(value)
        for scale in scales:
            part *= _SCALES[scale]
        total += part
    return _plain(format(total, "f"))

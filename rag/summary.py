"""How a summary is asked for, and what it may be: one paragraph, three sentences, no new number. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from rag.prompt import Count, PassageLike, build_prompt
from rag.providers.protocol import ChatMessage
from rag.sentences import sentence_ends, split_sentences

MAX_SENTENCES: Final = 3
MAX_CHARACTERS: Final = 1_000
"""A text above this is not short however few full stops it has; a summary is cut to it."""

_CODE_FENCE: Final = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_HEADING: Final = re.compile(r"^[ \t]*#{1,6}[ \t][^\n]*$", re.MULTILINE)
_RULE: Final = re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE)
_LIST_ITEM: Final = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_BLOCK: Final = re.compile(r"^[ \t]*(?:```|~~~|#{1,6}[ \t]|\||>)", re.MULTILINE)
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*\n")
_LABEL: Final = re.compile(r"^[*_#\s]*(?:요약(?:문)?|summary|tl;dr)[*_]*\s*[:：][*_]*\s*", re.IGNORECASE)
_FINISHED: Final = re.compile(r"""[.!?。！？…:;,]["'”’)\]」』》*_]*$""")


def build_summary_prompt(
    rules: str,
    answer: str,
    *,
    context_window: int,
    max_output_tokens: int,
    count: Count,
    fence: str | None = None,
) -> list[ChatMessage]:
    """The messages that ask for the summary of an answer, by the rules of `summary.md`; sizes in tokens.

    Raises:
        PromptTooLongError: the rules alone don't fit beside the summary's reserve.
    """
    no_passages: Sequence[PassageLike] = ()
    return build_prompt(
        rules,
        "",
        passages=no_passages,
        page_context=answer,
        context_window=context_window,
        max_output_tokens=max_output_tokens,
        count=count,
        fence=fence,
    ).messages


def short_enough(answer: str) -> bool:
    """Whether an answer is its own summary, so that no model need be asked."""
    text = answer.strip()
    if len(text) > MAX_CHARACTERS or _BLANK_LINE.search(text):
        return False
    if _BLOCK.search(text) or _LIST_ITEM.search(text):
        return False
    return len(split_sentences(text)) <= MAX_SENTENCES


def to_summary(text: str) -> str:
    """Make one paragraph of at most three sentences of a model's text, cut at the end of a sentence.

    Headings, code blocks and a leading "Summary:" are left out, list items become sentences. Empty where
    nothing is left.
    """
    paragraph = _one_paragraph(_CODE_FENCE.sub("\n\n", text)) or _one_paragraph(text.replace("`", ""))
    ends = [0, *sentence_ends(paragraph)][: MAX_SENTENCES + 1]
    fitting = [end for end in ends if end <= MAX_CHARACTERS]
    if len(ends) > 1 and fitting == [0]:
        return _cut_at_word(paragraph)
    return paragraph[: fitting[-1]].strip()


def _one_paragraph(text: str) -> str:
    text = _RULE.sub("", _HEADING.sub("", text))
    is_list = len(_LIST_ITEM.findall(text)) > 1
    parts: list[str] = []
    for block in _BLANK_LINE.split(text):
        for line in block.splitlines():
            words = " ".join(_LIST_ITEM.sub("", line).split())
            if not words:
                continue
            if is_list and _LIST_ITEM.match(line) and not _FINISHED.search(words):
                words += "."
            parts.append(words)
        if parts and not _FINISHED.search(parts[-1]):
            parts[-1] += "."
    return _LABEL.sub("", " ".join(parts))


def _cut_at_word(text: str) -> str:
    """Cut a sentence that alone is over the limit; the mark says that it goes on."""
    head = text[: MAX_CHARACTERS - 1]
    space = head.rfind(" ", MAX_CHARACTERS // 2)
    return (head if space < 0 else head[:space]).rstrip() + "…"


_DIGITS: Final = r"\d+(?:[.,]\d+)*"
_STANDING_NUMBER: Final = re.compile(rf"(?<![A-Za-z_\d])(?<![\d][.,])({_DIGITS})")
_ANY_NUMBER: Final = re.compile(_DIGITS)
_SCALED: Final = re.compile(rf"(?:{_DIGITS}\s?[천만억조]\s?)+(?:{_DIGITS})?|{_DIGITS}\s?(?:k|K|M)\b")
_SCALED_PART: Final = re.compile(rf"({_DIGITS})\s?([천만억조kKM]?)")
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SCALES: Final = {
    "천": 10**3,
    "만": 10**4,
    "억": 10**8,
    "조": 10**12,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "": 1,
}
_COUNTERS: Final = r"\s?(?:개|가지|번|명|단계|문장|문단|곳|배|줄|쪽|시간|달|해|종류|차례|사람|대)"
_KOREAN_WORDS: Final = {
    "한": 1, "두": 2, "세": 3, "네": 4, "다섯": 5, "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9, "열": 10,
}  # fmt: skip
_ENGLISH_WORDS: Final = {
    "zero": 0, "no": 0, "one": 1, "once": 1, "two": 2, "twice": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
    "hundred": 100, "thousand": 1000,
}  # fmt: skip
_KOREAN_COUNT: Final = re.compile(rf"({'|'.join(_KOREAN_WORDS)}){_COUNTERS}")
_ENGLISH_COUNT: Final = re.compile(rf"\b({'|'.join(_ENGLISH_WORDS)})\b", re.IGNORECASE)


def unsupported_numbers(summary: str, source: str) -> list[str]:
    """The numbers of a summary that its source doesn't hold, as written, in order, each once.

    `1,294` and `1294`, `3만` and `30,000`, `2.50` and `2.5`, and small numbers written as words are the same
    number. Digits inside a name (`BM25`, `o200k`) are no numbers.
    """
    known = _source_numbers(unicodedata.normalize("NFKC", source))
    text = unicodedata.normalize("NFKC", summary)
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
    for digits, scale in _SCALED_PART.findall(text):
        value = digits.replace(",", "")
        if value.count(".") > 1:
            return text
        total += Decimal(value) * _SCALES[scale]
    return _plain(format(total, "f"))

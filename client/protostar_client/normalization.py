"""Text from outside: Unicode normalization in linear time, and what a text field of a request may hold."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

_PIECE_CHARACTERS: Final = 256
"""`unicodedata.normalize` sorts a run of combining marks by insertion: 128,000 marks take 8 s, a piece 0.03 ms."""
_LOOK_BACK_CHARACTERS: Final = 64


def normalize(form: Form, text: str) -> str:
    """Normalize a text as `unicodedata.normalize` does.

    Only a run of more than 64 characters that depend on each other, which no language writes, may be cut.
    """
    if text.isascii():
        return text
    if len(text) <= _PIECE_CHARACTERS:
        return unicodedata.normalize(form, text)
    pieces = []
    start = 0
    while start < len(text):
        end = _cut(text, start + _PIECE_CHARACTERS)
        pieces.append(unicodedata.normalize(form, text[start:end]))
        start = end
    return "".join(pieces)


def _cut(text: str, at: int) -> int:
    """The last place before `at` where a character begins that never joins the one before it."""
    if at >= len(text):
        return len(text)
    for place in range(at, at - _LOOK_BACK_CHARACTERS, -1):
        if text[place].isascii() or "가" <= text[place] <= "힣" or "一" <= text[place] <= "鿿":
            return place
    return at


# Everything that PostgreSQL, JSON or a terminal can't take: C0 but tab and line ends, DEL, C1.
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LONE_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")
_NOT_IN_A_NAME: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` without control characters (tabs and line ends stay), lone surrogates replaced by U+FFFD."""
    return _LONE_SURROGATES.sub("\ufffd", _CONTROL_CHARACTERS.sub("", text))


def _clean(value: object) -> object:
    return clean_text(value) if isinstance(value, str) else value


def not_blank(text: str) -> str:
    """The text, unless it shows nothing."""
    if not text.strip():
        raise ValueError("is blank; give at least one character that shows")
    return text


def _refuse_control_characters(value: object) -> object:
    if isinstance(value, str) and _NOT_IN_A_NAME.search(value):
        raise ValueError("holds a control character or half a surrogate pair; send printable text")
    return value


Text = Annotated[str, BeforeValidator(_clean)]
Name = Annotated[str, BeforeValidator(_refuse_control_characters)]

"""Finds the ends of sentences in Korean and in English, and cuts a text there."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from typing import Final

_CANDIDATE: Final = re.compile(
    r"""(?P<code>`[^`\n]+`)                       # inline code is skipped
      | (?P<gap>\n[ \t\r]*\n)                     # a blank line ends whatever stands before it
      | (?P<mark>[.!?。！？…]+)(?P<closers>["'”’)\]」』》*_]*)
    """,
    re.VERBOSE,
)
_FULL_WIDTH: Final = frozenset("。！？")
_KOREAN_ENDING: Final = frozenset("다요죠까")
_LIST_MARKER: Final = re.compile(r"(?:^|\n)[ \t]*(?:[-*+>][ \t]+)*(?:\d{1,3}|[A-Za-z])$")
_LETTERS_AND_DOT: Final = string.ascii_letters + "."
_DOTTED: Final = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")
_NEVER_LAST: Final = frozenset({"cf", "dr", "e.g", "eg", "i.e", "ie", "mr", "mrs", "ms", "prof", "vs"})
_BEFORE_NUMBER: Final = frozenset({"ch", "eq", "ex", "fig", "no", "p", "pp", "sec", "vol"})
_SELDOM_LAST: Final = frozenset({"al", "approx", "co", "etc", "inc", "jr", "ltd", "sr", "st"})
_LOOK_BACK_CHARACTERS: Final = 32
_PIECE_CHARACTERS: Final = 500
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")


def sentence_ends(text: str) -> Iterator[int]:
    """Yield the offset after each sentence of `text`, rising. A rest without an end mark is a sentence, too.

    A dot in a number, a version, a file name, an abbreviation or a list marker does not end a sentence, nor does a
    single line break. A blank line does.
    """
    start = 0
    for match in _CANDIDATE.finditer(text):
        if match["code"] or (match["mark"] and not _ends(text, match)):
            continue
        end = match.start() if match["gap"] else match.end()
        if text[start:end].strip():
            yield end
        start = end
    if text[start:].strip():
        yield len(text)


def split_sentences(text: str) -> list[str]:
    """Split a text into its sentences, without the white space around them."""
    sentences: list[str] = []
    start = 0
    for end in sentence_ends(text):
        sentences.append(text[start:end].strip())
        start = end
    return sentences


def cut_to_tokens(text: str, room: int, count: Callable[[str], int]) -> str:
    """Return the longest start of `text` that ends with a line or a sentence and has at most `room` tokens.

    Nothing after that is read. A text without such an end is cut where the room ends, between two words if possible.
    """
    tokens = start = whole = 0
    for end, is_sentence_end in pieces(text):
        tokens += count(text[start:end])
        if tokens > room:
            break
        start = end
        if is_sentence_end:
            whole = end
    # After a title follows a long run without an end: the start of the run is worth more than the title alone.
    end = whole if whole * 2 >= start else start
    return text[:end].rstrip()


def pieces(text: str) -> Iterator[tuple[int, bool]]:
    """Yield offsets after pieces of at most 500 characters or so, and whether a sentence or a line ends there."""
    for line in _LINE.finditer(text):
        start = line.start()
        for offset in sentence_ends(line[0]):
            end = line.start() + offset
            while end - start > _PIECE_CHARACTERS:
                space = text.rfind(" ", start + 1, start + _PIECE_CHARACTERS)
                start = space if space > 0 else start + _PIECE_CHARACTERS
                yield start, False
            start = end
            yield end, True
        if start < line.end():
            yield line.end(), True


def _ends(text: str, match: re.Match[str]) -> bool:
    mark, after = match["mark"], text[match.end() : match.end() + 1]
    if after and not after.isspace():
        return _ends_without_space(text, match, after)
    if mark[-1] != ".":
        return True
    following = text[match.end() : match.end() + 2].strip()
    if len(mark) > 1:
        return not following.islower()
    return not _is_marker_or_abbreviation(text, match.start("mark"), following)


def _ends_without_space(text: str, match: re.Match[str], after: str) -> bool:
    """Full-width marks need no space after them, and neither does a Korean verb's ending (`했다.그리고`)."""
    if match["closers"]:
        return False
    if _FULL_WIDTH.intersection(match["mark"]):
        return True
    before = text[match.start() - 1] if match.start() else ""
    return match["mark"] == "." and before in _KOREAN_ENDING and "가" <= after <= "힣"


def _is_marker_or_abbreviation(text: str, dot: int, following: str) -> bool:
    before = text[max(0, dot - _LOOK_BACK_CHARACTERS) : dot]
    if _LIST_MARKER.search(before) and (before.count("\n") or dot < _LOOK_BACK_CHARACTERS):
        return True
    name = before[len(before.rstrip(_LETTERS_AND_DOT)) :].lower()
    if name in _NEVER_LAST:
        return True
    if name in _BEFORE_NUMBER:
        return following.isdigit()
    goes_on = following.islower() or "가" <= following <= "힣"
    return (name in _SELDOM_LAST or bool(_DOTTED.fullmatch(name))) and goes_on

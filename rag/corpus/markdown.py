"""Markdown as a stream of blocks that lose no character, and its front matter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Final

from rag.corpus.graphemes import previous_boundary

FRONT_MATTER_CHARACTERS: Final = 65_536

# Each matches at the start of a line only; the possessive quantifiers keep the time linear.
_HEADING = re.compile(r"\A {0,3}(#{1,6})(?=[ \t]|\r*+$)")
_UNDERLINE = re.compile(r"\A {0,3}(?:=++|-++)[ \t\r]*+$")
_FENCE = re.compile(r"\A[ \t]*+(`{3,}|~{3,})([^\r\n]*)")
_TABLE_RULE = re.compile(r"\A[ \t]*+\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t\r]*+$")
_METADATA_LINE = re.compile(r"\A(?:[\w.-]++\s*+:(?:\s|$)|\s++\S|-\s|#|$)")
_METADATA_PAIR = re.compile(r"(title|date|tags)\s*:\s*(.*)$", re.IGNORECASE)


class Kind(Enum):
    """The kind of a block; all but headings, code blocks and tables is text."""

    HEADING = "heading"
    FENCE = "fence"
    TABLE = "table"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a file with the blank lines after it; `start` counts characters from the start of the file."""

    kind: Kind
    start: int
    text: str
    level: int = 0
    title: str = ""


@dataclass(slots=True)
class Metadata:
    """The front matter. `title` may be empty."""

    title: str = ""
    date: str = ""
    tags: list[str] = field(default_factory=list)


def read_front_matter(parts: Iterable[str]) -> tuple[Metadata, int, Iterator[str]]:
    """Take the front matter off a text that arrives in parts.

    Returns the metadata, the length of the front matter in characters, and the parts of the body. A rule between
    paragraphs is not front matter.
    """
    rest = iter(parts)
    head = ""
    for part in rest:
        head += part
        if len(head) >= FRONT_MATTER_CHARACTERS or not "---".startswith(head[:3]):
            break
    lines = head[:FRONT_MATTER_CHARACTERS].splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        return Metadata(), 0, chain((head,), rest)
    for index, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            size = sum(map(len, lines[: index + 1]))
            return _parse_metadata(lines[1:index]), size, chain((head[size:],), rest)
        if not _METADATA_LINE.match(line.rstrip()):
            break
    return Metadata(), 0, chain((head,), rest)


def _parse_metadata(lines: list[str]) -> Metadata:
    metadata = Metadata()
    in_tags = False
    for line in lines:
        pair = _METADATA_PAIR.match(line.rstrip())
        if pair:
            key, value = pair[1].lower(), pair[2].strip()
            in_tags = key == "tags"
            if in_tags:
                metadata.tags = [tag for item in value.strip("[]").split(",") if (tag := _unquote(item))]
            else:
                setattr(metadata, key, _unquote(value))
        elif in_tags and line.lstrip().startswith("- "):
            metadata.tags.append(_unquote(line.lstrip()[2:]))
        elif line[:1].strip():
            in_tags = False
    return metadata


def _title(text: str) -> str:
    """A heading's text without the number signs that may close it."""
    text = text.strip()
    bare = text.rstrip("#")
    return text if bare and bare[-1] not in " \t" else bare.strip()


def _unquote(value: str) -> str:
    value = unicodedata.normalize("NFC", value.strip())
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def read_blocks(parts: Iterable[str], *, start: int, limit: int) -> Iterator[Block]:
    """Cut a body that arrives in parts into blocks; joined, their texts are the body.

    A block of more than about `limit` characters comes as several of its kind.
    """
    reader = _Reader(start, limit)
    for line in _lines(parts, limit):
        reader.take(line)
        if reader.done:
            yield from reader.done
            reader.done.clear()
    reader.flush()
    yield from reader.done


def _lines(parts: Iterable[str], limit: int) -> Iterator[str]:
    """Lines with their ends; a line longer than `limit` comes in pieces."""
    held = ""
    for part in parts:
        # Only a line feed ends a line; str.splitlines also cuts at form feeds and Unicode's separators.
        *lines, held = (held + part).split("\n")
        for line in lines:
            if len(line) < limit:
                yield line + "\n"
            else:
                yield from _bounded(line + "\n", limit)
        if len(held) > limit:
            *pieces, held = _bounded(held, limit)
            yield from pieces
    if held:
        yield from _bounded(held, limit)


def _bounded(line: str, limit: int) -> Iterator[str]:
    start = 0
    while len(line) - start > limit:
        end = line.rfind(" ", start + limit // 2, start + limit) + 1 or previous_boundary(line, start + limit)
        yield line[start:end]
        start = end
    yield line[start:]


class _Reader:
    """The state between lines: the block that is open, and those that are `done`."""

    def __init__(self, start: int, limit: int) -> None:
        self.done: list[Block] = []
        self._start = start
        self._limit = limit
        self._kind = Kind.TEXT
        self._lines: list[str] = []
        self._size = 0
        self._level = 0
        self._title = ""
        self._fence = ""
        self._ended = False

    def flush(self) -> None:
        """End the open block, if there is one."""
        if not self._lines:
            return
        text = "".join(self._lines)
        self.done.append(Block(self._kind, self._start, text, self._level, self._title))
        self._start += len(text)
        self._kind, self._level, self._title = Kind.TEXT, 0, ""
        self._lines, self._size, self._ended = [], 0, False

    def take(self, line: str) -> None:
        """Add one line, which may end blocks."""
        if self._size + len(line) > self._limit and self._lines:
            kind, fence = self._kind, self._fence
            self.flush()
            self._kind, self._fence = kind if kind is not Kind.HEADING else Kind.TEXT, fence
        if self._fence:
            if self._closes_fence(line):
                self._fence, self._ended = "", True
        elif line.isspace():
            self._ended = True
        else:
            self._open(line)
        self._lines.append(line)
        self._size += len(line)

    def _open(self, line: str) -> None:
        """End the block that the line ends, and open the one that it opens."""
        first = line[0]
        if first in " \t":
            first = line.lstrip(" \t")[0]
        if first in "`~" and (fence := _FENCE.match(line)) and not (first == "`" and "`" in fence[2]):
            self.flush()
            self._kind, self._fence = Kind.FENCE, fence[1]
        elif first == "#" and (heading := _HEADING.match(line.rstrip("\n"))):
            self.flush()
            self._name(len(heading[1]), _title(line[heading.end() :]))
        elif first in "=-" and self._is_one_line() and _UNDERLINE.match(line.rstrip("\n")):
            self._name(1 if first == "=" else 2, self._lines[0].strip())
        elif first in "|:-" and self._is_table_head() and _TABLE_RULE.match(line.rstrip("\n")):
            head = self._lines.pop()
            self._size -= len(head)
            self.flush()
            self._kind, self._lines, self._size = Kind.TABLE, [head], len(head)
        elif self._ended or (self._kind is Kind.TABLE and "|" not in line):
            self.flush()

    def _name(self, level: int, title: str) -> None:
        """Make the open block a heading, to which only blank lines are added."""
        self._kind, self._level, self._ended = Kind.HEADING, level, True
        self._title = unicodedata.normalize("NFC", title)

    def _is_one_line(self) -> bool:
        return self._kind is Kind.TEXT and len(self._lines) == 1 and not self._ended and bool(self._lines[0].strip())

    def _is_table_head(self) -> bool:
        return self._kind is Kind.TEXT and bool(self._lines) and not self._ended and "|" in self._lines[-1]

    def _closes_fence(self, line: str) -> bool:
        bare = line.strip()
        return bare.startswith(self._fence) and not bare.strip(self._fence[0])

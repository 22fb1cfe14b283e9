"""Finding the data in a prompt: passages, the page and earlier answers, each between tags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# A tag may carry a code that its text can't know, as in <passage-1a2b3c4d document="redis.md">.
_BLOCK: Final = re.compile(
    r"<(?P<tag>(?P<kind>passage|page|question|session-summary|answer-summary|answer)(?:-[0-9a-f]{8,64})?)(?P<labels>\s[^<>]*)?>\n"
    r"(?P<text>.*?)\n</(?P=tag)>",
    re.DOTALL,
)
_DOCUMENT: Final = re.compile(r'\bdocument="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced text; `document` is empty where its tag names none."""

    kind: str
    document: str
    text: str


def blocks(message: str) -> list[Block]:
    """The fenced texts of a message, in order."""
    return [
        Block(kind=match["kind"], document=_document(match["labels"] or ""), text=match["text"].strip())
        for match in _BLOCK.finditer(message)
    ]


def without_blocks(message: str) -> str:
    """Return the text outside of the tags."""
    return _BLOCK.sub("", message).strip()


def _document(labels: str) -> str:
    found = _DOCUMENT.search(labels)
    return found[1] if found else ""

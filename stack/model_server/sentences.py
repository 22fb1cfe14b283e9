"""The sentences of a piece of Markdown, without its markup."""

from __future__ import annotations

import re
from typing import Final

_FRONT_MATTER: Final = re.compile(r"\A---\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_CODE: Final = re.compile(r"^(`{3,}|~{3,}).*?(?:^\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_PARAGRAPH_END: Final = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s|\s*[#>|])|(?<=\|)\n")
_BULLET: Final = re.compile(r"^\s*(?:[-*+]|\d+[.)]|>)\s+")
_LINK: Final = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_EMPHASIS: Final = re.compile(r"\*{1,3}|(?<!\w)_{1,2}|_{1,2}(?!\w)")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?。])[\"')\]]*\s+")
_NOT_PROSE: Final = re.compile(r"^\s*(?:#|\||-{3,}|\*{3,}|=+$)")
_ASIDE: Final = re.compile(r"^\((?:로컬 데모 모델|Local demo model):|^(?:출처|Sources):")
_FEWEST_CHARACTERS: Final = 6


def sentences(markdown: str) -> list[str]:
    """Sentences of paragraphs and lists, in order, without headings, tables, code and front matter."""
    text = _COMMENT.sub("", _CODE.sub("", _FRONT_MATTER.sub("", markdown)))
    found: list[str] = []
    for paragraph in _PARAGRAPH_END.split(text):
        if not _NOT_PROSE.match(paragraph) and not _ASIDE.match(paragraph):
            found.extend(_SENTENCE_END.split(_plain(paragraph)))
    return [sentence for sentence in found if len(sentence) >= _FEWEST_CHARACTERS]


def _plain(paragraph: str) -> str:
    unmarked = _EMPHASIS.sub("", _LINK.sub(r"\1", _BULLET.sub("", paragraph)))
    return " ".join(unmarked.split())

"""What a prompt is made of, and how it is put into messages: the same parts make the same prompt, byte for byte. Pure.

The persona is the system message; everything else is one user message that ends with the question. What the
documents, the page and the conversation say stands before it, fenced as data: no text can close its own block
or speak as the system. Sent as the assistant's messages, earlier answers would lend its voice to what
they quote, and teach the model to answer as briefly as its summaries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from rag.prompt.tags import Fence
from rag.providers.protocol import ChatMessage

FORMAT_VERSION: Final = "1"
"""Of what this module and `rag.prompt.tags` write around the parts: raise it with every change of that."""

PAGE_CUT_NOTE: Final = "[… the page is cut here: the rest did not fit]"


@dataclass(frozen=True, slots=True)
class TurnPart:
    """An earlier turn as a prompt holds it: its question, perhaps shortened, and its answer or that one's summary."""

    question: str
    answer: str
    is_summary: bool


@dataclass(frozen=True, slots=True)
class PassagePart:
    """A passage; `chunk_id` is None where it has none."""

    document: str
    heading: str
    text: str
    chunk_id: int | None = None


@dataclass(frozen=True, slots=True)
class PromptParts:
    """Everything a prompt holds, before it is fenced: what it takes to make it again.

    `fence` is the code of its tags, 8 to 64 hexadecimal digits. `turns` stand oldest first, `passages` best first;
    `page` is as much of the page as there was room for.
    """

    persona: str
    question: str
    fence: str
    session_summary: str = ""
    turns: tuple[TurnPart, ...] = ()
    passages: tuple[PassagePart, ...] = ()
    page: str = ""
    page_is_cut: bool = False


def compose(parts: PromptParts) -> list[ChatMessage]:
    """The messages of a prompt.

    Raises:
        ValueError: `parts.fence` is no code of a fence.
    """
    fence = Fence(parts.fence)
    blocks = [session_summary_block(fence, parts.session_summary)]
    blocks += [turn_block(fence, turn) for turn in parts.turns]
    blocks.append(page_block(fence, parts.page, is_cut=parts.page_is_cut))
    blocks += [passage_block(fence, passage) for passage in parts.passages]
    data = "".join(blocks)
    system = parts.persona + note_after_persona(fence) if data else parts.persona
    return [{"role": "system", "content": system}, {"role": "user", "content": data + parts.question}]


def prompt_version(persona: str) -> str:
    """What tells the prompts of one version from those of another: a hash of the persona and the format."""
    return hashlib.sha256(f"{FORMAT_VERSION}\n{persona}".encode()).hexdigest()


def note_after_persona(fence: Fence) -> str:
    """What follows the persona where there are blocks."""
    return "\n\n" + fence.note


def session_summary_block(fence: Fence, summary: str) -> str:
    """The summary of a session's older turns; empty where there is none."""
    return fence.block("session-summary", summary) if summary else ""


def turn_block(fence: Fence, turn: TurnPart) -> str:
    """An earlier turn."""
    question = fence.block("question", turn.question)
    if not turn.answer:
        return question
    return question + fence.block("answer-summary" if turn.is_summary else "answer", turn.answer)


def page_block(fence: Fence, page: str, *, is_cut: bool) -> str:
    """The page being read; empty where there is none."""
    if not page:
        return ""
    return fence.block("page", f"{page}\n{PAGE_CUT_NOTE}" if is_cut else page)


def passage_block(fence: Fence, passage: PassagePart) -> str:
    """A passage from the documents."""
    return fence.block("passage", passage.text, document=passage.document, heading=passage.heading)

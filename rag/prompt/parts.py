"""The parts of a prompt, and the messages made of them: the same parts make the same messages, byte for byte. Pure.

The persona is the system message. Everything else is one user message that ends with the question. Summary, turns,
passages and page stand before it between tags, as data: no text can close its own block or speak as the system. The
order goes from what changes least to what changes with each question, so that consecutive prompts of a session share
a prefix. Earlier answers are not sent as assistant messages: they quote untrusted documents, which would then speak
with the assistant's voice, and their summaries would teach the model to answer as briefly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from rag.prompt.tags import PromptTags
from rag.providers.protocol import ChatMessage

FORMAT_VERSION: Final = "2"
"""The version of the text that this module and `rag.prompt.tags` write around the parts. Raise it with each change."""

PAGE_CUT_NOTE: Final = "[… the page is cut here: the rest did not fit]"


@dataclass(frozen=True, slots=True)
class TurnPart:
    """An earlier turn in a prompt: its question, perhaps shortened, and its answer or the summary of its answer."""

    question: str
    answer: str
    is_summary: bool


@dataclass(frozen=True, slots=True)
class PassagePart:
    """A passage in a prompt. `chunk_id` is None for a passage that is not a chunk."""

    document: str
    heading: str
    text: str
    chunk_id: int | None = None


@dataclass(frozen=True, slots=True)
class PromptParts:
    """The parts of a prompt, before they get tags.

    `tag_code` is the code of its tags, 8 to 64 hexadecimal digits. `turns` stand oldest first, `passages` best first;
    `page` is as much of the page as there was room for.
    """

    persona: str
    question: str
    tag_code: str
    session_summary: str = ""
    turns: tuple[TurnPart, ...] = ()
    passages: tuple[PassagePart, ...] = ()
    page: str = ""
    page_is_cut: bool = False


def compose(parts: PromptParts) -> list[ChatMessage]:
    """Make the messages of a prompt.

    Raises:
        ValueError: `parts.tag_code` is not a code of tags.
    """
    tags = PromptTags(parts.tag_code)
    blocks = [session_summary_block(tags, parts.session_summary)]
    blocks += [turn_block(tags, turn) for turn in parts.turns]
    blocks += [passage_block(tags, passage) for passage in parts.passages]
    blocks.append(page_block(tags, parts.page, is_cut=parts.page_is_cut))
    data = "".join(blocks)
    system = parts.persona + note_after_persona(tags) if data else parts.persona
    return [{"role": "system", "content": system}, {"role": "user", "content": data + parts.question}]


def prompt_version(persona: str) -> str:
    """Hash the persona and the format: prompts of different versions have different hashes."""
    return hashlib.sha256(f"{FORMAT_VERSION}\n{persona}".encode()).hexdigest()


def note_after_persona(tags: PromptTags) -> str:
    """Format the note that follows the persona where there are blocks."""
    return "\n\n" + tags.note


def session_summary_block(tags: PromptTags, summary: str) -> str:
    """Format the summary of a session's older turns; empty without a summary."""
    return tags.block("session-summary", summary) if summary else ""


def turn_block(tags: PromptTags, turn: TurnPart) -> str:
    """Format an earlier turn."""
    question = tags.block("question", turn.question)
    if not turn.answer:
        return question
    return question + tags.block("answer-summary" if turn.is_summary else "answer", turn.answer)


def page_block(tags: PromptTags, page: str, *, is_cut: bool) -> str:
    """Format the page being read; empty without a page."""
    if not page:
        return ""
    return tags.block("page", f"{page}\n{PAGE_CUT_NOTE}" if is_cut else page)


def passage_block(tags: PromptTags, passage: PassagePart) -> str:
    """Format a passage from the documents."""
    return tags.block("passage", passage.text, document=passage.document, heading=passage.heading)

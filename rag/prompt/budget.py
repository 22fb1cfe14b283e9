"""Builds a prompt that fits the model's window: the prompt budget. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic

from rag.prompt.allocation import (
    HISTORY_SHARE,
    LONG_QUESTION_CHARACTERS,
    PASSAGES_SHARE,
    SUMMARY_SHARE,
    Allocator,
    Count,
    History,
    Material,
    P,
    Turn,
)
from rag.prompt.excerpt import PassageLike
from rag.prompt.parts import PromptParts, compose, note_after_persona
from rag.prompt.tags import PromptTags
from rag.providers.protocol import ChatMessage

__all__ = [
    "HISTORY_SHARE",
    "LONG_QUESTION_CHARACTERS",
    "PASSAGES_SHARE",
    "SUMMARY_SHARE",
    "Count",
    "History",
    "PassageLike",
    "Prompt",
    "PromptTooLongError",
    "Turn",
    "build_prompt",
]

TOKENS_PER_MESSAGE: Final = 5
TOKENS_PER_REPLY: Final = 5
"""Tokens that a chat format adds to a message and before the answer: the maximum of OpenAI's (4 and 3), ChatML's
(5 and 3) and Llama 3's (5 and 5, its start of text included)."""

FORMAT_TOKENS: Final = 2 * TOKENS_PER_MESSAGE + TOKENS_PER_REPLY
"""Tokens that a chat format adds to a prompt, which is two messages."""


@dataclass(frozen=True, slots=True)
class Prompt(Generic[P]):
    """A prompt as it is sent.

    `passages` are its passages, best first; one that was cut has the text and the offsets of the cut. `turns` counts
    its turns, which are the newest. `token_count` includes the tokens of the chat format and leaves the answer its
    reserve within `context_window`. `compose(parts)` makes the same messages again. `page_is_cut` is also true where
    there was no room for any of the page.
    """

    messages: list[ChatMessage]
    passages: list[P]
    turns: int
    page_is_cut: bool
    token_count: int
    context_window: int
    parts: PromptParts

    @property
    def tag_code(self) -> str:
        """The code of the tags."""
        return self.parts.tag_code


class PromptTooLongError(Exception):
    """Persona and question, which are never cut, leave no room for the answer. All numbers are tokens."""

    def __init__(self, *, persona: int, question: int, answer_reserve: int, context_window: int) -> None:
        super().__init__(
            f"the question takes {question} tokens and the persona {persona}; with {answer_reserve} kept for "
            f"the answer that is more than the model's window of {context_window}; shorten the question"
        )
        self.persona = persona
        self.question = question
        self.answer_reserve = answer_reserve
        self.context_window = context_window


def build_prompt(
    persona: str,
    question: str,
    *,
    history: Sequence[Turn] = (),
    session_summary: str = "",
    passages: Sequence[P] = (),
    page_context: str = "",
    context_window: int,
    max_output_tokens: int,
    count: Count,
    tag_code: str | None = None,
) -> Prompt[P]:
    """Build a prompt that fits the window. All sizes are tokens, counted by `count`.

    Args:
        persona: the system message, never cut.
        question: the user's text, never cut.
        history: the turns of the session, oldest first. The newest are kept, each whole or as its summary.
        session_summary: the summary of the turns before `history`, cut at the end of a sentence if it is too long.
        passages: best first, kept whole; a smaller one is kept where a better one does not fit. Only the best one is
            cut, to the sentences around its best match, where it does not fit whole. At least half of the room is for
            passages.
        page_context: the page, whole if it fits, else its start up to the end of a sentence and a note about the cut.
        context_window: the tokens of prompt and answer together.
        max_output_tokens: the answer's reserve.
        count: counts the tokens of a text.
        tag_code: the code of the tags, 8 to 64 hexadecimal digits; None draws one.

    Raises:
        PromptTooLongError: persona and question alone do not fit beside the reserve.
        ValueError: `tag_code` is not such a code.
    """
    tags = PromptTags(tag_code)
    limit = context_window - max_output_tokens
    bare = PromptParts(persona, question, tags.code)
    if _tokens_of(compose(bare), count) > limit:
        raise PromptTooLongError(
            persona=count(persona),
            question=count(question),
            answer_reserve=max_output_tokens,
            context_window=context_window,
        )
    allocator = Allocator(tags, count, Material(question, history, session_summary, passages, page_context))
    room = limit - count(persona + note_after_persona(tags)) - count(question) - FORMAT_TOKENS
    while True:
        allocation = allocator.allocate(room)
        parts = allocation.parts(bare)
        messages = compose(parts)
        token_count = _tokens_of(messages, count)
        if token_count <= limit:
            break
        # Parts counted alone and counted together may differ by a few tokens. The whole must fit.
        room -= token_count - limit
    return Prompt(
        messages, allocation.passages, len(allocation.turns), allocation.page_is_cut, token_count, context_window, parts
    )


def _tokens_of(messages: Sequence[ChatMessage], count: Count) -> int:
    return sum(count(message["content"]) for message in messages) + FORMAT_TOKENS

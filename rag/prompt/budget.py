"""Choosing what a prompt holds, so that it fits the model's window: the prompt budget. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic

from rag.prompt.fill import (
    HISTORY_SHARE,
    LONG_QUESTION_CHARACTERS,
    SUMMARY_SHARE,
    Count,
    Filler,
    History,
    P,
    PassageLike,
    Turn,
)
from rag.prompt.parts import PromptParts, compose, note_after_persona
from rag.prompt.tags import Fence
from rag.providers.protocol import ChatMessage

__all__ = [
    "HISTORY_SHARE",
    "LONG_QUESTION_CHARACTERS",
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
"""What a chat format adds to a message and before the answer: the most of OpenAI's (4 and 3 tokens), ChatML's
(5 and 3) and Llama 3's (5 and 5, its start of text among them)."""

FORMAT_TOKENS: Final = 2 * TOKENS_PER_MESSAGE + TOKENS_PER_REPLY
"""Of a prompt, which is two messages."""


@dataclass(frozen=True, slots=True)
class Prompt(Generic[P]):
    """A prompt as it is sent.

    `passages` are those it holds, best first; `turns` is how many of the newest turns it holds. `token_count`
    includes what the chat format adds and leaves the answer its reserve within `context_window`. `parts` make the
    same messages again. `page_is_cut` also where no room was left for any of the page.
    """

    messages: list[ChatMessage]
    passages: list[P]
    turns: int
    page_is_cut: bool
    token_count: int
    context_window: int
    parts: PromptParts

    @property
    def fence(self) -> str:
        """The code of the tags."""
        return self.parts.fence


class PromptTooLongError(Exception):
    """Persona and question, which are never cut, leave the answer no room. All numbers are tokens."""

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
    fence: str | None = None,
) -> Prompt[P]:
    """Fit a prompt into the window, all sizes in tokens as `count` counts them.

    Args:
        persona: the system's text, never cut.
        question: the reader's text, never cut.
        history: the turns of the session, oldest first; the newest are kept, each in whole or by its summary.
        session_summary: of the turns before `history`; cut at the end of a sentence where it outgrows its share.
        passages: best first; kept in whole, a smaller one where a better one has no room.
        page_context: in whole if it fits, else its start up to the end of a sentence, with a note of it.
        context_window: prompt and answer together.
        max_output_tokens: the answer's reserve.
        count: the tokens of a text.
        fence: the code of the tags, 8 to 64 hexadecimal digits; None draws one.

    Raises:
        PromptTooLongError: persona and question alone don't fit beside the reserve.
        ValueError: `fence` is not such a code.
    """
    tags = Fence(fence)
    limit = context_window - max_output_tokens
    bare = PromptParts(persona, question, tags.code)
    if _tokens_of(compose(bare), count) > limit:
        raise PromptTooLongError(
            persona=count(persona),
            question=count(question),
            answer_reserve=max_output_tokens,
            context_window=context_window,
        )
    filler = Filler(tags, count, history, session_summary, passages, page_context)
    room = limit - count(persona + note_after_persona(tags)) - count(question) - FORMAT_TOKENS
    while True:
        filling = filler.fill(room)
        parts = filling.parts(bare)
        messages = compose(parts)
        token_count = _tokens_of(messages, count)
        if token_count <= limit:
            break
        # Parts counted alone and joined may differ by a few tokens; what is sent is what must fit.
        room -= token_count - limit
    return Prompt(
        messages, filling.passages, len(filling.turns), filling.page_is_cut, token_count, context_window, parts
    )


def _tokens_of(messages: Sequence[ChatMessage], count: Count) -> int:
    return sum(count(message["content"]) for message in messages) + FORMAT_TOKENS

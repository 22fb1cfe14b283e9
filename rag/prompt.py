"""A prompt that fits: persona, history, passages or page, and the question, within the model's window. Pure.

The persona is the system message; everything else is one user message that ends with the question. What the
documents, the page and the conversation say stands before it, fenced as data: no text can close its own block
or speak as the system. Sent as the assistant's messages, earlier answers would lend its voice to what
they quote, and teach the model to answer as briefly as its summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from rag.fence import Fence
from rag.providers.protocol import ChatMessage
from rag.sentences import cut_to_tokens

HISTORY_SHARE: Final = 0.4
"""The history's part of the room left by persona, question and answer; passages or page have the rest.

What one of them leaves unused the other one may take.
"""

TOKENS_PER_MESSAGE: Final = 5
TOKENS_PER_REPLY: Final = 5
"""What a chat format adds to a message and before the answer: the most of OpenAI's (4 and 3 tokens), ChatML's
(5 and 3) and Llama 3's (5 and 5, its start of text among them)."""

LONG_QUESTION_CHARACTERS: Final = 600
"""Where a turn is given by its summary, a longer question is shortened too."""

PAGE_CUT_NOTE: Final = "[… the page is cut here: the rest did not fit]"
QUESTION_CUT_NOTE: Final = "[…]"

Count = Callable[[str], int]


class PassageLike(Protocol):
    """What a prompt needs of a passage."""

    @property
    def document(self) -> str: ...  # noqa: D102
    @property
    def heading(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


P = TypeVar("P", bound=PassageLike)


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question and its answer; `summary` is None where there is none yet."""

    question: str
    answer: str
    summary: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt(Generic[P]):
    """A prompt as it is sent.

    `passages` are those it holds, best first; `turns` is how many of the newest turns it holds. `token_count`
    includes what the chat format adds and leaves the answer its reserve. With `fence`, the same parts make
    the same prompt again. `page_is_cut` also where no room was left for any of the page.
    """

    messages: list[ChatMessage]
    passages: list[P]
    turns: int
    page_is_cut: bool
    token_count: int
    fence: str


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
    composer = _Composer(persona, question, Fence(fence), count)
    limit = context_window - max_output_tokens
    bare = composer.compose(_Filling[P]())
    if bare.token_count > limit:
        raise PromptTooLongError(
            persona=count(persona),
            question=count(question),
            answer_reserve=max_output_tokens,
            context_window=context_window,
        )
    filler = _Filler(composer.fence, count, history, passages, page_context)
    room = limit - bare.token_count - filler.note_tokens
    prompt = composer.compose(filler.fill(room))
    # Parts counted alone and joined may differ by a few tokens; what is sent is what must fit.
    while prompt.token_count > limit:
        room -= prompt.token_count - limit
        prompt = composer.compose(filler.fill(room))
    return prompt


@dataclass(slots=True)
class _Filling(Generic[P]):
    page: str = ""
    page_is_cut: bool = False
    turns: list[str] = field(default_factory=list)
    """Newest first."""
    passages: list[P] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    """Of the passages."""


@dataclass(frozen=True, slots=True)
class _Composer:
    persona: str
    question: str
    fence: Fence
    count: Count

    def compose(self, filling: _Filling[P]) -> Prompt[P]:
        data = "".join([*reversed(filling.turns), filling.page, *filling.blocks])
        note = "\n\n" + self.fence.note if data else ""
        system, user = self.persona + note, data + self.question
        overhead = 2 * TOKENS_PER_MESSAGE + TOKENS_PER_REPLY
        return Prompt(
            messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
            passages=filling.passages,
            turns=len(filling.turns),
            page_is_cut=filling.page_is_cut,
            token_count=self.count(system) + self.count(user) + overhead,
            fence=self.fence.code,
        )


class _Filler(Generic[P]):
    """Shares a room out. A part is rendered and counted when it is first looked at, and never again."""

    def __init__(self, fence: Fence, count: Count, history: Sequence[Turn], passages: Sequence[P], page: str) -> None:
        self._fence = fence
        self._count = count
        self._history = history
        self._passages = passages
        self._page = fence.escape(page.strip())
        self._counted: dict[str, int] = {}
        self.note_tokens = count("\n\n" + fence.note)

    def fill(self, room: int) -> _Filling[P]:
        filling: _Filling[P] = _Filling()
        room -= self._take_page(filling, room, cut=False)
        used = self._take_turns(filling, int(room * HISTORY_SHARE))
        used += self._take_page(filling, room - used, cut=True)
        used += self._take_passages(filling, room - used)
        self._take_turns(filling, room - used)
        return filling

    def _take_page(self, filling: _Filling[P], room: int, *, cut: bool) -> int:
        if not self._page or filling.page:
            return 0
        filling.page_is_cut = cut
        note = f"\n{PAGE_CUT_NOTE}" if cut else ""
        room -= self._tokens(self._fence.block("page", note))
        text = cut_to_tokens(self._page, room, self._count)
        if not text or (len(text) < len(self._page)) != cut:
            return 0
        filling.page = self._fence.block("page", text + note)
        return self._tokens(filling.page)

    def _take_turns(self, filling: _Filling[P], room: int) -> int:
        """Go on from the newest turn not taken yet; stop at the first without room, to leave no hole."""
        used = 0
        for index in range(len(self._history) - len(filling.turns) - 1, -1, -1):
            block = self._turn(self._history[index])
            tokens = self._tokens(block)
            if used + tokens > room:
                break
            used += tokens
            filling.turns.append(block)
        return used

    def _take_passages(self, filling: _Filling[P], room: int) -> int:
        used = 0
        for passage in self._passages:
            block = self._fence.block("passage", passage.text, document=passage.document, heading=passage.heading)
            tokens = self._tokens(block)
            if used + tokens <= room:
                used += tokens
                filling.passages.append(passage)
                filling.blocks.append(block)
        return used

    def _turn(self, turn: Turn) -> str:
        question = turn.question
        if turn.summary is None:
            answer = self._fence.block("answer", turn.answer) if turn.answer else ""
            return self._fence.block("question", question) + answer
        if len(question) > LONG_QUESTION_CHARACTERS:
            question = question[:LONG_QUESTION_CHARACTERS].rstrip() + " " + QUESTION_CUT_NOTE
        return self._fence.block("question", question) + self._fence.block("answer-summary", turn.summary)

    def _tokens(self, block: str) -> int:
        if block not in self._counted:
            self._counted[block] = self._count(block)
        return self._counted[block]

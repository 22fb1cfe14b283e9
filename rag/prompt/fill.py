"""Sharing the room of a prompt out between history, passages and page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from rag.prompt.parts import (
    PassagePart,
    PromptParts,
    TurnPart,
    page_block,
    passage_block,
    session_summary_block,
    turn_block,
)
from rag.prompt.sentences import cut_to_tokens
from rag.prompt.tags import Fence

HISTORY_SHARE: Final = 0.4
"""The history's part of the room left by persona, question and answer; passages or page have the rest.

What one of them leaves unused the other one may take.
"""

SUMMARY_SHARE: Final = 1 / 3
"""The most of the history's part that the summary of a session's older turns takes, before any turn does."""

DENSER: Final = 1.2
"""A passage that would fit only with so many more characters a token than all before it is not counted."""

LONG_QUESTION_CHARACTERS: Final = 600
"""Where a turn is given by its summary, a longer question is shortened too."""

QUESTION_CUT_NOTE: Final = "[…]"

Count = Callable[[str], int]


class PassageLike(Protocol):
    """What a prompt needs of a passage; a `chunk_id`, where it has one, goes into the prompt's parts."""

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
class History:
    """What a session has said so far: the turns, oldest first, and the summary of those that are older still."""

    turns: Sequence[Turn] = ()
    summary: str = ""


@dataclass(slots=True)
class Filling(Generic[P]):
    """What a prompt holds beside persona and question."""

    summary: str = ""
    page: str = ""
    page_is_cut: bool = False
    turns: list[TurnPart] = field(default_factory=list)
    """Newest first."""
    passages: list[P] = field(default_factory=list)

    def parts(self, bare: PromptParts) -> PromptParts:
        """The parts of the prompt, with the persona, question and fence of `bare`."""
        return PromptParts(
            persona=bare.persona,
            question=bare.question,
            fence=bare.fence,
            session_summary=self.summary,
            turns=tuple(reversed(self.turns)),
            passages=tuple(_part_of(passage) for passage in self.passages),
            page=self.page,
            page_is_cut=self.page_is_cut,
        )


class Filler(Generic[P]):
    """Shares a room out. A part is counted when it is first looked at, and never again."""

    def __init__(
        self,
        fence: Fence,
        count: Count,
        history: Sequence[Turn],
        session_summary: str,
        passages: Sequence[P],
        page: str,
    ) -> None:
        self._fence = fence
        self._count = count
        self._history = history
        self._summary = fence.escape(session_summary.strip())
        self._passages = passages
        self._page = fence.escape(page.strip())
        self._counted: dict[str, int] = {}

    def fill(self, room: int) -> Filling[P]:
        """Take what fits into so many tokens, joined as it was counted: part by part."""
        filling: Filling[P] = Filling()
        room -= self._take_page(filling, room, cut=False)
        share = int(room * HISTORY_SHARE)
        used = self._take_summary(filling, int(share * SUMMARY_SHARE))
        used += self._take_turns(filling, share - used)
        used += self._take_page(filling, room - used, cut=True)
        used += self._take_passages(filling, room - used)
        self._take_turns(filling, room - used)
        return filling

    def _take_page(self, filling: Filling[P], room: int, *, cut: bool) -> int:
        if not self._page or filling.page:
            return 0
        filling.page_is_cut = cut
        room -= self._tokens(page_block(self._fence, " ", is_cut=cut))
        text = cut_to_tokens(self._page, room, self._count)
        if not text or (len(text) < len(self._page)) != cut:
            return 0
        filling.page = text
        return self._tokens(page_block(self._fence, text, is_cut=cut))

    def _take_summary(self, filling: Filling[P], room: int) -> int:
        room -= self._tokens(session_summary_block(self._fence, " "))
        filling.summary = cut_to_tokens(self._summary, room, self._count)
        return self._tokens(session_summary_block(self._fence, filling.summary))

    def _take_turns(self, filling: Filling[P], room: int) -> int:
        """Go on from the newest turn not taken yet; stop at the first without room, to leave no hole."""
        used = 0
        for index in range(len(self._history) - len(filling.turns) - 1, -1, -1):
            turn = _turn_part(self._history[index])
            tokens = self._tokens(turn_block(self._fence, turn))
            if used + tokens > room:
                break
            used += tokens
            filling.turns.append(turn)
        return used

    def _take_passages(self, filling: Filling[P], room: int) -> int:
        used = 0
        densest = 1.0
        for passage in self._passages:
            block = passage_block(self._fence, _part_of(passage))
            if len(block) > densest * DENSER * (room - used) and used:
                continue
            tokens = self._tokens(block)
            densest = max(densest, len(block) / max(tokens, 1))
            if used + tokens <= room:
                used += tokens
                filling.passages.append(passage)
        return used

    def _tokens(self, block: str) -> int:
        if not block:
            return 0
        if block not in self._counted:
            self._counted[block] = self._count(block)
        return self._counted[block]


def _turn_part(turn: Turn) -> TurnPart:
    question = turn.question
    if turn.summary is None:
        return TurnPart(question, turn.answer, is_summary=False)
    if len(question) > LONG_QUESTION_CHARACTERS:
        question = question[:LONG_QUESTION_CHARACTERS].rstrip() + " " + QUESTION_CUT_NOTE
    return TurnPart(question, turn.summary, is_summary=True)


def _part_of(passage: PassageLike) -> PassagePart:
    chunk_id: int | None = getattr(passage, "chunk_id", None)
    return PassagePart(passage.document, passage.heading, passage.text, chunk_id)

"""Allocates the room of a prompt to history, passages and page. Pure.

Room is counted in tokens: what persona, question and the answer's reserve leave of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from rag.prompt.excerpt import PassageLike, excerpt
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
from rag.prompt.tags import PromptTags

HISTORY_SHARE: Final = 0.4
"""The history's share of the room. Passages and page share the rest.

What one of them leaves unused, another one may take.
"""

PASSAGES_SHARE: Final = 0.5
"""The least share of the room that is kept for passages, as long as there are any."""

SUMMARY_SHARE: Final = 1 / 3
"""The largest share of the history's room for the summary of a session's older turns, before any turn is added."""

DENSER: Final = 1.2
"""A passage that would fit only with so many more characters a token than all before it is not counted."""

LONG_QUESTION_CHARACTERS: Final = 600
"""Where a turn is given by its summary, a longer question is shortened too."""

QUESTION_CUT_NOTE: Final = "[…]"

Count = Callable[[str], int]
P = TypeVar("P", bound=PassageLike)


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question and its answer; `summary` is None where there is none yet."""

    question: str
    answer: str
    summary: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """The history of a session: its turns, oldest first, and the summary of those that are older still."""

    turns: Sequence[Turn] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Material(Generic[P]):
    """Everything that a prompt may hold beside the persona; passages best first."""

    question: str
    history: Sequence[Turn] = ()
    session_summary: str = ""
    passages: Sequence[P] = ()
    page: str = ""


@dataclass(slots=True)
class Allocation(Generic[P]):
    """The contents of a prompt beside persona and question."""

    summary: str = ""
    page: str = ""
    page_is_cut: bool = False
    turns: list[TurnPart] = field(default_factory=list)
    """Newest first."""
    passages: list[P] = field(default_factory=list)

    def parts(self, bare: PromptParts) -> PromptParts:
        """The parts of the prompt, with the persona, question and tag code of `bare`."""
        return PromptParts(
            persona=bare.persona,
            question=bare.question,
            tag_code=bare.tag_code,
            session_summary=self.summary,
            turns=tuple(reversed(self.turns)),
            passages=tuple(_part_of(passage) for passage in self.passages),
            page=self.page,
            page_is_cut=self.page_is_cut,
        )


class Allocator(Generic[P]):
    """Allocates rooms of several sizes to the same material. Each part is counted once, and only if it may fit."""

    def __init__(self, tags: PromptTags, count: Count, material: Material[P]) -> None:
        self._tags = tags
        self._count = count
        self._material = material
        self._summary = tags.escape(material.session_summary.strip())
        self._page = tags.escape(material.page.strip())
        self._counted: dict[str, int] = {}

    def allocate(self, room: int) -> Allocation[P]:
        """Choose what fits into so many tokens, joined as it was counted: part by part."""
        allocation: Allocation[P] = Allocation()
        kept = self._kept_for_passages(int(room * PASSAGES_SHARE)) if self._page else 0
        room -= self._add_page(allocation, room - kept, cut=False)
        share = min(int(room * HISTORY_SHARE), max(0, room - kept))
        used = self._add_summary(allocation, int(share * SUMMARY_SHARE))
        used += self._add_turns(allocation, share - used)
        used += self._add_page(allocation, room - kept - used, cut=True)
        used += self._add_passages(allocation, room - used)
        self._add_turns(allocation, room - used)
        return allocation

    def _kept_for_passages(self, most: int) -> int:
        """The tokens of all passages, or `most`."""
        needed = 0
        for passage in self._material.passages:
            if needed >= most:
                break
            needed += self._tokens(passage_block(self._tags, _part_of(passage)))
        return min(needed, most)

    def _add_page(self, allocation: Allocation[P], room: int, *, cut: bool) -> int:
        if not self._page or allocation.page:
            return 0
        allocation.page_is_cut = cut
        room -= self._tokens(page_block(self._tags, " ", is_cut=cut))
        text = cut_to_tokens(self._page, room, self._count)
        if not text or (len(text) < len(self._page)) != cut:
            return 0
        allocation.page = text
        return self._tokens(page_block(self._tags, text, is_cut=cut))

    def _add_summary(self, allocation: Allocation[P], room: int) -> int:
        room -= self._tokens(session_summary_block(self._tags, " "))
        allocation.summary = cut_to_tokens(self._summary, room, self._count)
        return self._tokens(session_summary_block(self._tags, allocation.summary))

    def _add_turns(self, allocation: Allocation[P], room: int) -> int:
        """Go on from the newest turn not added yet; stop at the first without room, to leave no hole."""
        used = 0
        history = self._material.history
        for index in range(len(history) - len(allocation.turns) - 1, -1, -1):
            turn = _turn_part(history[index])
            tokens = self._tokens(turn_block(self._tags, turn))
            if used + tokens > room:
                break
            used += tokens
            allocation.turns.append(turn)
        return used

    def _add_passages(self, allocation: Allocation[P], room: int) -> int:
        """Add the best passage, cut to an excerpt where it does not fit whole, then all that fit whole, best first."""
        passages = self._material.passages
        used = self._add_excerpt(allocation, room)
        densest = 1.0
        for passage in passages[1:] if used else passages:
            block = passage_block(self._tags, _part_of(passage))
            if len(block) > densest * DENSER * (room - used) and used:
                continue
            tokens = self._tokens(block)
            densest = max(densest, len(block) / max(tokens, 1))
            if used + tokens <= room:
                used += tokens
                allocation.passages.append(passage)
        return used

    def _add_excerpt(self, allocation: Allocation[P], room: int) -> int:
        best = next(iter(self._material.passages), None)
        if best is None or self._tokens(passage_block(self._tags, _part_of(best))) <= room:
            return 0
        room -= self._tokens(passage_block(self._tags, _part_of(best, " ")))
        cut = excerpt(best, self._material.question, room, self._count) if room > 0 else None
        if cut is None:
            return 0
        allocation.passages.append(cut)
        return self._tokens(passage_block(self._tags, _part_of(cut)))

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


def _part_of(passage: PassageLike, text: str | None = None) -> PassagePart:
    chunk_id: int | None = getattr(passage, "chunk_id", None)
    return PassagePart(passage.document, passage.heading, passage.text if text is None else text, chunk_id)

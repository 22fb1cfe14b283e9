"""Rolls the older turns of a session up into its summary: chooses the turns and builds the prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from rag.prompt.budget import (
    FORMAT_TOKENS,
    HISTORY_SHARE,
    LONG_QUESTION_CHARACTERS,
    SUMMARY_SHARE,
    Count,
    PromptTooLongError,
    Turn,
)
from rag.prompt.parts import PromptParts, TurnPart, compose, note_after_persona, session_summary_block, turn_block
from rag.prompt.sentences import cut_to_tokens
from rag.prompt.tags import PromptTags
from rag.providers.protocol import ChatMessage

QUESTION_TOKENS: Final = 256
"""The size of a question that is assumed when the history's share is computed."""
LEAST_SUMMARY_TOKENS: Final = 48
LEAST_ROOM_TOKENS: Final = 300
"""The least room for turns in the prompt of a roll-up: a question and an answer, both cut, and their tags."""
NOTE_TOKENS: Final = 200
"""Room that is kept for a note about the errors of a first try."""

_CODE_OF_COUNTING: Final = "7f3a9c1e"


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares of summary and turns in the history's room, in tokens.

    When summary and tail are larger than `history`, and a prompt had to leave turns out, the tail is rolled up until
    `kept` is left of it, and the new summary has at most `summary`. The rest is room for turns until the next roll-up.
    """

    history: int

    @classmethod
    def of_window(cls, context_window: int, *, max_output_tokens: int, persona_tokens: int) -> Self:
        """Compute the shares in a model's window."""
        room = context_window - max_output_tokens - persona_tokens - QUESTION_TOKENS
        return cls(max(0, int(room * HISTORY_SHARE)))

    @property
    def summary(self) -> int:
        """The largest size of a session's summary."""
        return int(self.history * SUMMARY_SHARE)

    def kept(self, tail_tokens: int) -> int:
        """Compute the size of the newest turns that stay out of a roll-up of a tail of so many tokens.

        They fit into the history's share of any prompt. At most half of the tail stays, or the next turn would cause
        another roll-up.
        """
        return min(self.history - self.summary, tail_tokens // 2)

    @property
    def can_hold_summary(self) -> bool:
        """Whether the window is large enough for a useful summary."""
        return self.summary >= LEAST_SUMMARY_TOKENS


@dataclass(frozen=True, slots=True)
class RollUpPrompt:
    """The prompt for a new summary of a session.

    It contains the first `turns` of the turns it was built from. The summary may contain the numbers of `source` only.
    """

    parts: PromptParts
    turns: int
    source: str

    def messages(self, note: str = "") -> list[ChatMessage]:
        """Make the messages. `note`, of at most `NOTE_TOKENS`, names the errors of an earlier try."""
        return compose(replace(self.parts, question=note))


def history_tokens(summary: str | None, turns: Sequence[Turn], count: Count) -> int:
    """Count the tokens of a session's summary and turns in a prompt."""
    tags = PromptTags(_CODE_OF_COUNTING)
    turn_tokens = (count(turn_block(tags, _in_a_prompt(turn))) for turn in turns)
    return count(session_summary_block(tags, summary or "")) + sum(turn_tokens)


def newest_that_stay(shares: Shares, turns: Sequence[Turn], count: Count) -> int:
    """Count the newest turns that stay out of a roll-up of a tail. The newest always stays."""
    tags = PromptTags(_CODE_OF_COUNTING)
    sizes = [count(turn_block(tags, _in_a_prompt(turn))) for turn in turns]
    room = shares.kept(sum(sizes))
    staying = 0
    for size in reversed(sizes):
        room -= size
        if room < 0 and staying:
            break
        staying += 1
    return staying


def build_roll_up(
    rules: str,
    summary: str | None,
    turns: Sequence[Turn],
    *,
    context_window: int,
    max_output_tokens: int,
    count: Count,
    tag_code: str | None = None,
) -> RollUpPrompt:
    """Fit the earlier summary and as many of the oldest turns as there is room for into a prompt; sizes in tokens.

    Args:
        rules: the rules of `session_summary.md`.
        summary: the session's summary so far.
        turns: oldest first, at least one. One that is too long is cut at the end of a sentence.
        context_window: prompt and summary together.
        max_output_tokens: the new summary's reserve.
        count: the tokens of a text.
        tag_code: as in `rag.prompt.budget.build_prompt`.

    Raises:
        PromptTooLongError: rules and earlier summary leave no room for a turn.
    """
    tags = PromptTags(tag_code)
    bare = PromptParts(rules, "", tags.code, session_summary=summary or "")
    head = count(rules + note_after_persona(tags)) + count(session_summary_block(tags, bare.session_summary))
    limit = context_window - max_output_tokens - NOTE_TOKENS - FORMAT_TOKENS
    taken = list(_fitting(tags, turns, limit - head, count)) if limit - head >= LEAST_ROOM_TOKENS else []
    while taken:
        parts = replace(bare, turns=tuple(taken))
        if sum(count(message["content"]) for message in compose(parts)) <= limit:
            return RollUpPrompt(parts, len(taken), _source(parts))
        taken.pop()  # parts counted alone and counted together may differ by a few tokens
    raise PromptTooLongError(
        persona=head, question=0, answer_reserve=max_output_tokens + NOTE_TOKENS, context_window=context_window
    )


def _fitting(tags: PromptTags, turns: Sequence[Turn], room: int, count: Count) -> Iterator[TurnPart]:
    left = room
    for turn in turns:
        part = _cut(turn, room, count)
        left -= count(turn_block(tags, part))
        if left < 0:
            return
        yield part


def _cut(turn: Turn, room: int, count: Count) -> TurnPart:
    """Cut a turn to a room: its question to a fourth, its answer or summary to half of it."""
    question = cut_to_tokens(turn.question[:LONG_QUESTION_CHARACTERS], room // 4, count)
    answer = cut_to_tokens(turn.answer if turn.summary is None else turn.summary, room // 2, count)
    return TurnPart(question, answer, is_summary=turn.summary is not None)


def _in_a_prompt(turn: Turn) -> TurnPart:
    """The form of a turn in the prompt of a question; its size may differ by a few tokens."""
    if turn.summary is None:
        return TurnPart(turn.question, turn.answer, is_summary=False)
    return TurnPart(turn.question[:LONG_QUESTION_CHARACTERS], turn.summary, is_summary=True)


def _source(parts: PromptParts) -> str:
    texts = [text for turn in parts.turns for text in (turn.question, turn.answer)]
    return "\n\n".join([parts.session_summary, *texts])

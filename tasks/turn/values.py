"""The values that the steps of a turn hand on. Each step returns a new one; none is changed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protostar_client.contract import ChatRequest, Usage

from models import Message, Session
from rag.prompt.budget import History
from rag.prompt.token_ratio import CorrectedCount
from rag.providers import CompletionRequest
from rag.search.retrieve import Passage
from tasks.billing.charges import OpenCharge
from tasks.engine.claim import Claim
from tasks.turn.answer_events import AnswerEvents
from tasks.turn.prompt_record import Recipe


@dataclass(frozen=True, slots=True)
class Turn:
    """A question that is stored, and open for the answer of this attempt alone.

    `stored` is the answer that an earlier attempt, or an earlier job with this id, has committed.
    """

    request: ChatRequest
    claim: Claim
    session: Session
    question_id: int
    stored: Message | None
    events: AnswerEvents


@dataclass(frozen=True, slots=True)
class Gathered:
    """The texts that a prompt is made of, beside the question.

    `tag_code` is the code of the session's prompt tags; None draws one. `count` counts tokens as the model does.
    """

    persona: str
    history: History
    passages: Sequence[Passage]
    tag_code: str | None
    count: CorrectedCount


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits the window: the request to send, the passages that it holds, and how to make it again."""

    request: CompletionRequest
    sources: list[dict[str, Any]]
    recipe: Recipe
    count: CorrectedCount

    @property
    def tokens(self) -> int:
        """The size of the prompt, as counted before it is sent."""
        return self.request.input_tokens


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """A whole answer as it came. Its text is in the turn's events."""

    prompt: FittedPrompt
    charge: OpenCharge
    finish_reason: str
    model: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an attempt has begun: all that the failure path stores and publishes (`ctx["unfinished"]`).

    `turn` is None for a job that is not a chat, `prompt` before a prompt is made, `charge` before a model is asked.
    """

    turn: Turn | None = None
    prompt: FittedPrompt | None = None
    charge: OpenCharge | None = None

"""The script of the model server: how it behaves for its next requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Fault = Literal[
    "refuse",  # breaks the connection off before the response starts
    "drop",  # breaks the connection off in the middle of the response
    "cut",  # closes the connection in the middle of the response, as if that were its end
    "end",  # a clean end of the body, without a finish reason
    "stall",  # silence
    "keep_alive",  # comments, as OpenRouter sends them while it waits
    "empty_deltas",  # chunks that hold no text
    "error_chunk",  # an error in the place of a chunk, as OpenRouter sends it; then a clean end
    "malformed",  # a line that is not JSON; then the answer goes on
    "empty_choices",  # a chunk without choices; then the answer goes on
]


class Behaviour(BaseModel):
    """One line of the script. The defaults of all fields together are an ordinary answer."""

    model_config = ConfigDict(extra="forbid")

    # Which requests; a condition that is left out always holds.
    endpoint: Literal["chat", "embeddings"] = "chat"
    model: str | None = None  # the request's model
    contains: str | None = None  # a part of the last user message, or of the last text
    times: int | None = 1  # how many requests; null: every one

    # Another response in place of an answer: any status, header and body.
    status: int = 200
    headers: dict[str, str] = {}
    error: dict[str, Any] | None = None  # body's or error chunk's `error`; has defaults
    body: str | None = None  # the body, as it is
    raw: list[str | float] | None = None  # the body, as it is: texts, and pauses in seconds; then the fault
    raw_times: int | None = 1  # how often in a row; null: for ever
    content_type: str = "application/json"
    encoding: str = "utf-8"  # of body and raw
    gzip: bool = False

    # The answer.
    pieces: list[str] | None = None  # text of each chunk; null: the voice answers
    first_delay_s: float = 0
    delay_s: float | None = None  # between pieces; null: the voice at its pace, a script at once
    finish_reason: str = "stop"
    usage: dict[str, Any] | Literal["counted", "absent"] = "counted"

    # After so many pieces (or all, if there are fewer) wait at the gate, then do the fault.
    after: int = 0
    hold: str | None = None  # a gate's name; `POST /control/release/NAME` opens it
    fault: Fault | None = None
    fault_s: float | None = None  # length of a silent or empty fault; null: for ever

    # How the bytes are laid out.
    line_end: Literal["\n", "\r\n", "\r"] = "\n"
    space: bool = True  # `data: {` or `data:{`
    comments: bool = False  # a comment before each event
    multi_line: bool = False  # each event's JSON over several `data` lines
    together: bool = False  # the whole answer in one write
    split_bytes: int | None = None  # writes of so many bytes each, also within a character

    @property
    def replaces_answer(self) -> bool:
        """Whether the response is something else than an answer."""
        return self.status != 200 or self.body is not None or self.raw is not None or self.fault == "refuse"


class Script:
    """The behaviours still to come, and the gates."""

    def __init__(self) -> None:
        self._behaviours: list[Behaviour] = []
        self._gates: dict[str, asyncio.Event] = {}
        self.waiting: dict[str, int] = {}

    def extend(self, behaviours: Iterable[Behaviour]) -> None:
        """Add behaviours behind those that are left."""
        self._behaviours.extend(behaviours)

    def reset(self) -> None:
        """Forget every behaviour; let every request that waits at a gate go on."""
        self._behaviours.clear()
        for gate in self._gates.values():
            gate.set()
        self._gates.clear()

    def take(self, endpoint: str, *, model: str, text: str) -> Behaviour:
        """The first behaviour that matches, counted down; an ordinary one if none does."""
        for behaviour in self._behaviours:
            if _matches(behaviour, endpoint, model, text):
                self._count_down(behaviour)
                return behaviour
        return Behaviour()

    def release(self, gate: str) -> None:
        """Open a gate for those that wait at it and those that come later."""
        self._gate(gate).set()

    async def pass_gate(self, name: str) -> None:
        """Wait until a gate is open."""
        self.waiting[name] = self.waiting.get(name, 0) + 1
        try:
            await self._gate(name).wait()
        finally:
            self.waiting[name] -= 1

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def _count_down(self, behaviour: Behaviour) -> None:
        if behaviour.times is None:
            return
        behaviour.times -= 1
        if behaviour.times <= 0:
            self._behaviours.remove(behaviour)


def _matches(behaviour: Behaviour, endpoint: str, model: str, text: str) -> bool:
    return (
        behaviour.endpoint == endpoint
        and behaviour.model in (None, model)
        and (behaviour.contains is None or behaviour.contains in text)
    )

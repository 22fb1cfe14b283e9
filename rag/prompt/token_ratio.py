"""How many tokens a model takes for one of ours, where its encoding is not OpenAI's. Pure.

Counted with `o200k_base` and measured against the tokenizers of Llama 3 and 4, Qwen 2.5, DeepSeek 4 and Mistral's
Tekken, Korean text took 0.84 to 1.16 of the count, English 0.98 to 1.07, code 1.00 to 1.07; with the
32,000 tokens of Mistral 7B Korean took up to 1.76 of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

FIRST_RATIO: Final = 1.2
"""Taken for a model of which nothing is known."""
LEAST_RATIO: Final = 0.8
MOST_RATIO: Final = 3.0
"""What a provider says beyond these is taken for them: there may be more in its count than the prompt."""
MARGIN: Final = 1.05
"""Over the largest recent ratio: the next prompt may hold more of what the model's tokenizer is bad at."""
RECENT: Final = 16
"""Answers whose ratios count. The ratio rises with the first larger one and falls when so many were smaller."""

LEAST_TOKENS: Final = 256
"""Of a prompt that tells a ratio: what the chat format adds says too much in a shorter one."""
LEAST_SHARE: Final = 0.5
"""A provider that says less of what was counted has left out what it had cached."""
UNNAMED_OVERFLOW: Final = 1.5
"""What the ratio rises by where a provider finds a prompt too long and does not say how long it is."""


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """The recent ratios of one model, newest first: tokens that its provider said, by those that were counted."""

    recent: tuple[float, ...] = (FIRST_RATIO,)

    @property
    def factor(self) -> float:
        """What a count is multiplied by to be safe."""
        return max(self.recent) * MARGIN

    def said(self, input_tokens: int, *, counted: int) -> Self:
        """The ratios once a provider has said how many tokens a prompt had, of which we counted `counted`."""
        if counted < LEAST_TOKENS or input_tokens < counted * LEAST_SHARE:
            return self
        return self._with(input_tokens / counted)

    def overflowed(self, *, factor: float) -> Self:
        """The ratios once a prompt counted with `factor` was too long, nobody says by how much."""
        return self._with(factor * UNNAMED_OVERFLOW)

    def _with(self, ratio: float) -> Self:
        newest = round(min(max(ratio, LEAST_RATIO), MOST_RATIO), 3)
        return type(self)((newest, *self.recent)[:RECENT])

    def dump(self) -> str:
        """The ratios as a line of text."""
        return " ".join(f"{ratio:g}" for ratio in self.recent)

    @classmethod
    def parse(cls, line: str) -> Self:
        """The ratios of a line that `dump` wrote; those of an unknown model where it is another one's."""
        try:
            recent = tuple(float(word) for word in line.split())
        except ValueError:
            return cls()
        if not recent or not all(LEAST_RATIO <= ratio <= MOST_RATIO for ratio in recent):
            return cls()
        return cls(recent[:RECENT])


@dataclass(frozen=True, slots=True)
class CorrectedCount:
    """A count of tokens, multiplied by a factor and rounded up; 1 for an encoding that is known."""

    count: Callable[[str], int]
    factor: float = 1.0

    def __call__(self, text: str) -> int:
        """The number of tokens of `text`, as the model is taken to count them."""
        return math.ceil(self.count(text) * self.factor)

    def uncorrected(self, tokens: int) -> int:
        """Give back what was counted for so many corrected tokens, to a token or two."""
        return round(tokens / self.factor)

"""What to do with a prompt that the model's provider finds too long. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SHRINK: Final = 2 / 3
"""Of the refused prompt and its answer, where the provider names no number that explains the refusal."""

_LEAST_NAMED: Final = 128
"""A smaller number names something else than a window."""

_NUMBER: Final = r"(?<![\d,_])(\d[\d,_]*+)"
_LIMIT: Final = re.compile(
    rf"(?:context (?:length|window|size)|maximum(?: number of tokens allowed)?|max(?:imum)? tokens allowed)"
    rf"\D{{0,40}}?{_NUMBER}|>\s*{_NUMBER} (?:tokens? )?maximum",
    re.IGNORECASE,
)
_PROMPT: Final = re.compile(
    rf"{_NUMBER} (?:tokens )?in (?:the|your) (?:messages|prompt)|{_NUMBER} (?:of text input|(?:input|prompt) tokens)"
    rf"|(?:messages resulted in|prompt is too long:?|input token count \(?|request \(|prompt contains(?: at least)?)"
    rf"\s*{_NUMBER}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Named:
    """The numbers of a provider's message: the model's window and the prompt's size in tokens, None if not named."""

    window: int | None
    prompt: int | None


def named_in(message: str) -> Named:
    """What a provider's message about an overflow says."""
    return Named(_first(_LIMIT, message), _first(_PROMPT, message))


def smaller_window(named: Named, *, counted: int, corrected: int, max_output_tokens: int, context_window: int) -> int:
    """The window for a prompt in the place of a refused one.

    Args:
        named: what the provider said.
        counted: the refused prompt's tokens as they were counted for it.
        corrected: the same, counted again with what the refusal has told of the model's encoding.
        max_output_tokens: the answer's reserve.
        context_window: the one the refused prompt was built for.
    """
    window = min(named.window or context_window, context_window)
    if corrected + max_output_tokens > window:
        return window
    # By these numbers the same prompt would be made again.
    return min(window, int((max(counted, corrected) + max_output_tokens) * SHRINK))


def _first(pattern: re.Pattern[str], message: str) -> int | None:
    match = pattern.search(message)
    if match is None:
        return None
    number = int(re.sub(r"\D", "", next(group for group in match.groups() if group)))
    return number if number >= _LEAST_NAMED else None

"""Chooses the window for a prompt that takes the place of one that was too long. Pure."""

from __future__ import annotations

from typing import Final

from rag.providers.vendor_messages import OverflowSizes

SHRINK: Final = 2 / 3
"""The share of the refused prompt and its answer, where the provider names no size that explains the refusal."""


def smaller_window(
    named: OverflowSizes, *, counted: int, corrected: int, max_output_tokens: int, context_window: int
) -> int:
    """Choose the window for a prompt in the place of a refused one.

    Args:
        named: the sizes that the provider named.
        counted: the refused prompt's tokens as they were counted for it.
        corrected: the same, counted again with the token ratio after the refusal.
        max_output_tokens: the answer's reserve.
        context_window: the one the refused prompt was built for.
    """
    window = min(named.window or context_window, context_window)
    if corrected + max_output_tokens > window:
        return window
    # With these numbers the same prompt would be built again.
    return min(window, int((max(counted, corrected) + max_output_tokens) * SHRINK))

"""The one table of what vendors' error codes and sentences mean. Pure.

Statuses decide first (`rag.providers.errors`); these patterns decide where a status has several meanings, or where an
error has none. They search text that is cut to 2,000 characters, and each is linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Meaning(Enum):
    """What an error of a provider is about. The value is a pattern of codes, types and sentences."""

    CONTEXT_LENGTH = (
        # OpenAI, vLLM, OpenRouter: `context_length_exceeded`, "maximum context length is 8192 tokens"
        # llama.cpp: `exceed_context_size_error`, "exceeds the available context size"
        r"context[ _-]?(?:length|window|size)"
        # xAI, Azure: "maximum prompt length"; Google: "exceeds the maximum number of tokens allowed"
        r"|maximum (?:context|prompt|input|number of tokens allowed)"
        # Anthropic: "prompt is too long: 208310 tokens > 200000 maximum"; Bedrock: "input is too long"
        r"|(?:prompt|input) is too long"
        # Cohere, Mistral: "too many tokens", "too many input tokens"
        r"|too many (?:input )?tokens"
    )
    CONTENT_FILTER = (
        # OpenAI: `content_policy_violation`; Azure: `content_filter`, "Azure OpenAI's content management policy"
        r"content_(?:filter|policy)|content management policy"
        # OpenRouter: "requires moderation ... flagged for"
        r"|moderation|flagged"
    )
    NO_CREDIT = (
        # OpenAI: `insufficient_quota`, "exceeded your current quota, please check your plan and billing details"
        # OpenRouter: "Insufficient credits", `insufficient_credits`
        r"insufficient[_ ](?:quota|credits)|billing"
    )
    RATE_LIMIT = (
        # OpenAI: `rate_limit_exceeded`; Anthropic: `rate_limit_error`; Fireworks: `ratelimit`
        r"rate_?limit"
    )
    KEY_REFUSED = (
        # OpenAI: `invalid_api_key`, "Incorrect API key provided"; Anthropic: `authentication_error`, `permission_error`
        # OpenRouter: "No auth credentials found", "User not found"; others: "Unauthorized"
        r"api[ _-]key|authenti|auth credentials|unauthorized|permission"
    )
    MODEL_UNKNOWN = (
        # OpenAI, Anthropic: `model_not_found`, "The model `x` does not exist"; OpenRouter: "x is not a valid model ID"
        # Ollama: "model 'x' not found"; vLLM: "The model `x` does not exist."
        r"model.{0,60}(?:not.?found|not exist|unknown|invalid)|not a valid model"
    )
    REQUEST_REFUSED = (
        # OpenAI, Anthropic: the types `invalid_request_error`, `not_found_error`
        r"invalid_request|not_found"
    )


_PATTERNS: Final = {meaning: re.compile(meaning.value, re.IGNORECASE) for meaning in Meaning}

_NUMBER: Final = r"(?<![\d,_])(\d[\d,_]*+)"
_WINDOW: Final = re.compile(
    # OpenAI, vLLM: "maximum context length is 8192 tokens"; llama.cpp: "available context size (4096 tokens)"
    rf"(?:context (?:length|window|size)"
    # Google: "the maximum number of tokens allowed (1048576)"
    rf"|maximum(?: number of tokens allowed)?|max(?:imum)? tokens allowed)\D{{0,40}}?{_NUMBER}"
    # Anthropic: "> 200000 maximum"
    rf"|>\s*{_NUMBER} (?:tokens? )?maximum",
    re.IGNORECASE,
)
_PROMPT: Final = re.compile(
    # OpenAI: "(8292 in the messages, 924 in the completion)"
    rf"{_NUMBER} (?:tokens )?in (?:the|your) (?:messages|prompt)"
    # OpenRouter: "(138976 of text input, 1024 in the output)"; vLLM: "has 3500 input tokens"
    rf"|{_NUMBER} (?:of text input|(?:input|prompt) tokens)"
    # OpenAI: "your messages resulted in 9015 tokens"; Anthropic: "prompt is too long: 208310 tokens"
    rf"|(?:messages resulted in|prompt is too long:?"
    # Google: "The input token count (1200000)"; llama.cpp: "request (5012 tokens)"; vLLM: "prompt contains at least"
    rf"|input token count \(?|request \(|prompt contains(?: at least)?)\s*{_NUMBER}",
    re.IGNORECASE,
)
_LEAST_SIZE: Final = 128
"""A smaller number is not a size in tokens."""
_LONGEST_NUMBER: Final = 12


@dataclass(frozen=True, slots=True)
class OverflowSizes:
    """The sizes that a provider names when a prompt is too long, in tokens; None where it names none."""

    window: int | None
    prompt: int | None


def means(meaning: Meaning, text: str) -> bool:
    """Whether a code, a type or a sentence of an error has this meaning."""
    return _PATTERNS[meaning].search(text) is not None


def overflow_sizes(message: str) -> OverflowSizes:
    """Read the sizes in a message about a prompt that is too long."""
    return OverflowSizes(_size(_WINDOW, message), _size(_PROMPT, message))


def _size(pattern: re.Pattern[str], message: str) -> int | None:
    match = pattern.search(message)
    if match is None:
        return None
    digits = next(group for group in match.groups() if group).replace(",", "").replace("_", "")
    if len(digits) > _LONGEST_NUMBER:
        return None
    size = int(digits)
    return size if size >= _LEAST_SIZE else None

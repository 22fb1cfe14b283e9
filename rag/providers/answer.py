"""Reads OpenAI-compatible bodies and chunks without typed models, and trusts no field.

Typed parsing costs five to twenty times as much per token, and expects a correct server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from protostar_client.contract import Usage
from protostar_client.normalization import clean_text

from rag.providers.errors import Translator
from rag.providers.protocol import Completion, CompletionRequest, Finish

MOST_CHARACTERS_A_TOKEN: Final = 64
"""Four characters are usual. Above this average the provider does not keep the limit on tokens."""

FINISH_REASON_CHARACTERS: Final = 32
MODEL_CHARACTERS: Final = 200
MOST_TOKENS: Final = 100_000_000
MOST_COST: Final = 1_000_000
"""A larger usage is not credible, and the worker's own count is used."""


class AnswerReader:
    """Reads the chunks of a stream: the text of each, and at the end the finish reason, the model and the usage."""

    def __init__(self, request: CompletionRequest, translator: Translator) -> None:
        self._prompt = prompt_texts(request)
        self._translator = translator
        self._model = request.model
        self._usage: Usage | None = None
        self._half = ""
        self._refusal = False
        self._characters = 0
        self._thoughts = 0
        self._most_characters = most_characters(request)
        self.finish_reason: str | None = None

    def take(self, chunk: dict[str, Any]) -> tuple[str, bool]:
        """Return the chunk's text, and whether it contains a token. A token of reasoning has no text.

        Raises:
            ProviderError: the chunk contains an error, or the answer passes the limit on tokens.
        """
        choice = _first_choice(chunk)
        if error_of(chunk) or error_of(choice):
            raise self._translator.of_body(chunk if error_of(chunk) else choice, status=200, prompt=self._prompt)
        self._model = _name(chunk.get("model")) or self._model
        self._usage = usage_of(chunk) or self._usage
        self.finish_reason = _name(choice.get("finish_reason"), FINISH_REASON_CHARACTERS) or self.finish_reason
        delta = _mapping(choice.get("delta"))
        thought = _text(delta.get("reasoning")) or _text(delta.get("reasoning_content"))
        text = _text(delta.get("content"))
        self._refusal = self._refusal or bool(delta.get("refusal"))
        self._characters += len(text)
        self._thoughts += len(thought)
        if max(self._characters, self._thoughts) > self._most_characters:
            raise self._translator.endless(self._most_characters)
        return self._whole_characters(text), bool(text or thought)

    def finish(self) -> Finish:
        """Return the end of the answer.

        Raises:
            ProviderError: no finish reason arrived, it stands for a failure, or the answer has no text.
        """
        reason = check_finish_reason(self.finish_reason, self._translator)
        if not self._characters:
            raise self._translator.wordless(reason, refused=self._refusal)
        return Finish(finish_reason=reason, model=self._model, usage=self._usage)

    def _whole_characters(self, text: str) -> str:
        """Join a character whose two surrogates arrived in two chunks."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        if text.isascii():
            return text
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def most_characters(request: CompletionRequest) -> int:
    """Compute the length above which an answer must have passed its limit on tokens."""
    return request.max_output_tokens * MOST_CHARACTERS_A_TOKEN


def json_object(text: str, translator: Translator) -> dict[str, Any]:
    """Parse the JSON object of a response's body.

    Raises:
        ProviderError: the body is not a JSON object.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise translator.unavailable("answered with something else than JSON; check the base URL")
    return body


def completion_of(body: Mapping[str, Any], request: CompletionRequest, translator: Translator) -> Completion:
    """Read the answer of a body that is not streamed.

    Raises:
        ProviderError: the body does not contain a whole answer.
    """
    choice = _first_choice(body)
    if error_of(body) or error_of(choice):
        holder = body if error_of(body) else choice
        raise translator.of_body(holder, status=200, prompt=prompt_texts(request))
    message = _mapping(choice.get("message"))
    if message.get("refusal") and not message.get("content"):
        raise translator.filtered()
    text = _text(message.get("content"))
    if len(text) > most_characters(request):
        raise translator.endless(most_characters(request))
    return Completion(
        text=text,
        finish_reason=check_finish_reason(_name(choice.get("finish_reason"), FINISH_REASON_CHARACTERS), translator),
        model=_name(body.get("model")) or request.model,
        usage=usage_of(body),
    )


def vectors_of(body: Mapping[str, Any], texts: Sequence[str], translator: Translator) -> list[list[float]]:
    """Read the vectors of an embeddings body, in the order of `texts`.

    Raises:
        ProviderError: the body does not contain one finite vector per text, all of one length.
    """
    if error_of(body):
        raise translator.of_body(body, status=200, prompt=texts)
    found = body.get("data")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    indexes = [row.get("index", position) for position, row in enumerate(rows)]
    by_index = {index: row.get("embedding") for index, row in zip(indexes, rows, strict=True) if type(index) is int}
    try:
        vectors = np.array([by_index[position] for position in range(len(texts))], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        vectors = np.empty(0)
    if len(rows) != len(texts) or vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise translator.unavailable(f"did not give one vector for each of {len(texts)} texts")
    numbers: list[list[float]] = vectors.tolist()
    return numbers


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """Read the provider's count of tokens, and OpenRouter's cost; None unless both counts are there and credible."""
    usage = _mapping(body.get("usage"))
    input_tokens = _number(usage.get("prompt_tokens"), MOST_TOKENS)
    output_tokens = _number(usage.get("completion_tokens"), MOST_TOKENS)
    if input_tokens is None or output_tokens is None:
        return None
    cost = _number(usage.get("cost"), MOST_COST)
    return Usage(input_tokens=int(input_tokens), output_tokens=int(output_tokens), cost=cost)


def error_of(body: Mapping[str, Any]) -> bool:
    """Whether a body, a chunk or a choice contains an error."""
    return bool(body.get("error"))


def check_finish_reason(reason: str | None, translator: Translator) -> str:
    """Return the reason, if it ends an answer.

    Raises:
        ProviderError: there is no reason, or it stands for a failure or a content filter.
    """
    if not reason:
        raise translator.unavailable("ended the answer without a finish reason")
    if reason == "error":
        raise translator.unavailable("failed in the middle of the answer")
    if reason == "content_filter":
        raise translator.filtered()
    return reason


def prompt_texts(request: CompletionRequest) -> list[str]:
    """List the texts of a prompt, which no error message may quote."""
    return [message["content"] for message in request.messages]


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the choice of index 0. A server may send further ones, which were not requested."""
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return {}


def _number(value: object, most: int) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None  # NaN is in no range


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: object, characters: int = MODEL_CHARACTERS) -> str:
    """Clean and cut a name, which is stored in a column."""
    return clean_text(_text(value)[:characters]).strip()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""

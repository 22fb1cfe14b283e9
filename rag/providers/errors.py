"""Translates a provider's statuses, bodies and exceptions into one family of errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from rag.providers.protocol import (
    ContentFilteredError,
    ContextLengthError,
    FatalProviderError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
)
from rag.providers.vendor_messages import Meaning, means

_SHOWN_CHARACTERS: Final = 200
_SEARCHED_CHARACTERS: Final = 2_000
"""A longer message of a provider is cut before it is searched."""
_LONGEST_WAIT_S: Final = 86_400.0
_QUOTE_CHARACTERS: Final = 12
"""A run of so many characters that the provider's message shares with the prompt is a quotation."""

_KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|key)-[\w*.-]{4,}|\bBearer\s+\S+")

_REFUSALS: Final = (Meaning.REQUEST_REFUSED, Meaning.KEY_REFUSED)

_LEFT_OUT: Final = "its message quotes the request and is left out"

_TRANSPORT_FAULTS: Final = {"TransportError", "StreamError", "DecodingError", "NoResponseError"}
_OUR_FAULTS: Final = {"UnsupportedProtocol", "LocalProtocolError"}

_ADVICE: Final = {
    401: "check the API key",
    402: "check the account's credit",
    403: "check what the API key may do",
    404: "check the model's name and the base URL",
    501: "it can't do this: use another server or model",
}


class Translator:
    """Makes the errors of one provider. Their messages never contain the key or a piece of a prompt."""

    def __init__(self, provider: str, *, api_key: str) -> None:
        self._provider = provider
        self._api_key = api_key

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn every exception into a `ProviderError`.

        The original is not chained: an SDK's exceptions contain bodies and headers, which a log would print.
        """
        try:
            yield
        except ProviderError:
            raise
        except Exception as error:
            raise self.of_exception(error) from None

    def of_exception(self, error: Exception) -> ProviderError:
        """Make the error for an exception of httpx or of an SDK."""
        kind = type(error).__name__
        if _is_transport_error(error):
            return ProviderUnavailableError(f"{self._provider} can't be reached or broke off ({kind}); try again later")
        return FatalProviderError(f"{self._provider} could not be asked ({kind}); check its key, base URL and version")

    def of_body(
        self,
        body: object,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        prompt: Sequence[str] = (),
        text: str = "",
    ) -> ProviderError:
        """Make the error for a body, or for a chunk, that holds an `error`.

        `status` is the response's own. `text` is the body: JSON that was cut is searched, but not shown.
        """
        details = _details(body)
        status = status if status >= 400 else _status_in(details.get("code")) or status
        shown = self._safe(_cut(details.get("message")), prompt)
        if shown == _LEFT_OUT:
            shown += _sizes_in(details)
        marks = " ".join(_cut(details.get(name)) for name in ("code", "type", "message"))
        if not details and text.startswith("{"):
            marks = _cut(text)
        return _classify(status, marks, self._message(status, shown), retry_after_s(headers or {}))

    def of_response(self, status: int, text: str, headers: Mapping[str, str], prompt: Sequence[str]) -> ProviderError:
        """Make the error for a response with any body."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        if status < 400 and not _details(body):
            return self.unavailable("answered with something else than a completion; check the base URL")
        return self.of_body(body, status=status, headers=headers, prompt=prompt, text=text)

    def unavailable(self, what: str) -> ProviderUnavailableError:
        """Make the error for an answer that is not whole."""
        return ProviderUnavailableError(f"{self._provider} {what}")

    def filtered(self) -> ContentFilteredError:
        """Make the error for an answer that the provider refused for its content."""
        return ContentFilteredError(f"{self._provider} filtered the answer for its content; ask in another way")

    def fatal(self, what: str) -> FatalProviderError:
        """Make the error for an answer that another attempt would not improve."""
        return FatalProviderError(f"{self._provider} {what}")

    def endless(self, characters: int) -> FatalProviderError:
        """Make the error for an answer that is longer than its limit on tokens allows."""
        return self.fatal(f"went on after {characters} characters; it keeps no limit on tokens")

    def wordless(self, finish_reason: str, *, refused: bool) -> ProviderError:
        """Make the error for an answer without text."""
        if refused:
            return self.filtered()
        if finish_reason == "length":
            return self.fatal("used up the answer's tokens before its first word; raise PROTOSTAR_MAX_OUTPUT_TOKENS")
        if finish_reason in ("tool_calls", "function_call"):
            return self.fatal("asked for a tool in place of an answer, and there are none; use another model")
        return self.unavailable("ended the answer without a word")

    def _message(self, status: int, message: str) -> str:
        answered = f"{self._provider} answered {status}" if status >= 400 else f"{self._provider} reported an error"
        advice = _ADVICE.get(status, "")
        return ": ".join(filter(None, (answered, message))) + (f" ({advice})" if advice else "")

    def _safe(self, message: str, prompt: Sequence[str]) -> str:
        if self._api_key:
            message = message.replace(self._api_key, "***")
        message = " ".join(_KEY_LIKE.sub("***", message).split())[:_SHOWN_CHARACTERS]
        if any(_quotes(message, text) for text in prompt):
            return _LEFT_OUT
        return message


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read the seconds to wait from the headers, a number or an HTTP date; None without either."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST_WAIT_S)
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is not None:
        return min(seconds, _LONGEST_WAIT_S)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # A date in "-0000" has no zone; HTTP dates are in UTC.
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - datetime.now(UTC)).total_seconds()), _LONGEST_WAIT_S)


def _classify(status: int, marks: str, message: str, wait_s: float | None) -> ProviderError:
    if means(Meaning.NO_CREDIT, marks) and status in (402, 429):
        return FatalProviderError(message)
    if status == 429:
        return RateLimitedError(message, retry_after_s=wait_s)
    if status not in (401, 402, 404) and means(Meaning.CONTENT_FILTER, marks):
        return ContentFilteredError(message)
    if status not in (401, 402, 403, 404) and means(Meaning.CONTEXT_LENGTH, marks):
        return ContextLengthError(message)
    if status == 413:
        return ContextLengthError(message)
    if status < 400:
        return _classify_unnumbered(marks, message, wait_s)
    if (status >= 500 and status != 501) or status in (408, 409, 425):
        return ProviderUnavailableError(message, retry_after_s=wait_s)
    return FatalProviderError(message)


def _classify_unnumbered(marks: str, message: str, wait_s: float | None) -> ProviderError:
    if means(Meaning.RATE_LIMIT, marks):
        return RateLimitedError(message, retry_after_s=wait_s)
    if any(means(meaning, marks) for meaning in _REFUSALS):
        return FatalProviderError(message)
    return ProviderUnavailableError(message, retry_after_s=wait_s)


def _details(body: object) -> dict[str, Any]:
    """Find the error object of a body: OpenAI's `error`, or the `message` or `detail` of other servers."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error")
    if isinstance(error, dict):
        return error
    message = error or body.get("message") or body.get("detail")
    return {"message": message, "code": body.get("code")} if isinstance(message, str) else {}


def _sizes_in(details: Mapping[str, Any]) -> str:
    """Format the sizes of llama.cpp, which stand beside its message, for an error without that message."""
    window, prompt = details.get("n_ctx"), details.get("n_prompt_tokens")
    if type(window) is not int or type(prompt) is not int:
        return ""
    return f": a context window of {window} tokens, {prompt} tokens in the prompt"


def _status_in(code: object) -> int | None:
    """Read the HTTP status that OpenRouter puts into the code of an error."""
    number = _number(_cut(code)) if isinstance(code, int | str) else None
    return int(number) if number is not None and 400 <= number < 600 else None


def _is_transport_error(error: BaseException) -> bool:
    """Whether the network or the server failed. A wrong URL or header is an error of ours.

    The classes are found by their names, which are the same in httpx and httpx2: the SDK decides which it uses.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _OUR_FAULTS:
        return False
    if names & _TRANSPORT_FAULTS or isinstance(error, OSError):
        return True
    return error.__cause__ is not None and _is_transport_error(error.__cause__)


def _cut(value: object) -> str:
    return value[:_SEARCHED_CHARACTERS] if isinstance(value, str) else str(value or "")[:_SEARCHED_CHARACTERS]


def _quotes(message: str, text: str) -> bool:
    """Whether two texts share a run of 12 characters. Each contains an aligned block of 6, which is searched first."""
    text = " ".join(text.split())
    if len(text) <= _QUOTE_CHARACTERS:
        return bool(text) and text in message
    half = _QUOTE_CHARACTERS // 2
    for block in range(0, len(message) - half + 1, half):
        if message[block : block + half] in text:
            starts = range(max(0, block - half), min(block, len(message) - _QUOTE_CHARACTERS) + 1)
            if any(message[start : start + _QUOTE_CHARACTERS] in text for start in starts):
                return True
    return False


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None

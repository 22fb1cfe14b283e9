"""Counts tokens exactly for OpenAI's encodings, offline, in linear time for text of any shape."""

from __future__ import annotations

import re
import string
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

import tiktoken

from rag.corpus.encodings import DEFAULT_ENCODING, find_encoding_name, load_encoding
from rag.corpus.graphemes import next_boundary, previous_boundary

# tiktoken matches a whole text with one regular expression whose cost and stack explode on huge runs.
PART_CHARACTERS: Final = 50_000
# Characters that a cut encodes for each token that it may keep; if they are too few, it encodes more.
_CHARACTERS_A_TOKEN: Final = 6
_CHARACTERS_A_WIDE_TOKEN: Final = 4

_PUNCTUATION: Final = string.punctuation
_ENDS_WORD: Final = re.compile("[0-9A-Za-z가-힣]")
_REMEMBERED_CHARACTERS: Final = 16
_REMEMBERED_ENDS: Final = 4096


class TokenCounter:
    """Counts the tokens of texts for a model, or for an encoding by its name.

    Special tokens in a text (`<|endoftext|>`) count as plain text. Where `exact` is false, the model's encoding is not
    known: `o200k_base` is used, and the caller should keep a margin.
    """

    def __init__(self, model: str) -> None:
        name = find_encoding_name(model)
        self.exact = name is not None
        self.encoding_name = name or DEFAULT_ENCODING
        self._ends: dict[str, int] = {}

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return load_encoding(self.encoding_name)

    def count(self, text: str) -> int:
        """The number of tokens of `text`."""
        encode = self._encoding.encode_ordinary
        if len(text) <= PART_CHARACTERS:
            return len(encode(text))
        return sum(len(encode(part)) for part in _parts(text))

    def count_stripped(self, text: str, tokens: int) -> int:
        """The number of tokens of `text.rstrip()`, given that `text` has `tokens` and at most `PART_CHARACTERS`."""
        stripped = text.rstrip()
        word = stripped.rstrip(_PUNCTUATION)
        if len(stripped) == len(text) or not word or not _ENDS_WORD.match(word[-1]):
            return tokens if len(stripped) == len(text) else self.count(stripped)
        # Every encoding separates punctuation and white space from the word before.
        return tokens - self._count_end(text[len(word) :]) + self._count_end(stripped[len(word) :])

    def _count_end(self, text: str) -> int:
        known = self._ends.get(text)
        if known is None:
            known = self.count(text)
            if len(text) <= _REMEMBERED_CHARACTERS and len(self._ends) < _REMEMBERED_ENDS:
                self._ends[text] = known
        return known

    def head(self, text: str, tokens: int) -> str:
        """The longest beginning of `text` with at most `tokens` tokens, cut between characters."""
        return text[: self._cut(text, tokens, from_end=False)]

    def pieces(self, text: str, tokens: int) -> Iterator[str]:
        """Cut `text` between characters into pieces of at most `tokens` tokens; a character with more is one piece."""
        for part in _parts(text):
            _, offsets = self._encoding.decode_with_offsets(self._encoding.encode_ordinary(part))
            start = 0
            while start < len(part):
                after = bisect_left(offsets, start) + tokens
                end = previous_boundary(part, offsets[after]) if after < len(offsets) else len(part)
                size = self._fit(part[start:end], end - start, tokens, from_end=False)
                size = size or next_boundary(part, start + 1) - start
                yield part[start : start + size]
                start += size

    def tail(self, text: str, tokens: int) -> str:
        """The longest end of `text` with at most `tokens` tokens, cut between characters."""
        size = self._cut(text, tokens, from_end=True)
        return text[len(text) - size :] if size else ""

    def tail_starts(self, text: str, sizes: Sequence[int]) -> list[int]:
        """For each of `sizes`, the start of the last so many tokens of `text`, moved to the next whole character."""
        most = max(sizes)
        window = text[-most * _CHARACTERS_A_TOKEN :]
        if not window.isascii():
            window = text[-most * _CHARACTERS_A_WIDE_TOKEN :]
        ids = self._encode_part(window)
        if len(ids) < most and len(window) < len(text):
            window = text[-most * _CHARACTERS_A_TOKEN :]
            ids = self._encode_part(window)
        starts = []
        for size in sizes:
            kept = self._encoding.decode_bytes(ids[-size:]) if size < len(ids) else window.encode()
            length = len(kept.decode("utf-8", errors="ignore"))
            starts.append(next_boundary(text, len(text) - length))
        return starts

    def _encode_part(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text) if len(text) <= PART_CHARACTERS else []

    def _cut(self, text: str, tokens: int, *, from_end: bool) -> int:
        """The number of characters at one end of `text` that have at most `tokens` tokens."""
        if tokens <= 0:
            return 0
        encoding = self._encoding
        window = max(64, tokens * _CHARACTERS_A_TOKEN)
        while True:
            part = text[-window:] if from_end else text[:window]
            ids = self._encode_part(part)
            if len(ids) > tokens or window >= min(len(text), PART_CHARACTERS):
                break
            window = min(window * 4, PART_CHARACTERS)
        if len(ids) <= tokens:
            return len(part)
        kept = encoding.decode_bytes(ids[-tokens:] if from_end else ids[:tokens])
        size = len(kept.decode("utf-8", errors="ignore"))
        return self._fit(part, size, tokens, from_end=from_end)

    def _fit(self, text: str, size: int, tokens: int, *, from_end: bool) -> int:
        """Shrink a cut until its text alone has at most `tokens` tokens and ends at a boundary."""
        while size > 0:
            at = len(text) - size if from_end else size
            at = next_boundary(text, at) if from_end else previous_boundary(text, at)
            size = len(text) - at if from_end else at
            if self.count(text[at:] if from_end else text[:at]) <= tokens:
                return size
            size -= 1
        return 0


def counts_add(before: str, after: str) -> bool:
    """Whether the tokens of `before + after` are certainly the sum of both counts.

    Every carried encoding first cuts a text into words, and a word ends after the last of a row of line feeds unless
    white space or a slash follows.
    """
    return before.endswith("\n") and after[:1] != "/" and not after[:1].isspace()


def _parts(text: str) -> list[str]:
    """`text` in parts, cut where a word begins after a space: there the encodings cut as well."""
    parts = []
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        space = text.rfind(" ", start + PART_CHARACTERS // 2, end)
        while space > 0 and not (text[space - 1].isalpha() and text[space + 1].isalpha()):
            space = text.rfind(" ", start + PART_CHARACTERS // 2, space)
        end = space if space > 0 else previous_boundary(text, end)
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return parts

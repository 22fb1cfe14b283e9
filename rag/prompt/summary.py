"""Builds the prompt of a summary, and checks the summary: one paragraph, three sentences, no new number. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rag.prompt.budget import Count, PassageLike, build_prompt
from rag.prompt.numbers import numbers_of, numbers_outside, unsupported_numbers
from rag.prompt.sentences import cut_to_tokens, sentence_ends, split_sentences
from rag.providers.protocol import ChatMessage

MAX_SENTENCES: Final = 3
MAX_CHARACTERS: Final = 1_000
"""The longest summary. A longer text is not its own summary, however few sentences it has."""

_CODE_FENCE: Final = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_HEADING: Final = re.compile(r"^[ \t]*#{1,6}(?:[ \t][^\n]*)?$", re.MULTILINE)
_RULE: Final = re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE)
_LIST_ITEM: Final = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_BLOCK: Final = re.compile(r"^[ \t]*(?:```|~~~|#{1,6}[ \t]|\||>)", re.MULTILINE)
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*\n")
_DIGITS_AND_MARKS: Final = "0123456789.,"
_MOST_NAMED: Final = 10
_MOST_DIGITS: Final = 20
_THOUGHT: Final = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_LABEL: Final = re.compile(r"^[*_#\s]*(?:요약(?:문)?|summary|tl;dr)[*_]*\s*[:：][*_]*\s*", re.IGNORECASE)
_CLOSERS: Final = "\"'”’)]」』》*_"
_END_MARKS: Final = tuple(".!?。！？…:;,")


def build_summary_prompt(
    rules: str,
    answer: str,
    *,
    context_window: int,
    max_output_tokens: int,
    count: Count,
    note: str = "",
    tag_code: str | None = None,
) -> list[ChatMessage]:
    """Build the messages of a request for the summary of an answer. All sizes are tokens.

    `rules` are the rules of `summary.md`. `note` names the errors of an earlier try (`what_is_wrong`).

    Raises:
        PromptTooLongError: the rules and the note alone do not fit beside the summary's reserve.
    """
    no_passages: Sequence[PassageLike] = ()
    return build_prompt(
        rules,
        note,
        passages=no_passages,
        page_context=answer,
        context_window=context_window,
        max_output_tokens=max_output_tokens,
        count=count,
        tag_code=tag_code,
    ).messages


def short_enough(answer: str) -> bool:
    """Whether an answer is its own summary, so that no request is needed."""
    text = answer.strip()
    if len(text) > MAX_CHARACTERS or _BLANK_LINE.search(text):
        return False
    if _BLOCK.search(text) or _LIST_ITEM.search(text):
        return False
    return len(split_sentences(text)) <= MAX_SENTENCES


def what_is_wrong(text: str, source: str, *, max_sentences: int | None = MAX_SENTENCES) -> str:
    """Describe, for the model, the rules that its summary of `source` breaks; empty where it breaks none."""
    paragraph = to_paragraph(text)
    if not paragraph:
        return "Your summary was empty. Write it."
    wrong = []
    size = len(split_sentences(paragraph))
    if max_sentences is not None and size > max_sentences:
        wrong.append(f"it had {size} sentences, and {max_sentences} are the most")
    elif max_sentences is not None and len(paragraph) > MAX_CHARACTERS:
        wrong.append("it was too long")
    if numbers := unsupported_numbers(paragraph, source):
        named = ", ".join(number[:_MOST_DIGITS] for number in numbers[:_MOST_NAMED])
        wrong.append(f"it held numbers that the text does not hold ({named})")
    return f"Your last summary was wrong: {'; '.join(wrong)}. Write it again by the rules." if wrong else ""


def to_summary(text: str) -> str:
    """Turn a model's text into one paragraph of at most three sentences, cut at the end of a sentence.

    The result may be empty.
    """
    paragraph = to_paragraph(text)
    ends = [0, *sentence_ends(paragraph)][: MAX_SENTENCES + 1]
    fitting = [end for end in ends if end <= MAX_CHARACTERS]
    if len(ends) > 1 and fitting == [0]:
        return _cut_at_word(paragraph)
    return paragraph[: fitting[-1]].strip()


def to_supported_summary(text: str, source: str) -> str:
    """Turn a model's text into a summary without the sentences that contain a number that is not in `source`.

    Where no sentence is left, the summary is the first sentences of the source.
    """
    return to_summary(without_unsupported(to_paragraph(text), source)) or to_summary(source)


def to_session_summary(text: str, source: str, *, max_tokens: int, count: Count) -> str:
    """Turn a model's text into one paragraph of at most `max_tokens`, cut at the end of a sentence.

    Sentences that contain a number that is not in `source` are left out. The result may be empty.
    """
    paragraph = without_unsupported(to_paragraph(text), source)
    # A sentence that alone is too long is cut anywhere, which may make a new number.
    return without_unsupported(cut_to_tokens(paragraph, max_tokens, count), source)


def without_unsupported(text: str, source: str) -> str:
    """Remove the sentences that contain a number that is not in `source`."""
    known = numbers_of(source)
    if not numbers_outside(known, text):
        return text
    return " ".join(sentence for sentence in split_sentences(text) if not numbers_outside(known, sentence))


def to_paragraph(text: str) -> str:
    """Turn a model's text into one paragraph.

    Headings, code blocks, thoughts and a leading "Summary:" are left out. List items become sentences.
    """
    text = _THOUGHT.sub("", text)
    return _one_paragraph(_CODE_FENCE.sub("\n\n", text)) or _one_paragraph(text.replace("`", " "))


def _one_paragraph(text: str) -> str:
    text = _RULE.sub("", _HEADING.sub("", text))
    is_list = len(_LIST_ITEM.findall(text)) > 1
    parts: list[str] = []
    for block in _BLANK_LINE.split(text):
        for line in block.splitlines():
            words = " ".join(_LIST_ITEM.sub("", line).split())
            if not words:
                continue
            if is_list and _LIST_ITEM.match(line) and not _is_finished(words):
                words += "."
            parts.append(words)
        if parts and not _is_finished(parts[-1]):
            parts[-1] += "."
    return _LABEL.sub("", " ".join(parts))


def _is_finished(text: str) -> bool:
    return text.rstrip(_CLOSERS).endswith(_END_MARKS)


def _cut_at_word(text: str) -> str:
    """Cut a sentence that alone is over the limit, but not inside a number, and mark the cut."""
    head = text[: MAX_CHARACTERS - 1]
    space = head.rfind(" ", MAX_CHARACTERS // 2)
    if space >= 0:
        head = head[:space]
    elif text[len(head)].isdigit():
        head = head.rstrip(_DIGITS_AND_MARKS)
    return head.rstrip() + "…"

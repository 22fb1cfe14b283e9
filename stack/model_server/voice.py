"""Composes answers from quotations: the sentences that match the question best."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stack.model_server.fences import Block, blocks, without_blocks
from stack.model_server.sentences import sentences

MODEL: Final = "local-quoter"
MOST_SENTENCES: Final = 4
SUMMARY_SENTENCES: Final = 3
_NEAR_THE_BEST: Final = 0.45
_INSTRUCTION_CHARACTERS: Final = 100
"""A summary is asked for in the first line; further down the word may mean the history."""

_SAID_BEFORE: Final = ("session-summary", "answer", "answer-summary")
_SUMMED_UP: Final = ("page", *_SAID_BEFORE)

_HANGUL: Final = re.compile(r"[가-힣]")
_PIECE: Final = re.compile(r"\s*(?:[가-힣]{1,2}|[^\s가-힣]+)|\s+")
_TERM: Final = re.compile(r"[가-힣]+|[a-z0-9]+")
_SUMMARY: Final = re.compile(r"요약|summar", re.IGNORECASE)
_FOLLOW_UP: Final = re.compile(
    r"방금|아까|앞서|앞에서|이전 (?:답|질문|대화)|위에서|earlier|previous|just (?:said|told)|you said|again",
    re.IGNORECASE,
)

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Phrases:
    quoted: str
    remembered: str
    nothing: str
    limits: str
    sources: str


_KOREAN: Final = _Phrases(
    quoted="(로컬 데모 모델: 문서에서 그대로 옮긴 문장입니다.)",
    remembered="(로컬 데모 모델: 앞선 대화에서 그대로 옮긴 문장입니다.)",
    nothing="문서에는 이 질문에 대한 답이 없습니다.",
    limits="(로컬 데모 모델: 주어진 글을 옮길 뿐, 스스로 답하지는 못합니다.)",
    sources="출처",
)
_ENGLISH: Final = _Phrases(
    quoted="(Local demo model: these sentences are quoted from the documents.)",
    remembered="(Local demo model: these sentences are quoted from the conversation so far.)",
    nothing="The documents hold no answer to this question.",
    limits="(Local demo model: it can only quote what it is given.)",
    sources="Sources",
)


def answer(messages: Sequence[Message]) -> str:
    """Answer the last user message out of what it holds, conclusion first, in at most three paragraphs."""
    message = last_question(messages)
    found, question = blocks(message), without_blocks(message)
    if _asks_for_summary(messages, question):
        return _summary(found or [Block(kind="page", document="", text=message)])
    phrases = _KOREAN if _HANGUL.search(question) else _ENGLISH
    passages = [block for block in found if block.kind in ("passage", "page")]
    history = [block for block in reversed(found) if block.kind in _SAID_BEFORE]
    if history and (_FOLLOW_UP.search(question) or not passages):
        return _quote(_fitting(question, history), phrases.remembered, phrases)
    return _quote(_fitting(question, passages), phrases.quoted, phrases)


def last_question(messages: Sequence[Message]) -> str:
    """The last user message, whole; empty if there is none."""
    return next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")


def text_of(message: Message) -> str:
    """A message's text, also where its content is a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def pieces(text: str) -> list[str]:
    """Cut a text into what is streamed at a time: a word, or two syllables. Joined they are the text."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many tokens this server counts for a text: its pieces."""
    return len(pieces(text))


def _asks_for_summary(messages: Sequence[Message], question: str) -> bool:
    instructions = next((text_of(message) for message in messages if message.get("role") == "system"), "")
    return not question or bool(_SUMMARY.search(instructions[:_INSTRUCTION_CHARACTERS]))


def _summary(found: Sequence[Block]) -> str:
    text = "\n\n".join(block.text for block in found if block.kind in _SUMMED_UP)
    return " ".join(sentences(text)[:SUMMARY_SENTENCES])


@dataclass(frozen=True, slots=True)
class _Quote:
    sentence: str
    document: str
    position: int


def _fitting(question: str, passages: Sequence[Block]) -> list[_Quote]:
    """The sentences that share most with the question, best first; the first ones if none shares anything."""
    pairs = [(sentence, block.document) for block in passages for sentence in sentences(block.text)]
    quotes = [_Quote(sentence, document, position) for position, (sentence, document) in enumerate(pairs)]
    scores = _scores(question, [quote.sentence for quote in quotes])
    best = max(scores, default=0.0)
    ranked = sorted(quotes, key=lambda quote: -scores[quote.position])
    near = [quote for quote in ranked if scores[quote.position] >= best * _NEAR_THE_BEST]
    if best == 0 or _SUMMARY.search(question):
        return quotes[:SUMMARY_SENTENCES]
    return near[:MOST_SENTENCES]


def _scores(question: str, texts: Sequence[str]) -> list[float]:
    terms = [_terms(text) for text in texts]
    frequency = Counter(term for found in terms for term in found)
    asked = _terms(question)
    return [
        sum(math.log(1 + len(texts) / frequency[term]) for term in asked & found) / math.sqrt(len(found) + 8)
        for found in terms
    ]


def _terms(text: str) -> set[str]:
    words = _TERM.findall(text.lower())
    pairs = {word[i : i + 2] for word in words if _HANGUL.match(word) for i in range(len(word) - 1)}
    return pairs | {word for word in words if len(word) > 1 and not _HANGUL.match(word)}


def _quote(quotes: Sequence[_Quote], notice: str, phrases: _Phrases) -> str:
    if not quotes:
        return f"{phrases.nothing}\n\n{phrases.limits}"
    conclusion, *further = quotes
    documents = list(dict.fromkeys(quote.document for quote in quotes if quote.document))
    support = " ".join(quote.sentence for quote in sorted(further, key=lambda quote: quote.position))
    sources = f" {phrases.sources}: {', '.join(documents)}" if documents else ""
    return "\n\n".join(filter(None, (conclusion.sentence, support, notice + sources)))

"""Chunking beside LangChain's own recursive splitter, with the same tokenizer and length function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from langchain_text_splitters import RecursiveCharacterTextSplitter

from benchmarks.corpus.text import Writer, shipped_texts
from rag.corpus.chunk import ChunkSettings, cut
from rag.corpus.tokens import TokenCounter

SETTINGS: Final = ChunkSettings(400, 60, "gpt-4o")
GENERATED_BYTES: Final = 2_000_000
SHIPPED_TIMES: Final = 10


@dataclass(frozen=True, slots=True)
class Speed:
    """Megabytes of text that one second of processor time cuts."""

    text: str
    splitter: str
    mb_a_second: float


def measure(rounds: int) -> list[Speed]:
    """Every splitter over every text, taken in turns."""
    counter = TokenCounter(SETTINGS.model)
    langchain = RecursiveCharacterTextSplitter(
        chunk_size=SETTINGS.max_tokens, chunk_overlap=SETTINGS.overlap, length_function=counter.count
    )
    splitters: dict[str, Callable[[str], object]] = {
        "**protostar**": lambda text: list(cut([text], SETTINGS)),
        "LangChain's recursive": langchain.split_text,
    }
    texts = {
        "the shipped corpus": shipped_texts() * SHIPPED_TIMES,
        "generated, 20 KB a file": list(Writer().documents(GENERATED_BYTES, 20_000)),
    }
    counter.count("load it")
    return [
        Speed(text, name, _speed(split, documents))
        for _ in range(rounds)
        for text, documents in texts.items()
        for name, split in splitters.items()
    ]


def _speed(split: Callable[[str], object], documents: Sequence[str]) -> float:
    started = time.process_time()
    for document in documents:
        split(document)
    seconds = time.process_time() - started
    return sum(len(document.encode()) for document in documents) / 1e6 / seconds

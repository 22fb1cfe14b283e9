"""The preview of a reindex: its counts and the tokens to embed, without writing anything."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rag.corpus.chunk import ChunkSettings
from rag.corpus.tokens import TokenCounter
from rag.corpus.walk import IGNORED, MAX_FILE_BYTES, walk
from rag.index.documents import is_current, load_documents, load_folders, load_known
from rag.index.drafts import Draft, prepare, text_to_embed
from rag.index.generations import find_generation, keep_encoding
from rag.index.results import Reindexed, Tally
from rag.search.vectors import chunks_without_vectors, embedded_hashes

_PREVIEWED_FILES: Final = 100


@dataclass(frozen=True, slots=True)
class Preview:
    """The expected result of a reindex, and the tokens that it would send to the embedding model."""

    reindexed: Reindexed
    embedding_tokens: int


async def preview(
    corpus_dir: Path,
    *,
    settings: ChunkSettings,
    full: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    ignore: tuple[str, ...] = IGNORED,
    embedding_model: str = "",
) -> Preview:
    """Compute what `rag.index.reindex.reindex` would do now.

    Tokens are counted with the embedding model's encoding for texts without a vector of that model; without a
    model, with the encoding of the chunks for all new texts.

    Raises:
        CorpusError: the folder can't be used.
    """
    started = time.monotonic()
    found = await asyncio.to_thread(walk, corpus_dir, max_file_bytes=max_file_bytes, ignore=ignore)
    settings = await keep_encoding(settings)
    generation = await find_generation(settings, full=full, embedding_model=embedding_model)
    documents = await load_documents()
    tally = Tally()
    tally.add([Draft(failures=found.failures)], documents)
    todo = [file for file in found.files if not is_current(documents.get(file.path), file, generation)]
    tally.counts["unchanged"] += len(found.files) - len(todo)
    costs = _Costs(embedding_model, TokenCounter(embedding_model or settings.model))
    for start in range(0, len(todo), _PREVIEWED_FILES):
        files = todo[start : start + _PREVIEWED_FILES]
        known = await load_known([file.path for file in files], documents, generation) if generation else {}
        drafts = prepare(files, known, settings)
        while (draft := await asyncio.to_thread(next, drafts, None)) is not None:
            tally.add([draft.summary()], documents)
            await costs.add(draft)
    unproved = found.unproved(await load_folders(), documents)
    absent = found.absent(documents, unproved)
    tally.counts["removed"] = len(absent)
    if generation and embedding_model:
        await costs.add_left(generation.id, {documents[path].id for path in absent})
    return Preview(tally.reindexed(started, unproved), costs.tokens)


@dataclass(slots=True)
class _Costs:
    """The tokens to embed."""

    model: str
    counter: TokenCounter
    tokens: int = 0
    stale: set[int] = field(default_factory=set)

    async def add(self, draft: Draft) -> None:
        """Add the new texts of a draft."""
        self.stale.update(draft.stale)
        hashes = [chunk.content_hash for chunk in draft.added]
        embedded = await embedded_hashes(hashes, self.model) if self.model else frozenset()
        new = [chunk for chunk in draft.added if chunk.content_hash not in embedded]
        await self._count([text_to_embed(chunk.heading, chunk.text) for chunk in new])

    async def add_left(self, generation_id: int, absent: set[int]) -> None:
        """Add chunks that an earlier run left without a vector, unless their document or text is gone."""
        async for chunks in chunks_without_vectors(generation_id):
            stays = [chunk for chunk in chunks if chunk["id"] not in self.stale and chunk["document_id"] not in absent]
            await self._count([text_to_embed(chunk["heading"], chunk["text"]) for chunk in stays])

    async def _count(self, texts: list[str]) -> None:
        self.tokens += sum(await asyncio.to_thread(lambda: [self.counter.count(text) for text in texts]))

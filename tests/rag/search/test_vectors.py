"""Vectors beside words: what is embedded, when they serve, and what happens where the provider fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tortoise import Tortoise

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.corpus.tokens import TokenCounter
from rag.index.preview import preview
from rag.index.reindex import reindex
from rag.providers import ProviderError, make_provider
from rag.providers import embedder as embedding
from rag.providers.embedder import Embedder
from rag.search import retrieve as retrieval
from rag.search import vector_index, vectors
from rag.search.fusion import dense_weight, fuse
from rag.search.neighbours import with_neighbours
from rag.search.query import Question
from rag.search.retrieve import Passage, retrieve
from rag.search.vector_index import Near, fits_this_cpu
from tests.rag.search.test_retrieve import ABOUT_SOMETHING_ELSE, ABOUT_THE_SAMPLE, SAMPLE
from tests.support.model_control import ModelControl

SETTINGS = ChunkSettings(64, 16, "gpt-4o")
TEXTS = {
    "cats.md": "# Cats\n\nThe cat sleeps on the warm sofa all day long and purrs.\n",
    "ships.md": "# Ships\n\nThe big ship crosses the ocean with containers on board.\n",
    "bread.md": "# Bread\n\nThe baker kneads the dough before the sun rises.\n",
}
CAT_QUESTION = "고양이는 어디에서 자나요?"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
async def embedder(database_url: str, model_server: ModelControl) -> AsyncIterator[Embedder]:
    """An embedder, and a connection to an empty database."""
    model_server.reset()
    provider = make_provider(
        "openai", api_key="none", base_url=model_server.base_url, first_token_timeout_s=30, stall_timeout_s=30
    )
    async with connect(database_url):
        yield Embedder(provider, "model-a")
    await provider.close()
    model_server.reset()


def embedded(model_server: ModelControl) -> list[str]:
    """The texts that were sent to be embedded."""
    asked = [request["body"] for request in model_server.requests(1000) if request["path"].endswith("/embeddings")]
    return [text for body in asked for text in body["input"]]


async def count(statement: str) -> int:
    rows = await Tortoise.get_connection("default").execute_query_dict(statement)
    return int(rows[0]["count"])


def documents(passages: list[Passage]) -> list[str]:
    return [passage.document for passage in passages]


async def test_a_question_finds_what_shares_no_word_with_it(corpus: Path, embedder: Embedder) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert await retrieve(CAT_QUESTION, floor=False) == []
    assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "cats.md"


async def test_vectors_open_the_floor_to_the_corpus_and_to_nothing_else(embedder: Embedder) -> None:
    await reindex(SAMPLE, settings=ChunkSettings(400, 60, "gpt-4o"), embedder=embedder)
    found = {question for question in ABOUT_THE_SAMPLE if await retrieve(question, embedder=embedder)}
    assert found == set(ABOUT_THE_SAMPLE)
    assert [question for question in ABOUT_SOMETHING_ELSE if await retrieve(question, embedder=embedder)] == []


async def test_an_index_run_keeps_the_index_of_a_large_corpus(
    corpus: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes = "SELECT count(*) FROM pg_class WHERE relname LIKE 'vectors\\_of\\_%' AND relkind = 'r'"
    monkeypatch.setattr(vector_index, "INDEXED_FROM_BYTES", 1)
    for full in (False, True):
        await reindex(corpus, settings=SETTINGS, full=full, embedder=embedder)
        assert await count(indexes) == fits_this_cpu()
        assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "cats.md"
    (corpus / "tea.md").write_text("# Tea\n\nThe tea grows on the southern hill.\n")
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert documents(await retrieve("차는 어디에서 재배되나요?", floor=False, embedder=embedder))[0] == "tea.md"
    await reindex(corpus, settings=SETTINGS, embedder=embedder, vector_index=False)
    assert await count(indexes) == 0
    assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "cats.md"


async def test_only_new_chunks_are_embedded(corpus: Path, embedder: Embedder, model_server: ModelControl) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert len(embedded(model_server)) == 3
    model_server.reset()
    (corpus / "cats.md").write_text(TEXTS["cats.md"] + "\n## Food\n\nIt eats fish.\n")
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert [text.splitlines()[-1] for text in embedded(model_server)] == ["It eats fish."]


async def test_a_full_rebuild_and_a_moved_file_embed_nothing(
    corpus: Path, embedder: Embedder, model_server: ModelControl
) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    model_server.reset()
    (corpus / "cats.md").rename(corpus / "felines.md")
    await reindex(corpus, settings=SETTINGS, full=True, embedder=embedder)
    assert embedded(model_server) == []
    assert await count("SELECT count(*) FROM chunk_vectors") == 3
    assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "felines.md"


async def test_a_dry_run_counts_the_tokens_that_are_then_sent(
    corpus: Path, embedder: Embedder, model_server: ModelControl
) -> None:
    count = TokenCounter(embedder.model).count

    async def told_and_sent(*, full: bool = False) -> tuple[int, int]:
        told = await preview(corpus, settings=SETTINGS, full=full, embedding_model=embedder.model)
        before = len(embedded(model_server))
        await reindex(corpus, settings=SETTINGS, full=full, embedder=embedder)
        return told.embedding_tokens, sum(map(count, embedded(model_server)[before:]))

    told, sent = await told_and_sent()
    assert told == sent > 0
    assert await told_and_sent(full=True) == (0, 0)
    (corpus / "moved.md").write_text((corpus / "cats.md").read_text())
    (corpus / "ships.md").write_text("# Ships\n\nThe small ship stays in the harbour.\n")
    told, sent = await told_and_sent()
    assert told == sent == count("Ships\n\n# Ships\n\nThe small ship stays in the harbour.")
    (corpus / "left.md").write_text("# Left\n\nWritten, but not embedded.\n")
    model_server.script({"endpoint": "embeddings", "status": 401})
    with pytest.raises(ProviderError):
        await reindex(corpus, settings=SETTINGS, embedder=embedder)
    (corpus / "ships.md").unlink()
    told, sent = await told_and_sent()
    assert told == sent == count("Left\n\n# Left\n\nWritten, but not embedded.")


async def test_another_model_serves_only_when_its_vectors_are_complete(
    corpus: Path, embedder: Embedder, model_server: ModelControl
) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    other = Embedder(embedder._provider, "model-b")
    model_server.script({"endpoint": "embeddings", "model": "model-b", "status": 401, "times": None})
    with pytest.raises(ProviderError):
        await reindex(corpus, settings=SETTINGS, embedder=other)
    assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "cats.md"
    assert await retrieve(CAT_QUESTION, embedder=other, floor=False) == []

    model_server.reset()
    await reindex(corpus, settings=SETTINGS, embedder=other)
    assert documents(await retrieve(CAT_QUESTION, embedder=other))[0] == "cats.md"
    assert await retrieve(CAT_QUESTION, embedder=embedder, floor=False) == []
    assert await count("SELECT count(*) FROM generations") == 1


async def test_vectors_serve_only_when_the_first_ones_are_complete(
    corpus: Path, embedder: Embedder, model_server: ModelControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_WINDOW", 1)
    model_server.script({"endpoint": "embeddings", "contains": "ocean", "status": 401, "times": None})
    with pytest.raises(ProviderError):
        await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert await count("SELECT count(*) FROM chunk_vectors") == 2
    assert await retrieve(CAT_QUESTION, embedder=embedder, floor=False) == []
    assert documents(await retrieve("Who kneads the dough?", embedder=embedder)) == ["bread.md"]

    await model_server.until_idle()
    model_server.reset()
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    assert [text.splitlines()[0] for text in embedded(model_server)] == ["Ships"]
    assert documents(await retrieve(CAT_QUESTION, embedder=embedder))[0] == "cats.md"


async def test_a_failing_provider_never_fails_a_question(
    corpus: Path, embedder: Embedder, model_server: ModelControl, caplog: pytest.LogCaptureFixture
) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    model_server.script({"endpoint": "embeddings", "status": 500, "times": None})
    assert documents(await retrieve("Who kneads the dough?", embedder=embedder)) == ["bread.md"]
    assert "question_embedding_failed" in caplog.text


async def test_a_slow_provider_does_not_hold_a_question_up(
    corpus: Path,
    embedder: Embedder,
    model_server: ModelControl,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    monkeypatch.setattr(embedding, "QUESTION_S", 0.05)
    model_server.script({"endpoint": "embeddings", "hold": "never", "times": None})
    assert documents(await retrieve("Who kneads the dough?", embedder=embedder)) == ["bread.md"]
    assert "question_embedding_failed error=TimeoutError" in caplog.text


async def test_a_rebuild_that_ends_while_a_question_is_embedded_leaves_it_its_passages(
    corpus: Path, embedder: Embedder, model_server: ModelControl
) -> None:
    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    await retrieve(CAT_QUESTION, embedder=embedder)  # which keeps the vectors
    model_server.script({"endpoint": "embeddings", "hold": "embedded", "times": 1})
    question = asyncio.create_task(retrieve("Who kneads the dough?", embedder=embedder))
    await model_server.until_waiting("embedded")
    await reindex(corpus, settings=SETTINGS, full=True, embedder=embedder)
    model_server.release("embedded")
    assert documents(await question) == ["bread.md"]


async def test_a_batch_that_is_too_large_is_halved(embedder: Embedder, model_server: ModelControl) -> None:
    model_server.script({"endpoint": "embeddings", "contains": "fourth", "status": 400})
    rows = await embedder.embed(["first", "second", "third", "fourth"])
    assert rows.shape == (4, 512)
    asked = [len(request["body"]["input"]) for request in model_server.requests()]
    assert sorted(asked) == [2, 2, 4]


async def test_a_rate_limit_is_waited_out(embedder: Embedder, model_server: ModelControl) -> None:
    model_server.script({"endpoint": "embeddings", "status": 429, "headers": {"retry-after": "0"}})
    assert (await embedder.embed(["one"])).shape == (1, 512)


async def test_requests_stay_within_their_limits(embedder: Embedder, model_server: ModelControl) -> None:
    texts = ["가" * 7_000] * 20 + ["short"] * 100
    assert len(await embedder.embed(texts)) == 120
    for request in model_server.requests():
        sent = request["body"]["input"]
        assert len(sent) <= embedding.BATCH_TEXTS
        assert sum(map(len, sent)) <= embedding.BATCH_CHARACTERS


async def test_what_is_kept_of_the_index_follows_every_change(corpus: Path, embedder: Embedder) -> None:
    questions = ["the warm sofa", "containers ocean", "dough sun fish", CAT_QUESTION]

    async def answers() -> list[list[Passage]]:
        return [await retrieve(question, floor=False, embedder=embedder) for question in questions]

    await reindex(corpus, settings=SETTINGS, embedder=embedder)
    await answers()
    for step in range(3):
        (corpus / "new.md").write_text(f"# New {step}\n\nFish and dough and containers, {step} times.\n")
        if step == 1:
            (corpus / "ships.md").unlink()
        await reindex(corpus, settings=SETTINGS, full=step == 2, embedder=embedder)
        kept = await answers()
        retrieval._kept_by_database.clear()
        assert kept == await answers()
        assert "new.md" in documents(kept[2])
        assert documents(kept[0])[0] == documents(kept[3])[0] == "cats.md"


def test_both_scores_count_by_their_weights() -> None:
    assert fuse({1: 4.0, 2: -1.0}, {2: 3.0, 4: 1.0}, 0.25) == pytest.approx({1: 3.0, 2: 0.0, 4: 0.25})
    assert dense_weight(Question("큐가 뭐야?")) < dense_weight(Question("what is a queue?"))


def test_nearness_is_the_same_for_models_that_differ_in_their_cosines() -> None:
    wide = Near({1: 0.1, 2: 0.55}, mean=0.1, spread=0.1)
    narrow = Near({1: 0.7, 2: 0.85}, mean=0.7, spread=0.02)
    assert [wide.nearness(id_) for id_ in (1, 2, 3)] == pytest.approx([0, 0.5, 0])
    assert [narrow.nearness(id_) for id_ in (1, 2, 3)] == pytest.approx([0, 0.5, 0])
    assert wide.standard() == pytest.approx({1: 0, 2: 4.5})
    assert Near({1: 0.3}, mean=0.3, spread=0).standard() == {1: 0}


SECTION = "# Long\n\n" + "\n\n".join(
    f"Paragraph {number} speaks of topic{number} and of nothing else, in a sentence of some length that goes on."
    for number in range(12)
)


async def long_passages(folder: Path) -> list[Passage]:
    (folder / "long.md").write_text(SECTION)
    await reindex(folder, settings=SETTINGS)
    return await retrieve("topic5 topic6", floor=False, top_k=1)


async def test_a_passage_is_joined_with_its_neighbours(tmp_path: Path, embedder: Embedder) -> None:
    (passage,) = await long_passages(tmp_path)
    (wide,) = await with_neighbours([passage], 10_000)
    assert (wide.chunk_id, wide.score) == (passage.chunk_id, passage.score)
    assert wide.start_offset < passage.start_offset
    assert passage.end_offset < wide.end_offset
    assert wide.text == SECTION[wide.start_offset : wide.end_offset]


async def test_neighbours_take_no_more_than_the_room(tmp_path: Path, embedder: Embedder) -> None:
    (passage,) = await long_passages(tmp_path)
    assert await with_neighbours([passage], passage.token_count) == [passage]
    (wide,) = await with_neighbours([passage], passage.token_count + 40 + 64)
    assert passage.token_count < wide.token_count <= passage.token_count + 64


async def test_passages_that_meet_are_given_as_one(tmp_path: Path, embedder: Embedder) -> None:
    await long_passages(tmp_path)
    passages = await retrieve("topic5 topic6 topic7", floor=False, top_k=3)
    assert len(passages) == 2
    (wide,) = await with_neighbours(passages, 10_000)
    assert wide.chunk_id == passages[0].chunk_id
    assert wide.start_offset < passages[0].start_offset
    assert wide.end_offset == passages[1].end_offset
    assert wide.text == SECTION[wide.start_offset : wide.end_offset]

"""Reindexing against a real PostgreSQL: what is written, what is kept, what survives."""

from __future__ import annotations

import asyncio
import os
import re
import time
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from protostar_client.contract import ReindexResult
from tortoise import Tortoise

from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.corpus.tokens import TokenCounter
from rag.corpus.walk import CorpusError
from rag.index.preview import preview
from rag.index.reindex import Reindexed, ReindexRunning, reindex
from rag.index.runs import RunProgress, read_progress
from rag.index.segments import MOST_SEGMENTS
from rag.search.retrieve import retrieve
from tests.support.rows import count, fetch, fetch_one, fetch_values

SETTINGS = ChunkSettings(64, 12, "gpt-4o")
OTHER_SETTINGS = ChunkSettings(128, 24, "gpt-4o")
OF_DOCUMENT = "FROM chunks JOIN documents ON documents.id = document_id WHERE path = $1"


@pytest.fixture(autouse=True)
async def database(database_url: str) -> AsyncIterator[None]:
    async with connect(database_url):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    write(root, "queue.md", "# 작업 큐\n\n큐는 작업을 받아 둔다.\n\n## 재시도\n\n재시도는 세 번까지 한다.\n")
    write(root, "redis/streams.md", "# Redis streams\n\nXREADGROUP reads a stream for a consumer group.\n")
    return root


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    # As old as files usually are: the times of a file that is just written prove nothing.
    os.utime(root / path, (time.time() - 3600, time.time() - 3600))


def counts(done: Reindexed) -> tuple[int, int, int, int, int]:
    result = done.result
    return result.added, result.changed, result.removed, result.unchanged, result.failed


async def test_files_become_documents_and_chunks(corpus: Path) -> None:
    done = await reindex(corpus, settings=SETTINGS)
    assert isinstance(done.result, ReindexResult)
    assert counts(done) == (2, 0, 0, 0, 0)
    assert done.result.chunks == 3
    document = await fetch_one("SELECT * FROM documents WHERE path = 'queue.md'")
    text = (corpus / "queue.md").read_text()
    chunks = await fetch("SELECT * FROM chunks WHERE document_id = $1 ORDER BY position", document["id"])
    assert document["title"] == "작업 큐"
    assert document["error"] is None
    assert [chunk["heading"] for chunk in chunks] == ["작업 큐", "작업 큐 > 재시도"]
    assert all(chunk["text"] == text[chunk["start_offset"] : chunk["end_offset"]] for chunk in chunks)


async def test_an_unchanged_corpus_writes_nothing(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    before = await fetch("SELECT id, document_id, text FROM chunks ORDER BY id")
    done = await reindex(corpus, settings=SETTINGS)
    assert counts(done) == (0, 0, 0, 2, 0)
    assert done.result.chunks == 0
    assert await fetch("SELECT id, document_id, text FROM chunks ORDER BY id") == before


async def test_only_the_changed_chunks_of_a_changed_file_are_written(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    kept = await fetch_one("SELECT id, heading, text FROM chunks WHERE heading = '작업 큐 > 재시도'")
    write(
        corpus, "queue.md", "# 작업 큐\n\n큐는 이제 작업을 영원히 보관한다.\n\n## 재시도\n\n재시도는 세 번까지 한다.\n"
    )
    done = await reindex(corpus, settings=SETTINGS)
    assert counts(done) == (0, 1, 0, 1, 0)
    assert done.result.chunks == 1
    after = await fetch_one("SELECT * FROM chunks WHERE id = $1", kept["id"])
    text = (corpus / "queue.md").read_text()
    assert after["heading"] == kept["heading"]
    assert after["text"] == text[after["start_offset"] : after["end_offset"]]
    assert next(passage.text for passage in await retrieve("영원히 보관")).startswith("# 작업 큐")
    assert not any("받아 둔다" in passage.text for passage in await retrieve("받아 둔다", floor=False))


async def test_a_chunk_that_stays_where_it_was_is_not_written(corpus: Path) -> None:
    before = "\n".join(f"## Part {number}\n\nThe lease of part {number} is over.\n" for number in range(6))
    write(corpus, "long.md", before)
    await reindex(corpus, settings=SETTINGS)
    rows = "SELECT ctid::text, heading FROM chunks WHERE heading LIKE 'Part%' ORDER BY position"
    database = Tortoise.get_connection("default")
    written = await database.execute_query_dict(rows)
    write(corpus, "long.md", before.replace("part 3 is over", "part 3 goes on"))
    await reindex(corpus, settings=SETTINGS)
    after = await database.execute_query_dict(rows)
    assert [row for row in after if row in written] == [row for row in written if row["heading"] != "Part 3"]


async def test_a_touched_file_is_unchanged(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    os.utime(corpus / "queue.md")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 0, 2, 0)


async def test_a_change_that_keeps_size_and_times_is_seen(corpus: Path) -> None:
    write(corpus, "same.md", "alpha words\n")
    await reindex(corpus, settings=SETTINGS)
    write(corpus, "same.md", "gamma words\n")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 1, 0, 2, 0)


async def test_a_deleted_file_is_removed(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    (corpus / "queue.md").unlink()
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 1, 1, 0)
    assert await fetch_values("SELECT path FROM documents") == ["redis/streams.md"]
    assert await retrieve("재시도는 세 번", floor=False) == []


async def test_a_folder_that_was_emptied_loses_its_documents(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    (corpus / "redis/streams.md").unlink()
    done = await reindex(corpus, settings=SETTINGS)
    assert counts(done) == (0, 0, 1, 1, 0)
    assert done.unproved == []


@pytest.mark.parametrize(("full", "settings"), [(True, SETTINGS), (False, replace(SETTINGS, max_tokens=16, overlap=0))])
async def test_what_can_not_be_read_goes_on_serving_in_a_new_generation(
    corpus: Path, full: bool, settings: ChunkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.index.documents._FRESH_NS", 0)  # so that a file is known by its stamp at once
    await reindex(corpus, settings=SETTINGS)
    text = (corpus / "queue.md").read_text()
    (corpus / "queue.md").write_bytes(b"caf\xe9 \xff\xfe")
    (corpus / "redis").rename(corpus.parent / "disk")
    (corpus / "redis").mkdir()
    write(corpus, "new.md", "# New\n\nAn owl.\n")
    assert counts(await reindex(corpus, settings=settings, full=full)) == (1, 0, 0, 0, 1)
    assert await count("generations WHERE NOT is_current") == 0
    for question, document in (("XREADGROUP", "redis/streams.md"), ("재시도는 세 번", "queue.md"), ("owl", "new.md")):
        assert [passage.document for passage in await retrieve(question)] == [document]

    # As soon as they can be read they are cut by the settings that hold now.
    (corpus / "redis").rmdir()
    (corpus.parent / "disk").rename(corpus / "redis")
    write(corpus, "queue.md", text)
    assert counts(await reindex(corpus, settings=settings)) == (0, 2, 0, 1, 0)
    found = await cuts()
    assert counts(await reindex(corpus, settings=settings, full=True)) == (0, 0, 0, 3, 0)
    assert await cuts() == found
    assert await count("documents WHERE error IS NOT NULL") == 0


async def cuts() -> list[dict[str, Any]]:
    return await fetch("SELECT document_id, text, token_count FROM chunks ORDER BY document_id, position")


async def test_dead_chunks_of_a_small_corpus_count_for_nothing(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    before = [passage.score for passage in await retrieve("XREADGROUP")]
    (corpus / "queue.md").rename(corpus.parent / "queue.md")
    await reindex(corpus, settings=SETTINGS)
    (corpus.parent / "queue.md").rename(corpus / "queue.md")
    await reindex(corpus, settings=SETTINGS)
    assert [passage.score for passage in await retrieve("XREADGROUP")] == pytest.approx(before)


async def test_nothing_is_deleted_while_a_disk_is_not_mounted(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    # An empty folder takes the place of the one that held the files, as when a disk is unmounted.
    (corpus / "redis").rename(corpus.parent / "disk")
    (corpus / "redis").mkdir()
    for _ in range(2):
        done = await reindex(corpus, settings=SETTINGS)
        assert counts(done) == (0, 0, 0, 1, 0)
        assert done.unproved == ["redis"]
    assert await retrieve("XREADGROUP")
    (corpus / "redis").rmdir()
    (corpus.parent / "disk").rename(corpus / "redis")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 0, 2, 0)
    (corpus / "redis/streams.md").unlink()
    (corpus / "redis").rmdir()
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 1, 1, 0)


async def test_an_empty_or_missing_corpus_deletes_nothing(corpus: Path, tmp_path: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    for folder in (tmp_path / "empty", tmp_path / "missing"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(CorpusError, match="corpus folder"):
            await reindex(folder, settings=SETTINGS)
    assert await count("documents") == 2


async def test_a_bad_file_is_reported_and_the_rest_is_indexed(corpus: Path) -> None:
    (corpus / "bad.md").write_bytes(b"caf\xe9 \xff\xfe")
    done = await reindex(corpus, settings=SETTINGS)
    assert counts(done) == (2, 0, 0, 0, 1)
    assert [failure.path for failure in done.failures] == ["bad.md"]
    assert [(failure.path, "UTF-8" in failure.reason) for failure in done.result.failures] == [("bad.md", True)]
    assert "UTF-8" in (await fetch_one("SELECT error FROM documents WHERE path = 'bad.md'"))["error"]
    write(corpus, "bad.md", "good now\n")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (1, 0, 0, 2, 0)
    assert (await fetch_one("SELECT error FROM documents WHERE path = 'bad.md'"))["error"] is None


async def test_a_decomposed_document_is_found_and_keeps_its_characters(corpus: Path) -> None:
    text = unicodedata.normalize("NFD", "# 감사 로그\n\n감사 로그는 오 년 동안 보관한다.\n")
    write(corpus, unicodedata.normalize("NFD", "감사.md"), text)
    await reindex(corpus, settings=SETTINGS)
    [passage, *_] = await retrieve("감사 로그 보관 기간")
    assert (passage.document, passage.heading) == ("감사.md", "감사 로그")
    chunks = await fetch(f"SELECT text, start_offset, end_offset {OF_DOCUMENT}", "감사.md")
    assert chunks
    assert all(chunk["text"] == text[chunk["start_offset"] : chunk["end_offset"]] for chunk in chunks)


async def test_full_writes_everything_again(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    done = await reindex(corpus, settings=SETTINGS, full=True)
    assert done.result.chunks == 3
    assert await count("chunks") == 3
    assert await count("generations") == 1
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 0, 2, 0)


async def test_other_chunk_settings_cut_everything_again(corpus: Path) -> None:
    write(corpus, "long.md", "큐는 작업을 순서대로 처리한다. " * 100)
    first = await reindex(corpus, settings=SETTINGS)
    second = await reindex(corpus, settings=OTHER_SETTINGS)
    assert 3 < second.result.chunks < first.result.chunks
    assert await count("chunks") == second.result.chunks


async def test_queries_are_never_empty_and_never_mixed_while_other_settings_are_built(corpus: Path) -> None:
    for number in range(40):
        sentences = (f"큐는 작업 {number}-{place} 하나를 순서대로 처리한다. " for place in range(60))
        write(corpus, f"{number}.md", f"# 문서 {number}\n\n" + "".join(sentences))
    await reindex(corpus, settings=SETTINGS)
    generations: list[set[int]] = []

    async def ask() -> None:
        found = await retrieve("작업을 순서대로", top_k=20)
        assert found
        ids = [passage.chunk_id for passage in found]
        generations.append(set(await fetch_values("SELECT generation_id FROM chunks WHERE id = ANY($1)", ids)))

    await ask()
    building = asyncio.create_task(reindex(corpus, settings=OTHER_SETTINGS))
    while not building.done():
        await ask()
    await building
    await ask()
    assert len(generations) > 2
    # Empty where the passages of an answer were deleted before the test could look at their rows.
    assert max(map(len, generations)) == 1
    assert generations[0] != generations[-1]


async def test_an_old_file_is_known_by_its_stamp_and_a_fresh_one_by_its_content(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reindex(corpus, settings=SETTINGS)
    assert set(await fetch_values("SELECT stamp FROM documents")) == {""}
    monkeypatch.setattr("rag.index.documents._FRESH_NS", 0)
    await reindex(corpus, settings=SETTINGS)
    assert "" not in set(await fetch_values("SELECT stamp FROM documents"))
    await fetch("UPDATE documents SET content_hash = 'not looked at'")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (0, 0, 0, 2, 0)


async def test_an_interrupted_rebuild_goes_on_where_it_stopped(corpus: Path) -> None:
    write(corpus, "big.md", "# 큰 문서\n\n" + "큐는 작업을 순서대로 처리한다. " * 40_000)
    await reindex(corpus, settings=SETTINGS)
    before = await count("chunks")

    def stop(done: int, total: int, chunks: int) -> None:
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await reindex(corpus, settings=OTHER_SETTINGS, on_progress=stop)
    assert await count("chunks") > before
    assert (await retrieve("XREADGROUP"))[0].document == "redis/streams.md"
    done = await reindex(corpus, settings=OTHER_SETTINGS)
    assert done.result.chunks == 3
    assert await count("generations") == 1


async def test_how_far_a_run_is_can_be_read_while_it_works(corpus: Path) -> None:
    for number in range(3):
        write(corpus, f"{number}.md", f"# {number}\n\n" + "큐는 작업을 순서대로 처리한다. " * 40_000)
    running = asyncio.create_task(reindex(corpus, settings=SETTINGS))
    seen: list[RunProgress] = []
    told: list[str] = []
    while not running.done():
        if (progress := await read_progress()) is not None:
            seen.append(progress)
            if progress.documents_done and not told:
                try:
                    await reindex(corpus, settings=SETTINGS)
                except ReindexRunning as error:
                    told.append(str(error))
    await running
    assert re.search(r"[1-4] of 5 documents, \d+ chunks, .* documents/s, about \d+ s left", told[0])
    assert seen[0].documents_done < 5
    assert seen[0].is_running
    last = await read_progress()
    assert last is not None
    assert (last.documents_done, last.documents_total, last.is_running, last.error) == (5, 5, False, None)
    assert last.chunks == await count("chunks")


async def test_a_run_that_another_has_taken_over_writes_nothing_more(corpus: Path) -> None:
    for number in range(2):
        write(corpus, f"{number}.md", f"# {number}\n\n" + "큐는 작업을 순서대로 처리한다. " * 40_000)
    taken_over: list[asyncio.Task[int]] = []

    async def take_over() -> int:
        return len(await fetch("UPDATE reindex_runs SET ended_at = now() RETURNING id"))

    def at_the_first(done: int, total: int, chunks: int) -> None:
        if done == 1:
            taken_over.append(asyncio.create_task(take_over()))

    with pytest.raises(ReindexRunning):
        await reindex(corpus, settings=SETTINGS, on_progress=at_the_first)
    assert await taken_over[0] == 1
    assert await count("documents") < 4


async def test_a_run_whose_process_died_is_not_running(corpus: Path) -> None:
    await fetch("INSERT INTO reindex_runs (documents_total) VALUES (9)")
    progress = await read_progress()
    assert progress is not None
    assert not progress.is_running
    await reindex(corpus, settings=SETTINGS)
    assert await fetch_values("SELECT error FROM reindex_runs ORDER BY id") == ["its process died", None]


async def test_a_preview_says_what_a_run_does_and_writes_nothing(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    write(corpus, "queue.md", "# 작업 큐\n\n다르다.\n\n## 재시도\n\n재시도는 세 번까지 한다.\n")
    write(corpus, "new.md", "# New\n\nA file.\n")
    (corpus / "bad.md").write_bytes(b"caf\xe9 \xff\xfe")
    (corpus / "redis/streams.md").unlink()
    (corpus / "redis").rmdir()
    before = await database_rows()
    found = await preview(corpus, settings=SETTINGS)
    assert await database_rows() == before
    done = await reindex(corpus, settings=SETTINGS)
    assert counts(found.reindexed) == counts(done) == (1, 1, 1, 0, 1)
    assert found.reindexed.result.chunks == done.result.chunks == 2
    assert found.reindexed.result.failures == done.result.failures
    tokens = TokenCounter("gpt-4o").count
    assert found.embedding_tokens == sum(map(tokens, ("작업 큐\n\n# 작업 큐\n\n다르다.", "New\n\n# New\n\nA file.")))


async def test_a_preview_of_other_settings_counts_every_chunk(corpus: Path) -> None:
    await reindex(corpus, settings=SETTINGS)
    assert (await preview(corpus, settings=SETTINGS)).reindexed.result.chunks == 0
    for found in (
        await preview(corpus, settings=OTHER_SETTINGS),
        await preview(corpus, settings=SETTINGS, full=True),
        await preview(corpus, settings=SETTINGS, embedding_model="some-model"),
    ):
        assert found.reindexed.result.chunks == 3
        assert found.embedding_tokens > 0


async def database_rows() -> list[list[dict[str, object]]]:
    database = Tortoise.get_connection("default")
    tables = ("documents", "chunks", "segments", "generations", "folders", "reindex_runs")
    return [await database.execute_query_dict(f"SELECT * FROM {table} ORDER BY 1") for table in tables]


async def test_without_a_model_the_encoding_of_the_index_is_kept(corpus: Path) -> None:
    await reindex(corpus, settings=ChunkSettings(64, 12, "gpt-4"))  # cl100k_base
    assert counts(await reindex(corpus, settings=ChunkSettings(64, 12, ""))) == (0, 0, 0, 2, 0)
    assert await count("generations") == 1
    write(corpus, "new.md", "새로운 문서입니다.\n")
    await reindex(corpus, settings=ChunkSettings(64, 12, ""))
    chunk = await fetch_one(f"SELECT text, token_count {OF_DOCUMENT}", "new.md")
    text = chunk["text"]
    assert chunk["token_count"] == TokenCounter("gpt-4").count(text) != TokenCounter("gpt-4o").count(text)


async def test_files_over_the_size_limit_and_those_ignored_are_left_out(corpus: Path) -> None:
    write(corpus, "draft-1.md", "draft")
    write(corpus, "big.md", "x " * 2000)
    done = await reindex(corpus, settings=SETTINGS, max_file_bytes=1000, ignore=("draft-*",))
    assert counts(done) == (2, 0, 0, 0, 1)
    assert done.failures[0].path == "big.md"


async def test_progress_counts_documents_up_to_all_of_them(corpus: Path) -> None:
    reports: list[tuple[int, int, int]] = []
    await reindex(corpus, settings=SETTINGS, on_progress=lambda *report: reports.append(report))
    assert reports[0] == (0, 2, 0)
    assert reports[-1] == (2, 2, 3)


async def test_of_two_reindexes_at_once_one_says_that_the_other_works(corpus: Path) -> None:
    outcomes = await asyncio.gather(
        reindex(corpus, settings=SETTINGS), reindex(corpus, settings=SETTINGS), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ReindexRunning", "Reindexed"]
    assert any(isinstance(outcome, ReindexRunning) for outcome in outcomes)
    assert await count("chunks") == 3


async def test_many_small_changes_leave_few_segments_and_the_same_answers(corpus: Path) -> None:
    for number in range(MOST_SEGMENTS + 3):
        write(corpus, f"note-{number}.md", f"# Note {number}\n\nThe lease of worker{number} expires.\n")
        await reindex(corpus, settings=SETTINGS)
    assert await count("segments") <= MOST_SEGMENTS
    ranking = [(passage.document, round(passage.score, 6)) for passage in await retrieve("lease of worker7", top_k=20)]
    await reindex(corpus, settings=SETTINGS, full=True)
    again = [(passage.document, round(passage.score, 6)) for passage in await retrieve("lease of worker7", top_k=20)]
    assert ranking[0][0] == "note-7.md"
    assert sorted(again) == sorted(ranking)


async def test_a_large_file_is_one_document(corpus: Path) -> None:
    sentence = "임대는 시간이 지나면 만료된다. "
    write(corpus, "large.md", sentence * 60_000)
    done = await reindex(corpus, settings=ChunkSettings(400, 60, "gpt-4o"))
    assert done.result.added == 3
    assert len(await fetch(f"SELECT chunks.id {OF_DOCUMENT}", "large.md")) > 1000


@pytest.mark.parametrize("name", ["0.md", "z.md"])
async def test_an_empty_file_is_a_document_without_chunks(corpus: Path, name: str) -> None:
    write(corpus, name, "")
    assert counts(await reindex(corpus, settings=SETTINGS)) == (3, 0, 0, 0, 0)

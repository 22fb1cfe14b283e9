"""A question finds its page however it is written: a seeded part of the benchmark's pairs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.retrieval.invariance import Outcome, ndcg
from benchmarks.retrieval.variants import CORPORA, ORIGINAL, Pair, off_corpus, pages, pairs, variants
from models.database import connect
from rag.corpus.chunk import ChunkSettings
from rag.index.reindex import reindex

QUESTIONS = 12


@pytest.mark.parametrize("corpus", CORPORA)
async def test_each_way_to_write_a_question_finds_its_page(database_url: str, tmp_path: Path, corpus: str) -> None:
    for name, text in pages(corpus).items():
        (tmp_path / name).write_text(text)
    rng, outcome = random.Random(corpus), Outcome()
    async with connect(database_url):
        await reindex(tmp_path, settings=ChunkSettings(400, 60, "gpt-4o"))
        for pair in rng.sample(pairs(corpus), QUESTIONS):
            await outcome.ask(pair)
        await outcome.ask_off_corpus(rng.sample(off_corpus(), QUESTIONS))
    assert outcome.misses() == []


def test_the_suite_has_enough_pairs() -> None:
    assert sum(len(pairs(corpus)) for corpus in CORPORA) >= 150


def test_variants_are_other_ways_to_write_the_same_question() -> None:
    found = variants(Pair("도커 이미지{은} 어떻게 만들{나요}?", "a.md"))
    assert found[ORIGINAL].text == "도커 이미지는 어떻게 만드나요?"
    assert found["particle changed"].text == "도커 이미지가 어떻게 만드나요?"
    assert found["ending: 습니까"].text == "도커 이미지는 어떻게 만듭니까?"
    assert found["spaces removed"].text == "도커이미지는어떻게만드나요?"
    assert found["Latin spelling"].text == "Docker 이미지는 어떻게 만드나요?"
    assert found["two words"].text == "도커 이미지"
    assert found["follow-up in a session"].history == ("도커 이미지는 어떻게 만드나요?",)


def test_a_page_that_is_not_found_is_a_miss() -> None:
    assert ndcg(["b.md", "a.md"], "a.md") < 1
    outcome = Outcome()
    for name, gain, refused in ((ORIGINAL, 1.0, False), ("NFD", 0.0, True)):
        outcome.ndcg[name], outcome.original[name], outcome.refused[name] = [gain], [1.0], [refused]
    outcome.off_refused = [False]
    assert len(outcome.misses()) == 3

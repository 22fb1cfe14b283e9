"""A worker before a real inference engine. Slow and opt-in: ./tests/smoke/run, see docs/providers.md."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from protostar_client import keys

from rag.prompt.sentences import split_sentences
from tests.smoke.engine import MODEL, Engine, running_engine
from tests.support import stack_under_test as harness
from tests.support.stack_under_test import Stack, check_order, text_of, until

CONTEXT_TOKENS: Final = 1_024
"""Of the engine; the worker is told eight times as many."""
PATIENCE_S: Final = 300.0
DOCUMENT: Final = "# Leases\n\nEvery running job has a lease. The lease of a job is 15 seconds long.\n"
PERSONA: Final = "You are a helpful assistant. Answer in English, from the text in the blocks where there is one.\n"
PROMPTS: Final = {
    "general": PERSONA,
    "page_context": PERSONA,
    "summary": "Sum up the text in the block in one or two sentences, in English.\n",
}
LONG: Final = "Write a long story about a fox, an owl and a river."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(tmp_path_factory.mktemp("engine"), context_tokens=CONTEXT_TOKENS) as running:
        yield running


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "DEADLINE_S", PATIENCE_S)


@pytest.fixture
async def stack(redis_url: str, database_url: str, engine: Engine, tmp_path: Path) -> AsyncIterator[Stack]:
    for folder in ("corpus", "prompts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "corpus" / "leases.md").write_text(DOCUMENT)
    for name, text in PROMPTS.items():
        (tmp_path / "prompts" / f"{name}.md").write_text(text)
    stack = Stack(redis_url, database_url, engine, tmp_path, tmp_path / "corpus")
    stack.environment |= {
        "PROTOSTAR_CHAT_MODEL": MODEL,
        "PROTOSTAR_PROMPTS_DIR": str(tmp_path / "prompts"),
        "PROTOSTAR_CONTEXT_WINDOW": str(8 * CONTEXT_TOKENS),
        "PROTOSTAR_MAX_OUTPUT_TOKENS": "200",
        "PROTOSTAR_FIRST_TOKEN_TIMEOUT": "240",
    }
    yield stack
    await stack.close()


async def answered(stack: Stack, content: str, **how: Any) -> tuple[str, list[dict[str, Any]]]:
    """A question's job, and its events up to the ending."""
    start_s = time.monotonic()
    job = await stack.ask(content, **how)
    events = await stack.events(job.job_id)
    check_order(events)
    told = {key: events[-1][key] for key in ("type", "finish_reason", "usage", "code", "message") if key in events[-1]}
    print(f"\n{time.monotonic() - start_s:.1f} s: {told}\n{text_of(events)}")
    return job.job_id, events


async def charge_of(stack: Stack, job_id: str) -> dict[str, Any]:
    [charge] = await stack.rows("SELECT * FROM charges WHERE job_id = $1", job_id)
    return charge


PROVIDERS: Final = {
    "openai": {"PROTOSTAR_PROVIDER": "openai"},
    "openrouter": {"PROTOSTAR_PROVIDER": "openrouter", "OPENROUTER_API_KEY": "sk-none"},
}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_chat_and_its_usage(stack: Stack, engine: Engine, provider: str) -> None:
    await stack.start_worker(OPENROUTER_BASE_URL=engine.base_url, **PROVIDERS[provider])

    async def indexed() -> object:
        return await stack.rows("SELECT 1 FROM documents")

    await until(indexed, "the corpus is indexed", stack.logs)
    job_id, events = await answered(stack, "How long is the lease of a job?")
    kinds = [event["type"] for event in events]
    assert (kinds[:3], kinds[-1]) == (["start", "sources", "delta"], "done"), events
    assert len(kinds) > 4, "it was streamed"
    [_, message] = await stack.messages(job_id)
    assert message["content"] == text_of(events)
    assert "15" in message["content"]
    assert (message["model"], message["finish_reason"]) == (MODEL, "stop")
    usage = events[-1]["usage"]
    assert (usage["estimated"], usage["cost"]) == (False, None)
    assert 40 < usage["input_tokens"] < CONTEXT_TOKENS
    assert 5 < usage["output_tokens"] <= 200
    charge = await charge_of(stack, job_id)
    assert (charge["input_tokens"], charge["output_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
    assert (charge["estimated"], charge["outcome"], charge["provider"]) == (False, "done", provider)

    async def learned() -> object:
        return await stack.redis.hget(keys.TOKEN_RATIOS, MODEL)  # type: ignore[misc]

    assert await until(learned, "the worker learned how the model counts")


async def test_a_long_answer_gets_a_summary(stack: Stack) -> None:
    await stack.start_worker()
    job_id, _ = await answered(stack, LONG)
    [_, message] = await stack.messages(job_id)
    summary_job = f"summary:{message['id']}"
    result = (await stack.result(summary_job))["r"]
    print(result)
    assert 1 <= len(split_sentences(result["summary"])) <= 3
    [_, message] = await stack.messages(job_id)
    assert message["summary"] == result["summary"]
    assert len(message["summary"]) < len(message["content"])
    charge = await charge_of(stack, summary_job)
    assert (charge["estimated"], charge["outcome"]) == (False, "done")
    assert charge["output_tokens"] > 0


async def test_cancelling_stops_the_engine(stack: Stack, engine: Engine) -> None:
    await stack.start_worker(PROTOSTAR_MAX_OUTPUT_TOKENS="900")
    job = await stack.ask(LONG)
    await stack.until_said(job.job_id, ".")
    assert engine.in_flight() == 1
    start_s = time.monotonic()
    await stack.redis.zadd("arq:abort", {job.job_id: int(time.time() * 1000)})
    await engine.until_idle()
    print(f"\nthe engine stopped after {time.monotonic() - start_s:.2f} s")
    events = await stack.events(job.job_id)
    check_order(events)
    assert events[-1]["type"] == "cancelled"
    [_, message] = await stack.messages(job.job_id)
    assert (message["status"], message["content"]) == ("cancelled", text_of(events))
    assert (await charge_of(stack, job.job_id))["estimated"] is True


@pytest.mark.parametrize(
    "sentence",
    ["The fox met the owl near the river. ", "A context size is what a model can read. "],
    ids=["plain", "in-the-words-of-its-refusal"],
)
async def test_a_prompt_beyond_the_engines_window_is_made_smaller_once(stack: Stack, sentence: str) -> None:
    await stack.start_worker()
    job_id, events = await answered(stack, "What is this text about?", mode="page_context", context=sentence * 300)
    assert (events[-1]["type"], events[-1]["attempt"]) == ("done", 1), events
    assert stack.logs().count("context_overflowed") == 1
    usage = json.loads((await stack.messages(job_id))[1]["usage"])
    assert CONTEXT_TOKENS / 2 < usage["input_tokens"] < CONTEXT_TOKENS - 200


async def test_a_question_beyond_the_engines_window_ends_with_the_numbers(stack: Stack) -> None:
    await stack.start_worker()
    job_id, events = await answered(stack, "Who is the fox and who is the owl? " * 200)
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "context_length")
    assert "PROTOSTAR_CONTEXT_WINDOW says 8192" in events[-1]["message"]
    assert (await charge_of(stack, job_id))["outcome"] == "context_length"

"""The local model server: what its voice says, and that it obeys its script."""

from __future__ import annotations

import gzip
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rag.prompt.budget import Turn, build_prompt
from rag.prompt.summary import build_summary_prompt
from stack.model_server import voice
from tests.support.model_control import ModelControl, running_model_server

PROMPTS = Path(__file__).resolve().parents[2] / "rag" / "prompt" / "shipped"
NOTICE = "(로컬 데모 모델: 문서에서 그대로 옮긴 문장입니다.)"


class Passage(NamedTuple):
    document: str
    heading: str
    text: str


REDIS = Passage(
    "redis.md",
    "AOF",
    "## AOF\n\nRedis는 명령을 **파일에** 덧붙여\n기록합니다. "
    "`appendfsync everysec`이면 최대 1초의 쓰기를 잃습니다.\n\n"
    "| 값 | 뜻 |\n|---|---|\n| always | 쓰기마다. |\n\n```sh\nredis-cli CONFIG GET appendfsync\n```\n",
)
POSTGRES = Passage("ko/postgres.md", "WAL", "PostgreSQL keeps a write-ahead log. A commit waits for the log's flush.")


def count_words(text: str) -> int:
    return len(text.split())


def answer(question: str, *, passages: Sequence[Passage] = (), history: Sequence[Turn] = (), page: str = "") -> str:
    prompt = build_prompt(
        (PROMPTS / "general.md").read_text(),
        question,
        passages=passages,
        history=history,
        page_context=page,
        context_window=8192,
        max_output_tokens=512,
        count=count_words,
    )
    return voice.answer(prompt.messages)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelControl]:
    with running_model_server(tmp_path_factory.mktemp("model")) as control:
        yield control


@pytest.fixture(autouse=True)
def _fresh(model: ModelControl) -> None:
    model.reset()


def ask(server: ModelControl, /, **body: Any) -> tuple[int, str]:
    sent = {"model": "m", "messages": [{"role": "user", "content": "질문"}], **body}
    headers = {"Authorization": "Bearer sk-secret", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", data=json.dumps(sent).encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_an_answer_quotes_the_fitting_sentence_first_and_names_its_document() -> None:
    paragraphs = answer("AOF는 최대 몇 초의 쓰기를 잃나요?", passages=[POSTGRES, REDIS]).split("\n\n")
    assert paragraphs[0] == "`appendfsync everysec`이면 최대 1초의 쓰기를 잃습니다."
    assert paragraphs[-1] == f"{NOTICE} 출처: redis.md"
    assert len(paragraphs) <= 3


def test_an_english_question_is_answered_in_english() -> None:
    text = answer("What does a commit wait for?", passages=[REDIS, POSTGRES])
    assert text.startswith("A commit waits for the log's flush.")
    assert "(Local demo model: these sentences are quoted from the documents.) Sources: ko/postgres.md" in text


def test_headings_tables_and_code_are_not_quoted() -> None:
    text = answer("appendfsync always 쓰기마다 CONFIG GET", passages=[REDIS])
    assert not any(part in text for part in ("##", "|", "redis-cli"))


def test_without_passages_it_says_that_the_documents_hold_no_answer() -> None:
    assert answer("오늘 서울의 날씨는?").startswith("문서에는 이 질문에 대한 답이 없습니다.")
    assert answer("Will it rain?").startswith("The documents hold no answer to this question.")


def test_a_follow_up_is_answered_from_the_summary_of_the_conversation() -> None:
    history = [Turn("AOF란?", "아주 긴 답", "AOF는 최대 1초의 쓰기를 잃습니다.")]
    text = answer("방금 한 답을 다시 말해 줘", passages=[POSTGRES], history=history)
    assert text == "AOF는 최대 1초의 쓰기를 잃습니다.\n\n(로컬 데모 모델: 앞선 대화에서 그대로 옮긴 문장입니다.)"


def test_a_page_is_summed_up_by_its_first_sentences() -> None:
    text = answer("이 페이지를 요약해 줘", page="첫 문장입니다. 둘째 문장입니다. 셋째 문장입니다. 넷째 문장입니다.")
    assert "첫 문장입니다." in text
    assert "셋째 문장입니다." in text
    assert "넷째" not in text


def test_a_summary_is_one_paragraph_of_three_sentences_without_the_demos_own_words() -> None:
    messages = build_summary_prompt(
        (PROMPTS / "summary.md").read_text(),
        f"결론은 1초입니다. 둘째 문장입니다.\n\n셋째 문장입니다. 넷째 문장입니다.\n\n{NOTICE} 출처: redis.md",
        context_window=8192,
        max_output_tokens=512,
        count=count_words,
    )
    assert voice.answer(messages) == "결론은 1초입니다. 둘째 문장입니다. 셋째 문장입니다."


@pytest.mark.parametrize("text", ["", " ", "안녕하세요, hello  world\n\n끝 ", "👋🏽 `x`"])
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(voice.pieces(text)) == text
    assert voice.count(text) == len(voice.pieces(text))


def test_a_stream_and_a_whole_answer_say_and_count_the_same(model: ModelControl) -> None:
    status, whole = ask(model)
    assert status == 200
    _, stream = ask(model, stream=True, stream_options={"include_usage": True})
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    texts = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    body = json.loads(whole)
    assert "".join(texts) == body["choices"][0]["message"]["content"]
    assert events[-1]["usage"] == body["usage"]
    assert body["usage"]["completion_tokens"] == len(list(filter(None, texts)))
    assert stream.endswith("data: [DONE]\n\n")


def test_an_answer_is_cut_at_the_limit_of_tokens(model: ModelControl) -> None:
    body = json.loads(ask(model, max_tokens=3)[1])
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


def test_a_behaviour_holds_for_the_requests_that_match_and_no_longer(model: ModelControl) -> None:
    model.script(
        {"model": "other", "status": 500, "times": None},
        {"contains": "질문", "status": 429, "headers": {"Retry-After": "2"}, "times": 2},
    )
    assert [ask(model)[0] for _ in range(3)] == [429, 429, 200]
    assert [ask(model, model="other")[0] for _ in range(3)] == [500, 500, 500]
    model.reset()
    assert ask(model, model="other")[0] == 200


def test_a_script_with_a_mistake_is_refused(model: ModelControl) -> None:
    with pytest.raises(urllib.error.HTTPError, match="422") as raised:
        model.script({"statsu": 500})
    raised.value.close()


async def test_requests_are_logged_without_the_key(model: ModelControl) -> None:
    ask(model)
    await model.until_idle()
    (request,) = model.requests()
    assert request["path"] == "/v1/chat/completions"
    assert request["body"]["messages"][0]["content"] == "질문"
    assert request["headers"]["authorization"] == "redacted"
    assert request["arrived_at"] <= request["closed_at"]
    assert not request["closed_early"]


def test_a_response_can_be_spelled_out(model: ModelControl) -> None:
    model.script({"raw": ["a", 0.01, "가"], "raw_times": 2, "encoding": "euc-kr", "split_bytes": 1})
    assert ask_for_bytes(model) == "a가a가".encode("euc-kr")
    model.script({"raw": ["data: 가\n\n"], "gzip": True})
    assert gzip.decompress(ask_for_bytes(model)).decode() == "data: 가\n\n"


@pytest.mark.parametrize(("fault", "error"), [("drop", ConnectionResetError), ("cut", http.client.IncompleteRead)])
def test_a_response_can_be_broken_off(model: ModelControl, fault: str, error: type[Exception]) -> None:
    for behaviour in ({"raw": ["data: a", 0.05]}, {"pieces": ["a"], "after": 1, "delay_s": 0.05}):
        model.script({**behaviour, "fault": fault})
        with pytest.raises(error):
            ask_for_bytes(model)


def ask_for_bytes(server: ModelControl) -> bytes:
    sent = {"model": "m", "messages": [{"role": "user", "content": "질문"}], "stream": True}
    request = urllib.request.Request(f"{server.base_url}/chat/completions", data=json.dumps(sent).encode())
    with urllib.request.urlopen(request, timeout=20) as response:
        found: bytes = response.read()
    return found

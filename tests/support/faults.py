"""The rows of the fault matrix: faults of a provider and the endings of their jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

FIRST_TOKEN_S: Final = 2.0
STALL_S: Final = 2.0
JOB_S: Final = 7.0
MAX_OUTPUT_TOKENS: Final = 64
MAX_TRIES: Final = 5

PIECES: Final = ["온전", "한 ", "답입니다."]
ANSWER: Final = "".join(PIECES)
EVENTS: Final = "text/event-stream"
HERE: Final = "/v1/chat/completions"
NOWHERE: Final = "http://255.255.255.255/v1/chat/completions"
DATE_IN_2_S: Final = "the date in two seconds"
"""Stands for an HTTP date in a header's value, until the matrix runs."""
FOR_EVER: Final[dict[str, Any]] = {"times": None}

Behaviour = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One misbehaviour. After its script the provider answers `ANSWER` as it should.

    `limit_s` is what an attempt may take by the limits that are set, or by the provider's own pace.
    """

    title: str
    script: list[Behaviour] = field(default_factory=list)
    ending: str = "done"
    requests: int = 2
    text: str | None = ANSWER
    limit_s: float = 0.0
    attempts: int | None = None
    """None: as many as requests."""
    is_reachable: bool = True

    @property
    def outcome(self) -> str:
        """The ending in the page's words."""
        if self.ending != "done":
            return f"`{self.ending}`"
        return "the answer" if (self.attempts or self.requests) == 1 else "the next answer"


def event(body: object) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def delta(text: str, **more: Any) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more})


def finish(reason: str = "stop", **more: Any) -> str:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more})


USAGE: Final = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
DONE: Final = "data: [DONE]\n\n"
DELTAS: Final = "".join(map(delta, PIECES))
END: Final = finish() + event({"choices": [], "usage": USAGE}) + DONE


def raw(*parts: str | float, **more: Any) -> Behaviour:
    """A stream that is spelled out."""
    return {"raw": list(parts), "content_type": EVENTS, **more}


def thought(**fields: Any) -> str:
    return event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None, **fields}}]})


THINKING: Final[list[str | float]] = [thought(reasoning="흠"), 1.0, thought(reasoning_content="음"), 1.0]


def right(title: str, behaviour: Behaviour, *, text: str = ANSWER, limit_s: float = 0.0) -> Case:
    """The first attempt makes a right answer of it."""
    return Case(title, [behaviour], requests=1, text=text, limit_s=limit_s)


def again(title: str, behaviour: Behaviour, *, limit_s: float = 0.0) -> Case:
    """The attempt fails, the next one answers."""
    return Case(title, [behaviour], limit_s=limit_s)


def final(title: str, behaviour: Behaviour, code: str, *, requests: int = 1, limit_s: float = 0.0) -> Case:
    """No further attempt would help, or all of them are used up."""
    return Case(title, [FOR_EVER | behaviour], ending=code, requests=requests, text=None, limit_s=limit_s)


def status(number: int, said: str = "", code: str | None = None, **more: Any) -> Behaviour:
    return {"status": number, "error": {"message": said or "no", "code": code, "type": None}, **more}


def error_chunk(said: str, code: int | str) -> Behaviour:
    return {"pieces": PIECES, "after": 1, "fault": "error_chunk", "error": {"message": said, "code": code}}


MEGABYTE: Final = "0" * 1_000_000
CONTEXT_LENGTH: Final = "This model's maximum context length is 8192 tokens."

REACHING: Final = [
    Case(
        "refuses the connection",
        [],
        "provider_unavailable",
        requests=0,
        attempts=MAX_TRIES,
        text="",
        is_reachable=False,
    ),
    again("redirects to a host that can't be reached", {"status": 307, "headers": {"Location": NOWHERE}}),
    Case(
        "redirects once, keeping the method", [{"status": 307, "headers": {"Location": HERE}}], requests=2, attempts=1
    ),
    final("redirects to itself", {"status": 307, "headers": {"Location": HERE}}, "provider_error", requests=6),
    final("redirects so that a POST becomes a GET", {"status": 302, "headers": {"Location": HERE}}, "provider_error"),
    again("resets the connection before the headers", {"fault": "refuse"}),
    final(
        "accepts and never answers",
        {"status": 500, "fault": "stall"},
        "stalled",
        requests=MAX_TRIES,
        limit_s=FIRST_TOKEN_S,
    ),
]

WAITING: Final = [
    again("headers, then nothing", raw(fault="stall"), limit_s=FIRST_TOKEN_S),
    again("a role, never a token", {"pieces": PIECES, "fault": "stall"}, limit_s=FIRST_TOKEN_S),
    again("keep-alive comments for ever", raw(fault="keep_alive"), limit_s=FIRST_TOKEN_S),
    again("empty deltas for ever", {"pieces": PIECES, "fault": "empty_deltas"}, limit_s=FIRST_TOKEN_S),
    again("one token, then silence", {"pieces": PIECES, "after": 1, "fault": "stall"}, limit_s=STALL_S),
    again("one token, then keep-alives", {"pieces": PIECES, "after": 1, "fault": "keep_alive"}, limit_s=STALL_S),
    right("a token a second, within the stall limit", {"pieces": PIECES, "delay_s": 1.0}, limit_s=3.0),
    right("a finish reason, then silence", raw(DELTAS + finish(), fault="stall"), limit_s=STALL_S),
    right("a finish reason, then keep-alives", raw(DELTAS + finish(), fault="keep_alive"), limit_s=STALL_S),
    right(
        "thinks aloud for longer than the limits",
        raw(*THINKING, *THINKING, DELTAS + END),
        limit_s=4.0,
    ),
    final("thinks for ever", raw(thought(reasoning="흠"), 0.2, raw_times=None), "job_timeout", limit_s=JOB_S),
    final("a slow text that never ends", raw(delta("끝"), 0.2, raw_times=None), "job_timeout", limit_s=JOB_S),
    final("a fast text that never ends", raw(delta("끝" * 50), raw_times=None), "provider_error"),
]

BREAKING: Final = [
    again("a body that ends at once", raw()),
    again("ends after tokens without a finish reason", {"pieces": PIECES, "after": 2, "fault": "end"}),
    final(
        "does so every time", {"pieces": PIECES, "after": 2, "fault": "end"}, "provider_unavailable", requests=MAX_TRIES
    ),
    again("`[DONE]` without a finish reason", raw(DELTAS + DONE)),
    again("a reset in the middle of an event", raw(DELTAS + END[:20], 0.05, fault="drop")),
    again("chunked encoding cut off", raw(DELTAS, fault="cut")),
    again("ends in the middle of an event", raw(DELTAS + 'data: {"choices":[{"delta":{"content":"반')),
    again("gzip that is none", raw(DELTAS + END, headers={"Content-Encoding": "gzip"})),
    again("malformed JSON in an event", raw(DELTAS + 'data: {"id": "broken\n\n' + END)),
    again("an event that is a JSON list", raw(DELTAS + event([1]) + END)),
    again("text that is not UTF-8 but EUC-KR", raw(DELTAS + END, encoding="euc-kr")),
    again("gzip that inflates without end", raw("data: ", MEGABYTE, raw_times=None, gzip=True)),
    again("a line that never ends", raw("data: ", *["가" * 20_000] * 2, raw_times=None)),
]

NO_STREAM: Final = [
    again("200 with a JSON error", {"body": '{"error": {"message": "down", "code": 502}}'}),
    final("200 with a JSON error: the key", {"body": '{"error": {"message": "x", "code": 401}}'}, "provider_error"),
    again("200 with HTML", {"body": "<html>hello</html>", "content_type": "text/html"}),
    again("200 with an empty body", {"body": ""}),
    again("200 with a whole answer in place of a stream", {"body": json.dumps({"choices": [{"message": {}}]})}),
    again("200 with JSON that never ends", {"raw": ['{"x": "', MEGABYTE], "raw_times": None}),
    again("events that call themselves JSON", {"body": DELTAS + END}),
]

ERRORS: Final = [
    again("a server error between tokens", error_chunk("Provider returned error", 502)),
    again("a rate limit between tokens", error_chunk("slow down", 429)),
    final("a filter between tokens", error_chunk("flagged", "content_filter"), "content_filtered"),
    final("too long a context, said in the stream", error_chunk(CONTEXT_LENGTH, 400), "context_length"),
    right("an error after the finish reason", raw(DELTAS + finish() + event({"error": {"message": "x", "code": 502}}))),
    again("finish reason `error`", {"pieces": PIECES, "finish_reason": "error"}),
    final("finish reason `content_filter`", {"pieces": PIECES, "finish_reason": "content_filter"}, "content_filtered"),
    final("a refusal in place of text", raw(thought(refusal="못 합니다") + END), "content_filtered"),
    final("tool calls in place of text", raw(thought(tool_calls=[{}]) + finish("tool_calls") + DONE), "provider_error"),
    final("all tokens spent on thinking", raw(thought(reasoning="흠") + finish("length") + DONE), "provider_error"),
    again("a finish reason and not a word", raw(END)),
]

ODD: Final = [
    right("finish reason `length`", {"pieces": PIECES, "finish_reason": "length"}),
    right("no choices in a chunk", {"pieces": PIECES, "after": 1, "fault": "empty_choices"}),
    right("chunks without `choices`", raw(event({"id": "x"}) + DELTAS + END)),
    right("a delta that is null", raw(event({"choices": [{"delta": None}]}) + DELTAS + END)),
    right("content that is null, with a role", raw(thought() + DELTAS + END)),
    right("no usage", raw(DELTAS + finish() + DONE)),
    right("a usage of nonsense", raw(DELTAS + finish(usage={"prompt_tokens": "many"}) + DONE)),
    right("a usage of 1e300", raw(DELTAS + finish(usage=USAGE | {"prompt_tokens": 1e300}) + DONE)),
    right("a usage below zero", raw(DELTAS + finish(usage=USAGE | {"completion_tokens": -1}) + DONE)),
    right("a finish reason of 80 characters", {"pieces": PIECES, "finish_reason": "stop" * 20}),
    right("usage before the finish reason", raw(DELTAS + event({"choices": [], "usage": USAGE}) + finish() + DONE)),
    right("usage beside the finish reason", raw(DELTAS + finish(usage=USAGE) + DONE)),
    right("no `[DONE]`", raw(DELTAS + finish(usage=USAGE))),
    right(
        "two answers at once",
        raw(*(delta(piece) + delta(piece).replace('"index": 0', '"index": 1') for piece in PIECES), END),
    ),
    right("fields that nobody knows", raw(delta("온전한 ", x=[{}], provider=None) + delta("답입니다.", y=1) + END)),
    right("CRLF, comments and JSON over many lines", {"line_end": "\r\n", "comments": True, "multi_line": True}),
    right("every byte a write of its own", {"split_bytes": 1}),
    right("the whole stream in one write", {"together": True}),
    right("an event of one megabyte", raw(delta("온전한 ", padding="x" * 1_000_000) + delta("답입니다.") + END)),
    right("gzip", {"pieces": PIECES, "gzip": True}),
    right("events that call themselves plain text", raw(DELTAS + END, content_type="text/plain")),
    right(
        "NUL, half a character, and one cut into two events",
        raw(
            *(
                f'data: {{"choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'
                for text in ("답\\u0000 \\ud83d", "\\udc4b \\udc4b.")
            ),
            END,
        ),
        text="답 👋 \ufffd.",
    ),
]

STATUSES: Final = [
    final("400, context length", status(400, CONTEXT_LENGTH, "context_length_exceeded"), "context_length"),
    final("400, content filter", status(400, "no", "content_filter"), "content_filtered"),
    final("400, anything else", status(400, "no such field"), "provider_error"),
    final("400, context length, in a body of 3 MB", status(400, CONTEXT_LENGTH + "7" * 3_000_000), "context_length"),
    final("401", status(401), "provider_error"),
    final("402, no credit", status(402), "provider_error"),
    final("403", status(403), "provider_error"),
    final("403, moderation", status(403, "flagged by moderation"), "content_filtered"),
    final("404, unknown model", status(404, code="model_not_found"), "provider_error"),
    again("408", status(408)),
    again("409", status(409)),
    final("413", {"status": 413, "body": "<html>too large</html>", "content_type": "text/html"}, "context_length"),
    final("422", status(422), "provider_error"),
    again("429", status(429)),
    final("429 every time", status(429), "rate_limited", requests=MAX_TRIES),
    again("429, Retry-After: 1", status(429, headers={"Retry-After": "1"})),
    again("429, Retry-After as a date", status(429, headers={"Retry-After": DATE_IN_2_S})),
    final("429, Retry-After: 30 years", status(429, headers={"Retry-After": "1000000000"}), "rate_limited"),
    final("429, quota used up", status(429, code="insufficient_quota"), "provider_error"),
    again("500", status(500)),
    final("500 every time", status(500), "provider_unavailable", requests=MAX_TRIES),
    again("500 whose body never ends", {"status": 500, "raw": [MEGABYTE], "raw_times": None}),
    again("500 whose body inflates without end", {"status": 500, "raw": [MEGABYTE], "raw_times": None, "gzip": True}),
    again("500 whose body falls silent", {"status": 500, "raw": ["{"], "fault": "stall"}, limit_s=FIRST_TOKEN_S),
    again("502 with HTML", {"status": 502, "body": "<html>", "content_type": "text/html"}),
    again("503, Retry-After: 1", status(503, headers={"Retry-After": "1"})),
    again("529, overloaded", status(529)),
]

GROUPS: Final = {
    "Reaching it": REACHING,
    "Waiting for it": WAITING,
    "Broken streams": BREAKING,
    "200, but no stream": NO_STREAM,
    "Errors in a stream": ERRORS,
    "Odd, but whole": ODD,
    "Statuses": STATUSES,
}
CASES: Final = [case for cases in GROUPS.values() for case in cases]


def script_of(case: Case, marker: str) -> list[Behaviour]:
    """The behaviours of a case, for requests whose question holds a marker."""
    answer = FOR_EVER | {"pieces": PIECES}
    return [{"pieces": PIECES, **behaviour} | {"contains": marker} for behaviour in [*case.script, answer]]

"""An answer as the OpenAI protocol puts it: JSON bodies, and bytes of server-sent events."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from stack.model_server.behaviour import Behaviour

KEEP_ALIVE: Final = "OPENROUTER PROCESSING"
KEEP_ALIVE_EVERY_S: Final = 0.05
_FOR_EVER_S: Final = float("inf")

_ERRORS: Final[dict[int, dict[str, Any]]] = {
    200: {"message": "Provider returned error", "code": 502},
    400: {
        "message": "This model's maximum context length is 8192 tokens. Please shorten the messages.",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
    },
    401: {
        "message": "Incorrect API key provided.",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    },
    404: {"message": "The model does not exist.", "type": "invalid_request_error", "code": "model_not_found"},
    429: {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"},
}


class DropError(Exception):
    """The connection is to be broken off here: with a TCP reset, or `clean` as if the response ended here."""

    def __init__(self, *, clean: bool = False) -> None:
        super().__init__()
        self.clean = clean


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of an answer and its form. `usage` is the final usage, None for none."""

    model: str
    pieces: list[str]
    delay_s: float
    finish_reason: str
    usage: dict[str, Any] | None
    behaviour: Behaviour


def error_body(behaviour: Behaviour) -> dict[str, Any]:
    """The body of an error response: the one of the script, or what OpenAI says with that status."""
    server_error = {"message": "The server had an error.", "type": "server_error", "code": None}
    return {"error": behaviour.error or _ERRORS.get(behaviour.status, server_error)}


def dump(body: object) -> bytes:
    """A JSON body."""
    return json.dumps(body, ensure_ascii=False).encode()


def whole(answer: Answer) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(answer.pieces), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    if answer.behaviour.fault == "error_chunk":
        choice = {**choice, "finish_reason": "error", "error": _chunk_error(answer.behaviour)}
    choices = [] if answer.behaviour.fault == "empty_choices" else [choice]
    usage = {} if answer.usage is None else {"usage": answer.usage}
    return {**_head(answer, "chat.completion"), "choices": choices, **usage}


async def stream(
    answer: Answer,
    *,
    include_usage: bool,
    pass_gate: Callable[[str], Awaitable[None]],
    sent: Callable[[], None],
) -> AsyncIterator[bytes]:
    """The writes of a streamed answer; `sent` is called for each piece.

    Raises:
        DropError: break the connection off here.
    """
    events = _events(answer, include_usage, pass_gate, sent)
    if answer.behaviour.together:
        yield b"".join([event async for event in events])
        return
    async for event in events:
        for part in _split(event, answer.behaviour.split_bytes):
            yield part
            if answer.behaviour.split_bytes:
                await asyncio.sleep(0)  # lets the transport write, so that the parts travel apart


async def raw(behaviour: Behaviour) -> AsyncIterator[bytes]:
    """The writes of a response that the script spells out, and then its fault.

    Raises:
        DropError: break the connection off here.
    """
    yield b""  # the headers go at once, also where nothing follows
    rounds = itertools.count() if behaviour.raw_times is None else range(behaviour.raw_times)
    for _ in rounds:
        for part in behaviour.raw or ():
            if isinstance(part, str):
                for piece in _split(part.encode(behaviour.encoding), behaviour.split_bytes):
                    yield piece
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(part)
    match behaviour.fault:
        case "stall":
            await silence(behaviour)
        case "drop" | "cut":
            raise DropError(clean=behaviour.fault == "cut")
        case "keep_alive":
            async for _ in _ticks(behaviour):
                yield _lines(f": {KEEP_ALIVE}", behaviour)


async def zipped(writes: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same writes in gzip's format, each to be read as it comes."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    async for part in writes:
        yield packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


async def _events(
    answer: Answer, include_usage: bool, pass_gate: Callable[[str], Awaitable[None]], sent: Callable[[], None]
) -> AsyncIterator[bytes]:
    behaviour = answer.behaviour
    yield _event(answer, {"role": "assistant", "content": ""})
    await asyncio.sleep(behaviour.first_delay_s)
    turning_point = min(behaviour.after, len(answer.pieces))
    for position, piece in enumerate([*answer.pieces, None]):
        if position == turning_point:
            if behaviour.hold is not None:
                await pass_gate(behaviour.hold)
            async for event in _fault(answer):
                yield event
            if behaviour.fault in ("end", "error_chunk"):
                return
        if piece is not None:
            yield _event(answer, {"content": piece})
            sent()
            await asyncio.sleep(answer.delay_s)
    yield _event(answer, {}, finish_reason=answer.finish_reason)
    if include_usage and answer.usage is not None:
        yield _data({**_head(answer), "choices": [], "usage": answer.usage}, behaviour)
    yield _lines("data: [DONE]", behaviour)


async def _fault(answer: Answer) -> AsyncIterator[bytes]:
    behaviour = answer.behaviour
    match behaviour.fault:
        case "drop" | "cut":
            raise DropError(clean=behaviour.fault == "cut")
        case "stall":
            await silence(behaviour)
        case "keep_alive":
            async for _ in _ticks(behaviour):
                yield _lines(f": {KEEP_ALIVE}", behaviour)
        case "empty_deltas":
            async for _ in _ticks(behaviour):
                yield _event(answer, {"role": "assistant", "content": ""})
        case "error_chunk":
            choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
            yield _data({**_head(answer), "error": _chunk_error(behaviour), "choices": [choice]}, behaviour)
        case "malformed":
            yield _lines('data: {"id": "broken', behaviour)
        case "empty_choices":
            yield _data({**_head(answer), "choices": []}, behaviour)


async def silence(behaviour: Behaviour) -> None:
    """Send nothing for as long as the script demands."""
    if behaviour.fault_s is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(behaviour.fault_s)


async def _ticks(behaviour: Behaviour) -> AsyncIterator[None]:
    length_s = _FOR_EVER_S if behaviour.fault_s is None else behaviour.fault_s
    start = time.monotonic()
    while time.monotonic() - start < length_s:
        yield
        await asyncio.sleep(KEEP_ALIVE_EVERY_S)


def _chunk_error(behaviour: Behaviour) -> dict[str, Any]:
    error: dict[str, Any] = error_body(behaviour)["error"]
    return error


def _head(answer: Answer, kind: str = "chat.completion.chunk") -> dict[str, Any]:
    return {
        "id": "chatcmpl-local",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
        "system_fingerprint": None,
    }


def _event(answer: Answer, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return _data({**_head(answer), "choices": [choice]}, answer.behaviour)


def _data(chunk: dict[str, Any], behaviour: Behaviour) -> bytes:
    field = "data: " if behaviour.space else "data:"
    text = json.dumps(chunk, ensure_ascii=False, indent=1 if behaviour.multi_line else None)
    return _lines("\n".join(field + line for line in text.split("\n")), behaviour)


def _lines(text: str, behaviour: Behaviour) -> bytes:
    comment = ": a comment\n\n" if behaviour.comments else ""
    return f"{comment}{text}\n\n".replace("\n", behaviour.line_end).encode()


def _split(data: bytes, size: int | None) -> Iterator[bytes]:
    step = size or len(data)
    for start in range(0, len(data), step):
        yield data[start : start + step]

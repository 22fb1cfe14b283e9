"""The routes: OpenAI's, and those that steer and watch the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stack.model_server import embedder, voice, wire
from stack.model_server.behaviour import Behaviour, Script
from stack.model_server.connections import Connections
from stack.model_server.embedder import Embedder
from stack.model_server.log import LoggedRequest, RequestLog
from stack.model_server.reply import Reply

_BEHAVIOURS = TypeAdapter(list[Behaviour])


class ModelServer:
    """The server's parts and its routes."""

    def __init__(self, *, tokens_per_second: float) -> None:
        self._delay_s = 1 / tokens_per_second if tokens_per_second > 0 else 0.0
        self._script = Script()
        self._log = RequestLog()
        self._embedder = Embedder()
        self.connections = Connections()
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/control", self.control, methods=["POST"]),
                Route("/control", self.reset, methods=["DELETE"]),
                Route("/control/release/{gate}", self.release, methods=["POST"]),
                Route("/requests", self.requests),
                Route("/state", self.state),
            ]
        )

    async def models(self, _request: Request) -> Response:
        """The names that this server calls itself."""
        names = (voice.MODEL, embedder.MODEL)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in names]
        return JSONResponse({"object": "list", "data": models})

    async def chat(self, request: Request) -> Response:
        """An answer, whole or streamed, as the script or else the voice gives it."""
        body = await request.json()
        logged = self._log.open(request.url.path, dict(request.headers), body)
        messages = body["messages"]
        behaviour = self._script.take("chat", model=body["model"], text=voice.last_question(messages))
        if behaviour.replaces_answer:
            return self._spoiled(behaviour, logged)
        answer = self._answer(body, behaviour)
        if not body.get("stream"):
            return self._reply(self._whole(answer, logged), logged, behaviour)
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        writes = wire.stream(
            answer,
            include_usage=include_usage,
            pass_gate=self._script.pass_gate,
            sent=logged.count_piece,
        )
        return self._reply(writes, logged, behaviour, content_type="text/event-stream")

    async def embeddings(self, request: Request) -> Response:
        """One vector a text, in order."""
        body = await request.json()
        logged = self._log.open(request.url.path, dict(request.headers), body)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        behaviour = self._script.take("embeddings", model=body["model"], text=texts[-1] if texts else "")
        if behaviour.replaces_answer:
            return self._spoiled(behaviour, logged)
        return self._reply(self._vectors(texts, body["model"], behaviour), logged, behaviour)

    async def control(self, request: Request) -> Response:
        """Add behaviours: one JSON object, or a list of them."""
        try:
            script = await request.json()
            behaviours = _BEHAVIOURS.validate_python(script if isinstance(script, list) else [script])
        except (ValidationError, ValueError) as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=422)
        self._script.extend(behaviours)
        return Response(status_code=204)

    async def reset(self, _request: Request) -> Response:
        """Forget the script and the log, and open every gate."""
        self._script.reset()
        self._log.clear()
        return Response(status_code=204)

    async def release(self, request: Request) -> Response:
        """Open a gate."""
        self._script.release(request.path_params["gate"])
        return Response(status_code=204)

    async def requests(self, request: Request) -> Response:
        """The newest requests, oldest first; `?last=N` for so many."""
        return JSONResponse(self._log.last(int(request.query_params.get("last", "100"))))

    async def state(self, _request: Request) -> Response:
        """How many responses are under way, and how many wait at each gate."""
        waiting = {gate: count for gate, count in self._script.waiting.items() if count}
        return JSONResponse({"in_flight": self._log.in_flight(), "waiting": waiting})

    def _answer(self, body: dict[str, Any], behaviour: Behaviour) -> wire.Answer:
        pieces, delay_s, finish_reason = behaviour.pieces, behaviour.delay_s, behaviour.finish_reason
        if pieces is None:
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            pieces = voice.pieces(voice.answer(body["messages"]))
            delay_s = self._delay_s if delay_s is None else delay_s
            if limit is not None and len(pieces) > limit:
                pieces, finish_reason = pieces[:limit], "length"
        usage = behaviour.usage
        if usage == "counted":
            usage = _usage(sum(voice.count(voice.text_of(message)) for message in body["messages"]), len(pieces))
        return wire.Answer(
            model=body["model"],
            pieces=pieces,
            delay_s=delay_s or 0.0,
            finish_reason=finish_reason,
            usage=None if usage == "absent" else dict(usage),
            behaviour=behaviour,
        )

    async def _whole(self, answer: wire.Answer, logged: LoggedRequest) -> AsyncIterator[bytes]:
        await self._wait(answer.behaviour)
        body = wire.dump(wire.whole(answer))
        if answer.behaviour.fault == "drop":
            yield body[: len(body) // 2]
            raise wire.DropError
        logged.pieces_sent = len(answer.pieces)
        yield body

    async def _vectors(self, texts: list[str], model: str, behaviour: Behaviour) -> AsyncIterator[bytes]:
        await self._wait(behaviour)
        vectors = await self._embedder.embed(texts)
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        usage = _usage(sum(map(voice.count, texts)), 0)
        yield wire.dump({"object": "list", "data": data, "model": model, "usage": usage})

    async def _wait(self, behaviour: Behaviour) -> None:
        await asyncio.sleep(behaviour.first_delay_s)
        if behaviour.hold is not None:
            await self._script.pass_gate(behaviour.hold)
        if behaviour.fault == "stall":
            await wire.silence(behaviour)

    def _spoiled(self, behaviour: Behaviour, logged: LoggedRequest) -> Response:
        async def writes() -> AsyncIterator[bytes]:
            await self._wait(behaviour)
            if behaviour.fault == "refuse":
                raise wire.DropError
            body = behaviour.body
            yield wire.dump(wire.error_body(behaviour)) if body is None else body.encode(behaviour.encoding)

        written = writes() if behaviour.raw is None else wire.raw(behaviour)
        return self._reply(written, logged, behaviour, content_type=behaviour.content_type)

    def _reply(
        self,
        writes: AsyncIterator[bytes],
        logged: LoggedRequest,
        behaviour: Behaviour,
        content_type: str = "application/json",
    ) -> Reply:
        zipped = {"Content-Encoding": "gzip"} if behaviour.gzip else {}
        return Reply(
            wire.zipped(writes) if behaviour.gzip else writes,
            logged=logged,
            connections=self.connections,
            status=behaviour.status,
            headers=zipped | behaviour.headers,
            content_type=content_type,
        )


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total}

"""An optional stage after the search: a model orders the best candidates by a `/rerank` endpoint.

The request is the common form of Cohere, Jina, vLLM, TEI and llama.cpp. Where the endpoint fails or is late, the order
of the search stays.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import structlog

from protostar.settings import CorpusSettings

logger = structlog.stdlib.get_logger("protostar.rerank")

CANDIDATES: Final = 50
TIMEOUT_S: Final = 0.8
REPLY_BYTES: Final = 1024 * 1024
"""A reply needs 50 numbers, but some servers repeat the texts."""

TEXT_CHARACTERS: Final = 4000
_LARGEST: Final = 1e9
_FAILURES: Final = 3
_PAUSE_S: Final = 10.0
"""After so many failures in a row the endpoint is not asked for a while: each costs a question 800 ms."""


class RerankError(Exception):
    """The endpoint gave no order; the message says why."""


class _UnknownFormError(RerankError):
    """The endpoint does not take the form of the request."""


class Reranker:
    """One reranking model. A passage of a lower score than `threshold` is not given; None leaves that to the search."""

    def __init__(self, base_url: str, model: str, *, api_key: str = "", threshold: float | None = None) -> None:
        self.threshold = threshold
        self._url = base_url.rstrip("/") + "/rerank"
        self._model = model
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        self._is_tei = False
        self._failures = 0
        self._paused_until = 0.0

    async def scores(self, question: str, texts: Sequence[str]) -> dict[int, float] | None:
        """Return the score of each text by its place; None where there is no answer in time."""
        if not texts or time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = _read_scores(await self._ask(question, texts), len(texts))
        except (RerankError, httpx.HTTPError, httpx.StreamError, OSError, TimeoutError) as error:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._paused_until = time.monotonic() + _PAUSE_S
            logger.warning("rerank_failed", error=type(error).__name__, reason=str(error)[:200])
            return None
        self._failures = 0
        return found

    async def _ask(self, question: str, texts: Sequence[str]) -> bytes:
        query, cut = question[:TEXT_CHARACTERS], [text[:TEXT_CHARACTERS] for text in texts]
        if not self._is_tei:
            try:
                return await self._post({"model": self._model, "query": query, "documents": cut, "top_n": len(texts)})
            except _UnknownFormError:
                reply = await self._post({"query": query, "texts": cut})
                self._is_tei = True
                return reply
        return await self._post({"query": query, "texts": cut})

    async def _post(self, body: Mapping[str, Any]) -> bytes:
        async with self._http.stream("POST", self._url, json=body) as response:
            if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
                raise _UnknownFormError(f"status {response.status_code}")
            if response.status_code != httpx.codes.OK:
                raise RerankError(f"status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise RerankError("the reply is compressed, which was not asked for")
            reply = b""
            async for piece in response.aiter_raw():
                reply += piece
                if len(reply) > REPLY_BYTES:
                    raise RerankError(f"the reply is longer than {REPLY_BYTES} bytes")
            return reply

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def _read_scores(reply: bytes, count: int) -> dict[int, float]:
    """Read the scores of a reply: `{"results": [{"index", "relevance_score"}]}`, or TEI's `[{"index", "score"}]`."""
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        raise RerankError("the reply is not JSON") from None
    results = value.get("results") if isinstance(value, dict) else value
    if not isinstance(results, list):
        raise RerankError("the reply has no results")
    found = dict(_read_score(result, count) for result in results[:count])
    if not found:
        raise RerankError("the reply has no results")
    return found


def _read_score(result: Any, count: int) -> tuple[int, float]:
    if isinstance(result, dict):
        index: Any = result.get("index")
        score: Any = result.get("relevance_score", result.get("score"))
        if type(index) is int and 0 <= index < count and type(score) in (int, float) and abs(score) < _LARGEST:
            return index, float(score)
    raise RerankError("a result has no index of a text, or no score")


def make_reranker(settings: CorpusSettings) -> Reranker | None:
    """Make the reranker of the settings; None where they name none."""
    if not settings.rerank_model or settings.rerank_base_url is None:
        return None
    key = settings.rerank_api_key.get_secret_value() if settings.rerank_api_key is not None else ""
    url = settings.rerank_base_url.get_secret_value()
    return Reranker(url, settings.rerank_model, api_key=key, threshold=settings.rerank_threshold)


@asynccontextmanager
async def reranking(settings: CorpusSettings) -> AsyncIterator[Reranker | None]:
    """Make the reranker of the settings for a `with` block."""
    reranker = make_reranker(settings)
    try:
        yield reranker
    finally:
        if reranker is not None:
            await reranker.close()

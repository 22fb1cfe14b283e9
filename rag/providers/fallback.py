"""Falls back to other models where one does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from rag.providers.protocol import (
    CompletionRequest,
    ContentFilteredError,
    ContextLengthError,
    Provider,
    ProviderError,
    StreamPart,
)

logger = structlog.stdlib.get_logger("protostar.provider")


@asynccontextmanager
async def stream_with_fallback(
    provider: Provider, request: CompletionRequest, fallback_models: Sequence[str]
) -> AsyncIterator[tuple[str, AsyncIterator[StreamPart]]]:
    """Stream from the first model that gives a first token, in the order `request.model`, `fallback_models`.

    After the first token there is no fallback: the reader has that token. A model for which the prompt is too long is
    skipped, too: the next one may have a larger window.

    Returns:
        The model, and the parts of its answer.

    Raises:
        ContextLengthError: no model answered, and for the named one the prompt was too long. A smaller prompt may
            succeed.
        ProviderError: the error of the last model, or of a stream that had begun.
    """
    models = [request.model, *fallback_models]
    overflow: ContextLengthError | None = None
    async with AsyncExitStack() as stack:
        for model in models:
            attempt = AsyncExitStack()
            try:
                parts = await attempt.enter_async_context(provider.stream(replace(request, model=model)))
                first = await anext(parts)
            except ContentFilteredError:
                await attempt.aclose()
                raise
            except ProviderError as error:
                await attempt.aclose()
                if isinstance(error, ContextLengthError) and overflow is None:
                    overflow = ContextLengthError(str(error), model=model)
                if model == models[-1]:
                    raise overflow or error from None
                logger.warning("model_failed", model=model, error=error)
                continue
            except BaseException:
                await attempt.aclose()
                raise
            await stack.enter_async_context(attempt)
            break
        yield model, _chain(first, parts)


async def _chain(first: StreamPart, rest: AsyncIterator[StreamPart]) -> AsyncIterator[StreamPart]:
    yield first
    async for part in rest:
        yield part

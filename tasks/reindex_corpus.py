"""The job that brings the corpus index up to date, by cron and on demand."""

from __future__ import annotations

from functools import partial
from typing import Any

from protostar_client.contract import ErrorCode, JobError, ReindexRequest

from rag.analysis.morphemes import MissingAnalyserError
from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import IGNORED, CorpusError
from rag.index.preparer import PreparingError
from rag.index.reindex import FanOut, ReindexRunning, reindex
from tasks.context import Context
from tasks.reindex_helpers import call_helpers


async def reindex_corpus(ctx: Context, *, full: bool = False) -> dict[str, Any]:
    """Index what has changed in the corpus folder, or with `full` everything.

    Returns:
        A `ReindexResult`.

    Raises:
        InvalidRequest: `full` is neither true nor false.
        JobError: the folder can't be read, Kiwi is asked for and missing, another reindexer is at work, or the process
            that prepares files was killed.
        ProviderError: not every text could be embedded; the next run goes on.
    """
    settings = ctx["tools"].settings
    request = ReindexRequest.parse({"full": full})
    try:
        done = await reindex(
            settings.corpus_dir,
            settings=ChunkSettings.of(settings),
            full=request.full,
            max_file_bytes=settings.max_file_bytes,
            ignore=IGNORED + settings.corpus_ignore,
            embedder=ctx["tools"].embedder,
            vector_index=settings.vector_search == "auto",
            fan_out=_fan_out(ctx),
        )
    except (CorpusError, ReindexRunning, MissingAnalyserError) as error:
        raise JobError(ErrorCode.INVALID_REQUEST, str(error)) from None
    except PreparingError as error:
        raise JobError(ErrorCode.INTERNAL, str(error)) from None
    return done.result.model_dump(exclude_defaults=True)


def _fan_out(ctx: Context) -> FanOut | None:
    """How a large run is shared with the other workers, if it is."""
    settings, owner = ctx["tools"].settings, ctx["queue"].owner
    if not settings.fan_out_bytes:
        return None
    return FanOut(settings.fan_out_bytes, owner, settings.lease, partial(call_helpers, ctx["redis"], owner))

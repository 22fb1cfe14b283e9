"""The job that helps a large reindex of another worker."""

from __future__ import annotations

from typing import Any

from rag.index.shared_runs import help_index
from tasks.context import Context


async def index_documents(ctx: Context, *, run: int) -> dict[str, Any]:
    """Index files of the run of that number, a unit at a time, until there are none to take.

    Returns:
        The run and the number of units that were written here.
    """
    settings = ctx["tools"].settings
    units = await help_index(run, settings.corpus_dir, worker=ctx["queue"].owner, lease_s=settings.lease)
    return {"run": run, "units": units}

"""Helping another process with a large reindex."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import structlog

from rag.index.batches import UnitWriter
from rag.index.document_rows import load_documents
from rag.index.runs import ReindexRunning, RunRecord
from rag.index.shared_runs import Claims, read_plan

logger = structlog.stdlib.get_logger("protostar.index")


async def help_index(run_id: int, corpus_dir: Path, *, worker: str, lease_s: float) -> int:
    """Index units of the run until there are none to take; returns how many were written.

    Units whose files are not in `corpus_dir` as the run's coordinator found them are left to it. A run that is over,
    or whose coordinator is gone or has another version of the splitter, is left alone.
    """
    plan = await read_plan(run_id)
    if plan is None:
        return 0
    run = RunRecord(run_id)
    documents = await load_documents()
    written = 0
    async with Claims(run, corpus_dir, worker=worker, leads=False, lease_s=lease_s) as claims:
        writer = UnitWriter(run, plan.generation, plan.settings, documents, plan.started_ns, claims)
        try:
            async with aclosing(writer.index(claims.units())) as indexed:
                async for _ in indexed:
                    written += 1
                    await run.progress_of_units()
        except ReindexRunning:
            logger.info("index_run_over", run=run_id)
    return written

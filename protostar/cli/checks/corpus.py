"""Checks of the corpus folder, the prompts and the index."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from protostar.cli.checks.finding import Away, Finding, note, ok, problem, told
from protostar.cli.checks.site import Site, in_thread
from protostar.cli.support.output import span
from rag.analysis.morphemes import MissingAnalyserError, is_installed
from rag.corpus.chunk import ChunkSettings
from rag.corpus.walk import SourceFile, Walk
from rag.index.generations import fingerprint
from rag.prompt.modes import PromptsError, load_prompts
from tasks.monitoring.store_status import IndexStatus

_REINDEX: Final = "run: protostar reindex"
_NAMED: Final = 3
_NS: Final = 1_000_000_000


async def corpus(site: Site) -> Finding:
    """Check that the folder exists, can be read and holds Markdown files."""
    site.require("PROTOSTAR_CORPUS_DIR")
    folder = site.settings.corpus_dir
    try:
        found = await site.walk()
    except Away as away:
        return problem("corpus", away.cause, away.remedy)
    if found.unread:
        names = ", ".join(found.unread[:_NAMED])
        remedy = "allow the account of the workers to read them"
        return problem("corpus", f"{len(found.unread)} folders of {folder} can't be read: {names}", remedy)
    if not found.files and not found.failures:
        return problem("corpus", f"the corpus folder {folder} is empty: no Markdown file is in it", "put some into it")
    if found.failures:
        first = found.failures[0]
        says = f"{len(found.files)} Markdown files; {len(found.failures)} are left out, {first.path}: it {first.reason}"
        return note("corpus", says, "see: protostar reindex --dry-run")
    return ok("corpus", f"{len(found.files)} Markdown files in {folder}")


async def prompts(site: Site) -> Finding:
    """Check that the prompts folder has the files that a worker needs."""
    site.require("PROTOSTAR_PROMPTS_DIR")
    try:
        found = await in_thread(lambda: load_prompts(site.settings.prompts_dir))
    except PromptsError as error:
        return problem("prompts", *told(str(error)))
    return ok("prompts", f"modes {', '.join(found.modes)}")


async def index(site: Site) -> list[Finding]:
    """Check that the index exists and matches the folder."""
    state = (await site.store()).index
    if state.generation is None:
        if state.is_reindexing:
            return [note("index", "there is no index yet; the first reindex is at work")]
        return [problem("index", "there is no index: every question goes without passages", _REINDEX)]
    found = [await _freshness(site, state)]
    if state.last_error and not state.is_reindexing:
        says = f"the index may be stale: the last reindex failed: {state.last_error}"
        found.append(problem("index", says, f"mend what it says, then {_REINDEX}"))
    if state.failed_documents:
        remedy = "see why: protostar reindex --dry-run"
        found.append(note("index", f"{state.failed_documents} files could not be indexed", remedy))
    return found


async def _freshness(site: Site, state: IndexStatus) -> Finding:
    size = f"{state.documents} documents, {state.chunks} chunks"
    age = f"last reindex {span(state.indexed_s)} ago"
    try:
        stale = await _other_settings(site) or _changes(await site.walk(), await _documents(site))
    except Away as away:
        return note("index", f"{size}; whether it is stale can't be told: {away.why}")
    if not stale:
        return ok("index", f"{size}, {age}")
    minutes = site.settings.reindex_minutes
    if state.is_reindexing:
        return note("index", f"the index is stale ({stale}); a reindex is at work")
    if minutes and state.indexed_s is not None and state.indexed_s < 2 * 60 * minutes and not state.last_error:
        says = f"the index is a little stale ({stale}, {age}); the next reindex comes within {minutes} min"
        return note("index", says, f"to have it now: {_REINDEX.removeprefix('run: ')}")
    remedy = _REINDEX + ("; a worker with reindex in PROTOSTAR_SERVE does so by itself" if minutes else "")
    return problem("index", f"the index is stale: {stale}, {age}", remedy)


async def _other_settings(site: Site) -> str:
    """Explain how the index's settings differ from the current ones; empty where they don't."""
    settings = site.settings
    for variable in ("CHAT_MODEL", "CHUNK_TOKENS", "CHUNK_OVERLAP", "MORPHEMES"):
        if f"PROTOSTAR_{variable}" in site.wrong:
            return ""
    how = ChunkSettings.of(settings)
    if how.morphemes and not is_installed():
        return str(MissingAnalyserError())
    database = await site.migrated()
    rows = await database.execute_query_dict("SELECT settings FROM generations WHERE is_current")
    is_same = not rows or rows[0]["settings"] == fingerprint(how, settings.embedding_model)
    return "" if is_same else "it was made with other chunk, model or embedding settings"


async def _documents(site: Site) -> dict[str, dict[str, Any]]:
    database = await site.migrated()
    rows = await database.execute_query_dict(
        "SELECT path, stamp, error, (SELECT max(ended_at) FROM reindex_runs WHERE error IS NULL) AS indexed_at "
        "FROM documents"
    )
    return {row["path"]: row for row in rows}


def _changes(found: Walk, documents: dict[str, dict[str, Any]]) -> str:
    """Explain how the folder differs from the index; empty where it doesn't."""
    new = [file.path for file in found.files if file.path not in documents]
    changed = [file.path for file in found.files if file.path in documents and _is_changed(file, documents[file.path])]
    gone = found.absent(documents, found.unseen)
    kinds = {"new": new, "changed": changed, "gone": gone}
    told = [f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {kind}" for kind, paths in kinds.items() if paths]
    named = ", ".join((new + changed + gone)[:_NAMED])
    return f"{', '.join(told)}: {named}" if told else ""


def _is_changed(file: SourceFile, row: dict[str, Any]) -> bool:
    if row["error"]:
        return False  # reported by itself
    if row["stamp"]:
        return bool(row["stamp"] != file.stamp)
    # A file that was fresh when it was read has no stamp; its times show whether it changed after the last reindex.
    read_at: datetime | None = row["indexed_at"]
    return read_at is None or file.changed_ns > read_at.timestamp() * _NS

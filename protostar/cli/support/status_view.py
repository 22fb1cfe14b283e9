"""Formats a status snapshot as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.text import Text

from protostar.cli.support.output import one_line, span

if TYPE_CHECKING:
    from tasks.monitoring.status import ModelStatus, QueueStatus, Status, WorkerStatus
    from tasks.monitoring.store_status import IndexStatus, OutboxStatus

_NAME_WIDTH: Final = 9
_HELD_UP_S: Final = 5.0
_WARNING: Final = "yellow"

_Line = tuple[str, str]
"""A text and its style; the style is empty where nothing needs attention."""


def status_text(status: Status) -> Text:
    """Format a snapshot, one or more lines for each part; styles mark what needs attention."""
    text = Text()
    for name, lines in _parts(status):
        for number, (line, style) in enumerate(lines):
            text.append(f"{'' if number else name:<{_NAME_WIDTH}}", style="bold")
            text.append(f"{line}\n", style=style or None)
    return text


def _parts(status: Status) -> Iterator[tuple[str, list[_Line]]]:
    yield "workers", [_worker(worker) for worker in status.workers] or [("none", _WARNING)]
    yield "queue", list(_queue(status.queue, has_workers=any(worker.is_alive for worker in status.workers)))
    yield "answers", [(f"{status.running_turns} running", "")]
    if status.models:
        yield "models", [_model(model) for model in status.models]
    if status.store is not None:
        yield "outbox", [_outbox(status.store.outbox)]
        yield "index", list(_index(status.store.index))


def _worker(worker: WorkerStatus) -> _Line:
    owner, beat = one_line(worker.owner), worker.beat
    if not worker.is_alive:
        return f"{owner}  no heartbeat; its {worker.running} jobs are about to be taken over", _WARNING
    slots = "  ".join(f"{name} {beat.busy.get(name, 0)}/{count}" for name, count in beat.slots.items())
    text = f"{owner}  beat {span(worker.beat_age_s)} ago  up {span(beat.up_s)}  running {worker.running}  {slots}"
    if beat.is_stopping:
        return f"{text}  stopping", _WARNING
    if beat.looked_s > _HELD_UP_S:
        return f"{text}  has not looked into the queue for {span(beat.looked_s)}", _WARNING
    return text, ""


def _queue(queue: QueueStatus, *, has_workers: bool) -> Iterator[_Line]:
    oldest = "" if queue.oldest_ready_s is None else f" (the oldest for {span(queue.oldest_ready_s)})"
    yield (
        f"{queue.length} in all: {queue.ready} ready{oldest}, {queue.waiting} waiting for their turn, "
        f"{queue.running} running, {queue.deferred} deferred",
        "" if has_workers or not queue.ready else _WARNING,
    )
    if queue.older:
        yield f"{queue.older} from older producers, not taken over", "" if has_workers else _WARNING
    if queue.dead:
        yield f"{queue.dead} given up: protostar jobs --state dead", _WARNING


def _model(model: ModelStatus) -> _Line:
    name = f"{one_line(model.provider)}:{one_line(model.model)}"
    left = [
        f"{rest} of {limit} {what} left this minute"
        for what, limit, rest in (
            ("requests", model.requests_per_minute, model.requests_left),
            ("tokens", model.tokens_per_minute, model.tokens_left),
        )
        if rest is not None
    ]
    state = "may be asked"
    if model.paused_s:
        state = f"paused for {span(model.paused_s)} ({one_line(model.reason)})"
    elif model.is_down:
        state = "was down; one request at a time tries it"
    return "  ".join((name, ", ".join((state, *left)))), _WARNING if model.paused_s or model.is_down else ""


def _outbox(outbox: OutboxStatus) -> _Line:
    return f"{outbox.depth} to be queued" + (f", the oldest for {span(outbox.oldest_s)}" if outbox.depth else ""), ""


def _index(index: IndexStatus) -> Iterator[_Line]:
    if index.generation is None:
        yield "none yet: protostar reindex makes it", _WARNING
    else:
        yield (
            f"generation {index.generation}, current {span(index.indexed_s)} ago: "
            f"documents {index.documents}, chunks {index.chunks}",
            "",
        )
    if index.is_reindexing:
        yield "a reindex runs", ""
    if index.failed_documents:
        yield f"{index.failed_documents} files could not be indexed", _WARNING
    if index.last_error:
        yield f"the last reindex failed: {one_line(index.last_error)}", _WARNING

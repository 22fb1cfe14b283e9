"""Checks of the workers and of their jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from protostar.cli.checks.finding import Away, Finding, note, ok, problem
from protostar.cli.checks.site import Site
from protostar.cli.support.output import span
from tasks.monitoring.queued_jobs import QueuedJob, queued_jobs
from tasks.monitoring.status import Status, WorkerStatus
from tasks.monitoring.stuck_jobs import next_jobs, overdue

SILENT_S: Final = 5.0
"""A live worker sends a heartbeat every half second and looks into the queue four times a second."""

LOOK_AGAIN_S: Final = 2.0
"""A ready job is claimed at once; one that is still ready after this time is stuck."""

LAG_S: Final = 0.5
"""An event loop that runs so late delays every token that the worker streams."""

OUTBOX_LATE_S: Final = 15.0
"""A follow-up job leaves the outbox within two seconds, or within ten after Redis was away."""

_START: Final = "start one: arq arq_settings.WorkerSettings"
_LISTED: Final = 5  # lines of one kind; there may be thousands of jobs


async def workers(site: Site) -> list[Finding]:
    """Check that there are workers and that each of them works."""
    status = await site.status()
    if not any(worker.is_alive for worker in status.workers):
        gone = [_gone(worker) for worker in status.workers]
        return [problem("workers", "no worker runs", _START), *gone]
    found = [finding for worker in status.workers if (finding := _worker_trouble(worker))]
    found += [_lag(worker) for worker in status.workers if _works(worker) and worker.beat.lag_s > LAG_S]
    if not any(_works(worker) for worker in status.workers) or found:
        return found or [problem("workers", "every worker is about to stop", _START)]
    return [ok("workers", f"{len(status.workers)} at work, {status.queue.running} jobs run")]


def _worker_trouble(worker: WorkerStatus) -> Finding | None:
    if not worker.is_alive:
        return _gone(worker)
    if why := _idleness(worker):
        remedy = "look at its process and its machine, then restart it: its jobs are taken over"
        return problem("workers", f"worker {worker.owner} lives but does nothing: {why}", remedy)
    if worker.beat.is_stopping:
        return note("workers", f"worker {worker.owner} is stopping: it takes no new jobs")
    return None


def _lag(worker: WorkerStatus) -> Finding:
    says = f"the event loop of worker {worker.owner} was held up for {span(worker.beat.lag_s)} within the last minute"
    remedy = "look at the load of its machine; run one worker per core, or lower PROTOSTAR_MAX_JOBS"
    return note("workers", says, remedy)


def _gone(worker: WorkerStatus) -> Finding:
    says = f"worker {worker.owner} is gone without signing off; {worker.running} jobs are still its own"
    return note("workers", says, "nothing: any other worker takes them over; if its process is still there, end it")


def _idleness(worker: WorkerStatus) -> str:
    """Explain why a worker with a valid lease does nothing; empty where it works."""
    if worker.beat_age_s is not None and worker.beat_age_s > SILENT_S:
        return f"its process has given no sign for {span(worker.beat_age_s)} (stopped, starved or cut off)"
    if worker.beat.looked_s > SILENT_S and not worker.beat.is_stopping:
        return f"its loop has not looked into the queue for {span(worker.beat.looked_s)} (something blocks it)"
    return ""


def _works(worker: WorkerStatus) -> bool:
    return worker.is_alive and not worker.beat.is_stopping and not _idleness(worker)


async def jobs(site: Site) -> list[Finding]:
    """Check that no job is stuck; jobs that only wait are reported as waiting."""
    redis, status = await site.redis(), await site.status()
    lingering: Mapping[str, Sequence[str]] = {}
    if ready := {job_id for ids in (await next_jobs(redis)).values() for job_id in ids}:
        await asyncio.sleep(LOOK_AGAIN_S)
        now = await next_jobs(redis)
        lingering = {name: [job_id for job_id in ids if job_id in ready] for name, ids in now.items()}
        status = await site.status_now()
    running = [job async for job in queued_jobs(redis, running=True)]
    found = [*_held(running, await overdue(redis, running), status), *_left(lingering, status)]
    if not any(finding.state == "problem" for finding in found):
        found.insert(0, ok("jobs", _standing(status)))
    return found


def _held(running: Sequence[QueuedJob], overdue: Sequence[QueuedJob], status: Status) -> Iterator[Finding]:
    """Find jobs that a worker holds without progress."""
    idle = {worker.owner: _idleness(worker) or "it is gone" for worker in status.workers if not _moves(worker)}
    held = [job for job in running if job.owner in idle]
    for job in held[:_LISTED]:
        says = f"job {job.job_id} is stuck at worker {job.owner}: {idle[job.owner]}"
        yield problem("jobs", says, "restart that worker, or start another: it takes the job over")
    if len(held) > _LISTED:
        yield problem(
            "jobs", f"{len(held) - _LISTED} more jobs are stuck like that", "see: protostar jobs --state running"
        )
    for job in [job for job in overdue if job.owner not in idle][:_LISTED]:
        says = f"job {job.job_id} is stuck: it has run for {span(job.age_s)}, beyond its time, at worker {job.owner}"
        yield problem("jobs", says, f"restart that worker; if it comes again: protostar cancel {job.job_id}")


def _moves(worker: WorkerStatus) -> bool:
    """Whether a worker's jobs make progress; those of a stopping worker do."""
    return worker.is_alive and not _idleness(worker)


def _left(lingering: Mapping[str, Sequence[str]], status: Status) -> Iterator[Finding]:
    """Find jobs that have been ready for a while and that no worker has claimed."""
    working = [worker for worker in status.workers if _works(worker)]
    for name, ids in lingering.items():
        if not ids:
            continue
        serving = [worker for worker in working if worker.beat.slots.get(name)]
        free = [worker for worker in serving if worker.beat.busy.get(name, 0) < worker.beat.slots[name]]
        what = f"job {ids[0]}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
        if not working:
            yield problem("jobs", f"{what}: stuck, because no worker takes anything", _START)
        elif name and not serving:
            remedy = f"start a worker with {name} in PROTOSTAR_SERVE"
            yield problem("jobs", f"{what}: stuck, because no worker serves the class {name}", remedy)
        elif free or not name:
            owner = (free or working)[0].owner
            says = f"{what}: stuck, because worker {owner} has a free slot and takes nothing"
            yield problem("jobs", says, "look for claim_failed and claim_broke in its log, then restart it")
        else:
            slots = sum(worker.beat.slots[name] for worker in serving)
            says = f"{what}: not stuck, waiting for one of the {slots} slots of the class {name}, which are all taken"
            yield note("jobs", says, "start more workers if it waits for too long, or raise PROTOSTAR_MAX_JOBS")


def _standing(status: Status) -> str:
    queue = status.queue
    waits = f"{queue.waiting} wait for their turn (another answer of their session comes first)"
    return f"none is stuck: {queue.running} run, {queue.ready} are ready, {waits}, {queue.deferred} are not due yet"


async def dead_letters(site: Site) -> Finding:
    """Check for dead jobs."""
    if dead := (await site.status()).queue.dead:
        return note(
            "dead jobs", f"{dead} jobs were given up", "see why: protostar jobs --state dead; then protostar retry JOB"
        )
    return ok("dead jobs", "none")


async def paused_models(site: Site) -> list[Finding]:
    """Check for models that the workers have paused."""
    found: list[Finding] = []
    for model in (await site.status()).models:
        name = f"{model.provider}:{model.model}"
        if model.is_down:
            remedy = "nothing: one request at a time tries it; the line `model` says what is wrong with it"
            found.append(problem("pauses", f"{name} is down: the workers' jobs wait ({model.reason})", remedy))
        elif model.paused_s:
            says = f"{name} is paused for {span(model.paused_s)} ({model.reason}): its jobs wait in the queue"
            found.append(note("pauses", says, "nothing; ask the provider for higher limits if this is always so"))
    return found or [ok("pauses", "no model is paused")]


async def outbox(site: Site) -> Finding:
    """Check that follow-up jobs leave the outbox."""
    box = (await site.store()).outbox
    if box.oldest_s is None or box.oldest_s < OUTBOX_LATE_S:
        return ok("outbox", f"{box.depth} follow-up jobs wait to be queued")
    says = f"the outbox grows: {box.depth} follow-up jobs (summaries) wait, the oldest for {span(box.oldest_s)}"
    try:
        works = any(_works(worker) for worker in (await site.status()).workers)
    except Away:
        return problem("outbox", says, "bring Redis back: the workers queue them then")
    remedy = "look for outbox_failed in the workers' logs" if works else f"no worker moves them; {_START}"
    return problem("outbox", says, remedy)

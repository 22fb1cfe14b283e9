"""The attempts that a worker has under way: from the claim to the settled outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from protostar_client.contract import ErrorCode, JobError

from tasks.engine.attempt import Attempt, JobOptions
from tasks.engine.claim import CancelReason, Claim, Ending, LeaseLostError, Outcome
from tasks.engine.finish import Settler
from tasks.engine.hooks import Observer
from tasks.engine.slots import Slots

logger = structlog.stdlib.get_logger("protostar.worker")

Hook = Callable[[dict[Any, Any]], Awaitable[Any]]
OnFailure = Callable[[dict[Any, Any], Attempt, JobError | asyncio.CancelledError], Awaitable[Outcome | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHooks:
    """ARQ's hooks around a job, and ours.

    `on_job_failure` runs before a job without a result is finished, and may return another outcome.
    """

    on_job_start: Hook | None
    on_job_end: Hook | None
    after_job_end: Hook | None
    on_job_failure: OnFailure | None


class RunningJobs:
    """Runs claimed jobs, each in a task of its own.

    Args:
        options: what the settings class says about jobs.
        hooks: called around every job.
        settler: records the outcomes.
        observer: informed of every attempt.
        slots: where each job takes its slot.
        tasks: ARQ's dictionary of running tasks, kept up to date.
        count: called with every outcome.
        ended: called after every attempt; with True where the attempt left its job unsettled.
    """

    def __init__(
        self,
        *,
        options: JobOptions,
        hooks: JobHooks,
        settler: Settler,
        observer: Observer,
        slots: Slots,
        tasks: dict[str, asyncio.Task[Any]],
        count: Callable[[Outcome], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._options = options
        self._hooks = hooks
        self._settler = settler
        self._observer = observer
        self._slots = slots
        self._tasks = tasks
        self._count = count
        self._on_end = ended
        self._attempts: dict[bytes, Attempt] = {}

    def ids(self) -> set[bytes]:
        """The ids of the running jobs; may be called from any thread."""
        return set(self._attempts)

    def start(self, claim: Claim, ctx: dict[Any, Any], *, takes_slot: bool = True) -> None:
        """Run a claimed job in the background."""
        attempt = Attempt(claim, job_deserializer=self._options.job_deserializer)
        attempt.ctx = {**ctx, **attempt.arq_context()}
        slot = self._slots.take(attempt.function) if takes_slot else self._slots.take_none()
        self._attempts[claim.id] = attempt
        task = asyncio.get_running_loop().create_task(
            self._run(attempt), name=f"job:{claim.job_id}", context=attempt.context
        )
        self._tasks[claim.job_id] = task
        task.add_done_callback(lambda done: self._ended(attempt, slot, done), context=attempt.context)

    def cancel(self, job_ids: Iterable[bytes], reason: CancelReason) -> None:
        """Stop those of the jobs that run."""
        for job_id in job_ids:
            if attempt := self._attempts.get(job_id):
                attempt.cancel(reason)

    def lose(self, job_ids: Iterable[bytes]) -> None:
        """Stop those of the jobs that run: their leases have other owners."""
        for job_id in job_ids:
            if (attempt := self._attempts.get(job_id)) and attempt.cancel("lost"):
                attempt.context.run(partial(logger.warning, "lease_lost", job_id=attempt.job_id))

    async def join(self, *, timeout_s: float | None = None) -> None:
        """Wait until the jobs that run now have ended."""
        if tasks := set(self._tasks.values()):
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _run(self, attempt: Attempt) -> None:
        with self._observer.attempt(attempt.claim, attempt.function, attempt.kwargs):
            await self._run_hook(self._hooks.on_job_start, attempt)
            outcome = await self._outcome(attempt)
            await self._run_hook(self._hooks.on_job_end, attempt)
            self._count(outcome)
            await self._settler.settle(attempt, outcome)
            await self._run_hook(self._hooks.after_job_end, attempt)

    async def _outcome(self, attempt: Attempt) -> Outcome:
        try:
            outcome = await attempt.run(self._options)
        except Exception:
            logger.exception("attempt_broke", job_id=attempt.job_id)
            outcome = JobError(ErrorCode.INTERNAL, "the job failed; the worker's log says why")
        if isinstance(outcome, JobError):
            return await self._publish_ending(attempt, outcome, outcome)
        if outcome is Ending.CANCELLED:
            return await self._publish_ending(attempt, outcome, asyncio.CancelledError())
        return outcome

    async def _publish_ending(
        self, attempt: Attempt, outcome: Outcome, error: JobError | asyncio.CancelledError
    ) -> Outcome:
        """Inform the job's reader of its ending; where that fails, the job is kept for another attempt."""
        if self._hooks.on_job_failure is None:
            return outcome
        try:
            return await self._hooks.on_job_failure(attempt.ctx, attempt, error) or outcome
        except LeaseLostError:
            return Ending.LOST
        except Exception as problem:
            logger.exception("ending_publish_failed", job_id=attempt.job_id)
            return await self._settler.retry_ending(attempt, outcome, problem)

    async def _run_hook(self, hook: Hook | None, attempt: Attempt) -> None:
        if hook is not None:
            await run_hook(hook, attempt.ctx)

    def _ended(self, attempt: Attempt, slot: str, task: asyncio.Task[None]) -> None:
        self._slots.release(slot)
        if self._attempts.get(attempt.claim.id) is attempt:
            del self._attempts[attempt.claim.id]
            self._tasks.pop(attempt.claim.job_id, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("attempt_broke", job_id=attempt.job_id, exc_info=error)
        self._on_end(error is not None)


async def run_hook(hook: Hook, ctx: dict[Any, Any]) -> None:
    """Call a hook of ARQ's; one that raises must not end the worker."""
    try:
        await hook(ctx)
    except Exception:
        logger.exception("hook_failed", hook=hook, job_id=ctx.get("job_id"))

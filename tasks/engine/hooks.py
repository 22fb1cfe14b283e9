"""What the worker asks and informs: a retry policy and an observer, both passed in by the settings class."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from arq.worker import Retry, RetryJob
from protostar_client.contract import ErrorCode, JobError

from tasks.engine.claim import Again, Claim, Verdict


class RetryPolicy:
    """Decides what a failed attempt means for its job. This one retries only what asks to be retried."""

    def judge(self, error: BaseException, *, claim: Claim, max_tries: int) -> Verdict:
        """Decide what follows the error that a job function raised."""
        if isinstance(error, JobError):
            return error
        if isinstance(error, Retry | RetryJob):
            delay_s = (getattr(error, "defer_score", None) or 0) / 1000
            return Again(delay_s, "retry") if claim.tries < max_tries else attempts_used_up(max_tries, "retry")
        return JobError(ErrorCode.INTERNAL, "the job failed; the worker's log says why")

    def is_dead_letter(self, error: JobError) -> bool:
        """Whether a job that failed for good is kept, to be put back by hand."""
        return error.code != ErrorCode.INVALID_REQUEST


def attempts_used_up(max_tries: int, last_reason: str) -> JobError:
    """The failure of a job whose attempts all ended without an answer."""
    return JobError(
        ErrorCode.TOO_MANY_ATTEMPTS, f"all {max_tries} attempts ended without an answer; the last: {last_reason}"
    )


class Observer:
    """Receives what is worth measuring. This one ignores it."""

    def attempt(self, claim: Claim, function: str, arguments: Mapping[str, Any]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Enter a context around an attempt, in the attempt's own asyncio task."""
        return nullcontext()

    def attempt_ended(self, function: str, outcome: str, seconds: float, *, is_held: bool, is_failure: bool) -> None:
        """Note an attempt's end; `function` is empty where the worker has none of that name, `is_held` is False where
        the lease was lost.
        """

    def dead_letter_kept(self, code: str) -> None:
        """Note a job that was given up and kept."""

    def jobs_taken_over(self, count: int) -> None:
        """Note jobs taken back from a lost worker."""

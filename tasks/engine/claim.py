"""A claimed job, and the errors by which a job function leaves its claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

LEASE_TTL_EXTRA_S: Final = 600.0  # an in-progress key outlives its job's timeout by this
CANCEL_GRACE_S: Final = 10.0  # time a cancelled function has to end

CancelReason = Literal["abort", "lost", "hand_over", "timeout"]


class LeaseLostError(Exception):
    """Another attempt owns the job: this one must leave no trace."""


class JobCancelledError(Exception):
    """An earlier attempt recorded the cancellation of the job and died before it finished the job."""


@dataclass(slots=True)
class Claim:
    """A job whose lease this worker holds.

    `attempt` fences its effects; `spared` attempts do not count as tries; `history` lists why earlier attempts
    ended (`attempt`, `reason`, `at_ms`).
    """

    id: bytes
    attempt: int
    spared: int
    rank_ms: int
    payload: bytes | None
    aborted: bool
    history: tuple[dict[str, Any], ...] = ()

    @property
    def tries(self) -> int:
        """The number of attempts that count, this one included."""
        return self.attempt - self.spared

    @property
    def job_id(self) -> str:
        """The id as text, readable also where it is not UTF-8."""
        return self.id.decode(errors="backslashreplace")

    @property
    def last_reason(self) -> str:
        """Why the previous attempt ended."""
        return str(self.history[-1]["reason"]) if self.history else "unknown"

"""A claimed job, and how an attempt at it may end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from arq.utils import timestamp_ms
from protostar_client.contract import JobError

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
    ended (`attempt`, `reason`, `at_ms`); `claimed_ms` is the time of the claim by Redis' clock.
    """

    id: bytes
    attempt: int
    spared: int
    rank_ms: int
    payload: bytes | None
    aborted: bool
    history: tuple[dict[str, Any], ...] = ()
    claimed_ms: int = field(default_factory=timestamp_ms)
    _claimed_s: float = field(default_factory=time.monotonic, repr=False)

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

    @property
    def now_ms(self) -> int:
        """The present by Redis' clock, which all workers share."""
        return self.claimed_ms + int((time.monotonic() - self._claimed_s) * 1000)


class Ending(Enum):
    """The outcomes without further data."""

    CANCELLED = "cancelled"
    LOST = "lost"
    HANDED_OVER = "handed_over"


@dataclass(frozen=True, slots=True)
class Done:
    """The function returned."""

    result: Any


@dataclass(frozen=True, slots=True)
class Again:
    """Run the job again after `delay_s`; a `spared` attempt does not count as a try."""

    delay_s: float
    reason: str
    spared: bool = False


Verdict = Again | JobError
"""What follows an error: another attempt, or the job's final failure."""

Outcome = Done | Verdict | Ending
"""How an attempt ended."""

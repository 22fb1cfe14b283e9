"""What the client raises beside `JobError` and `InvalidRequest`, which it shares with the worker."""
# ruff: noqa: N818  the names read as what happened

from __future__ import annotations

from protostar_client.contract import ErrorCode, JobError, ProtostarError


class QueueFull(JobError):
    """Too many jobs wait: nothing was enqueued. Try again later."""

    def __init__(self, waiting: int, max_queue: int) -> None:
        super().__init__(
            ErrorCode.QUEUE_FULL, f"{waiting} jobs wait and {max_queue} may; try again later or add workers"
        )


class ConnectionLost(ProtostarError):
    """Redis can't be reached, or did not answer in time.

    `job_id` is set where a job may have been enqueued: enqueue it again under this id, and it runs once.
    """

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class RedisRefused(ProtostarError):
    """Redis answered with an error of its own: out of memory, no permission, a key of another type."""


class JobVanished(ProtostarError):
    """No trace of the job, or none that belongs to this user: it never was, has expired, or was deleted."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id!r} is not known for this user; check the id, or enqueue the question again")
        self.job_id = job_id


class EventsExpired(ProtostarError):
    """The job is done and its events are gone; `result()` still has the answer."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the events of job {job_id!r} have expired; read the answer with result()")
        self.job_id = job_id


class Cancelled(ProtostarError):
    """The job was cancelled. `message_id` is the message that holds what was kept, where it is known."""

    def __init__(self, job_id: str, message_id: int | None = None) -> None:
        super().__init__(f"job {job_id!r} was cancelled")
        self.job_id = job_id
        self.message_id = message_id

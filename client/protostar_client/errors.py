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


class InvalidUrl(ProtostarError, ValueError):
    """What was given as the URL of a Redis is none. The message never quotes what may be a password."""


class ClientClosed(ProtostarError):
    """The client was closed: its `with` block is over. Connect again."""

    def __init__(self) -> None:
        super().__init__("the client is closed; make calls, and read answers, inside its `with` block")


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
        super().__init__(
            f"job {job_id!r} is not known for this user; check the id, or enqueue the question again under a new one"
        )
        self.job_id = job_id


class EventsExpired(ProtostarError):
    """Events of the answer are gone, and its result too: `history()` still has what was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"events of job {job_id!r} have expired, and so has its result; read the session's history()")
        self.job_id = job_id


class ReaderTooSlow(ProtostarError):
    """A reader fell too far behind and was let go, so that the others are not held up.

    Everything up to `last_id` was given to it: `handle.events(last_id)` goes on from there.
    """

    def __init__(self, job_id: str, last_id: str) -> None:
        super().__init__(f"the reader of job {job_id!r} fell too far behind; go on with events(last_id={last_id!r})")
        self.job_id = job_id
        self.last_id = last_id


class SessionBusy(ProtostarError):
    """The session has an unfinished turn, `job_id`: nothing was enqueued. Wait for it, or cancel it."""

    def __init__(self, session_id: str, job_id: str) -> None:
        super().__init__(f"session {session_id!r} is busy with job {job_id!r}; wait for it, or cancel it")
        self.session_id = session_id
        self.job_id = job_id


class Cancelled(ProtostarError):
    """The job was cancelled. `message_id` is the message that holds what was kept, where it is known."""

    def __init__(self, job_id: str, message_id: int | None = None) -> None:
        super().__init__(f"job {job_id!r} was cancelled")
        self.job_id = job_id
        self.message_id = message_id

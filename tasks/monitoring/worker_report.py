"""The report that a worker sends with each heartbeat."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError


class Beat(BaseModel):
    """A stored report; it expires with the worker's lease. A worker of another version may send fewer fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    at_ms: int = 0
    """The time of the heartbeat by Redis' clock; the script adds it."""
    up_s: float = 0.0
    """The seconds since the worker started."""
    looked_s: float = 0.0
    """The seconds since its loop last looked into the queue; large where the loop is held up."""
    lag_s: float = 0.0
    """How late its event loop has run at worst, over the last half minute to a minute."""
    is_stopping: bool = False
    """It takes no new jobs."""
    slots: dict[str, int] = {}
    """Class of jobs -> how many of them it runs at once."""
    busy: dict[str, int] = {}
    """Class of jobs -> how many of its slots are taken."""
    jobs_complete: int = 0
    jobs_failed: int = 0
    jobs_retried: int = 0

    provider: str = ""
    models: tuple[str, ...] = ()
    """The models it asks."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Parse a stored report; an unreadable one yields the defaults."""
        try:
            return cls.model_validate_json(stored)
        except ValidationError:
            return cls()

"""What a worker says of itself with every beat of its heart."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError


class Beat(BaseModel):
    """One beat, as it is stored while the worker's lease lasts; a worker of another version may say less."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    at_ms: int = 0
    """When it came, by Redis' clock; written there."""
    up_s: float = 0.0
    """How long the worker has been serving."""
    looked_s: float = 0.0
    """How long ago its loop last looked into the queue: many seconds where the loop is held up."""
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
        """A beat as it is stored; one that can't be read says nothing."""
        try:
            return cls.model_validate_json(stored)
        except ValidationError:
            return cls()

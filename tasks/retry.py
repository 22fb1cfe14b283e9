"""The one retry policy: what a failed attempt means for its job."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from arq.worker import Retry
from protostar_client.contract import ErrorCode, JobError
from redis.exceptions import RedisError

from models.transaction import is_transient
from rag.providers import (
    ContentFilteredError,
    ContextLengthError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
)

MAX_TRIES: Final = 5
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
LONGEST_RETRY_AFTER_S: Final = 120.0
FREE_RATE_LIMITS: Final = 10  # so many waits that a server asks for don't count as tries
FREE_STORAGE_FAULTS: Final = 20  # so many attempts that Redis or PostgreSQL cut short don't either


@dataclass(frozen=True, slots=True)
class Again:
    """Run the job again after `delay_s`; a `spared` attempt does not count as a try."""

    delay_s: float
    reason: str
    spared: bool = False


Verdict = Again | JobError
"""Another attempt, or the job's final failure."""


def judge(error: BaseException, *, tries: int, max_tries: int, spared: int) -> Verdict:
    """Decide what follows `error`.

    Args:
        error: what the job function raised.
        tries: attempts that count, with the one that failed.
        max_tries: attempts a job has.
        spared: attempts that did not count so far.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, Retry):
        delay_s = (error.defer_score or 0) / 1000
        return _again_or(_exhausted(max_tries, "it asked to be retried"), delay_s, tries, max_tries, "retry")
    if isinstance(error, RateLimitedError):
        return _judge_rate_limit(error, tries, max_tries, spared)
    if isinstance(error, ProviderUnavailableError):
        failure = JobError(ErrorCode.PROVIDER_UNAVAILABLE, str(error))
        return _again_or(failure, _delay_s(tries, error.retry_after_s), tries, max_tries, failure.code)
    if isinstance(error, StalledError):
        failure = JobError(ErrorCode.STALLED, str(error))
        return _again_or(failure, _delay_s(tries), tries, max_tries, failure.code)
    if isinstance(error, ProviderError):
        return JobError(_permanent_code(error), str(error))
    if isinstance(error, RedisError) or is_transient(error):
        if spared < FREE_STORAGE_FAULTS:
            return Again(_delay_s(1), "storage_unavailable", spared=True)
        failure = JobError(ErrorCode.INTERNAL, "Redis or PostgreSQL could not be reached; try again later")
        return _again_or(failure, _delay_s(tries), tries, max_tries, "storage_unavailable")
    return JobError(ErrorCode.INTERNAL, "the job failed; the worker's log says why")


def attempts_used_up(max_tries: int, last_reason: str) -> JobError:
    """The failure of a job whose attempts all ended without an outcome, by crashes say."""
    return _exhausted(max_tries, last_reason)


def _judge_rate_limit(error: RateLimitedError, tries: int, max_tries: int, spared: int) -> Verdict:
    failure = JobError(ErrorCode.RATE_LIMITED, str(error))
    if error.retry_after_s is not None and error.retry_after_s > LONGEST_RETRY_AFTER_S:
        return failure
    if error.retry_after_s is not None and spared < FREE_RATE_LIMITS:
        return Again(_delay_s(1, error.retry_after_s), failure.code, spared=True)
    return _again_or(failure, _delay_s(tries, error.retry_after_s), tries, max_tries, failure.code)


def _again_or(failure: JobError, delay_s: float, tries: int, max_tries: int, reason: str) -> Verdict:
    return Again(delay_s, reason) if tries < max_tries else failure


def _delay_s(tries: int, at_least_s: float | None = None) -> float:
    """Exponential backoff with jitter, never before the server's Retry-After."""
    backoff_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (tries - 1))
    return (at_least_s or 0.0) + backoff_s * random.uniform(0.5, 1.0)


def _permanent_code(error: ProviderError) -> ErrorCode:
    if isinstance(error, ContextLengthError):
        return ErrorCode.CONTEXT_LENGTH
    if isinstance(error, ContentFilteredError):
        return ErrorCode.CONTENT_FILTERED
    return ErrorCode.PROVIDER_ERROR


def _exhausted(max_tries: int, reason: str) -> JobError:
    return JobError(
        ErrorCode.TOO_MANY_ATTEMPTS, f"all {max_tries} attempts ended without an answer; the last: {reason}"
    )

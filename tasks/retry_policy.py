"""The one retry policy: what a failed attempt means for its job."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protostar_client.contract import ErrorCode, JobError
from redis.exceptions import RedisError

from models.transaction import is_transient
from rag.providers import (
    ContentFilteredError,
    ContextLengthError,
    ProviderBusyError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
)
from tasks.engine.claim import Again, Claim, Verdict
from tasks.engine.hooks import RetryPolicy

MAX_TRIES: Final = 5
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
LONGEST_RETRY_AFTER_S: Final = 120.0
FREE_RATE_LIMITS: Final = 10  # so many waits that a server asks for don't count as tries
LATER_WAITS: Final = 4  # from this wait on, a job that waits for the provider looks no less often
FREE_STORAGE_FAULTS: Final = 20  # so many attempts that Redis or PostgreSQL cut short don't either


PROVIDER_BUSY: Final = "provider_busy"
"""Why an attempt ended that was not let through to the provider."""

_FAULTS_OF_THE_REQUEST: Final = {
    ErrorCode.INVALID_REQUEST,
    ErrorCode.UNKNOWN_MODE,
    ErrorCode.PROMPT_TOO_LONG,
    ErrorCode.CONTEXT_LENGTH,
    ErrorCode.CONTENT_FILTERED,
}


@dataclass(frozen=True, slots=True)
class Waited:
    """How often a job has waited for its provider, and the seconds since the first time."""

    times: int = 0
    since_s: float = 0.0

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]], now_ms: int) -> Waited:
        """Read it from the ends of a job's earlier attempts."""
        waits_ms = [int(entry["at_ms"]) for entry in history if entry["reason"] == PROVIDER_BUSY]
        return cls(len(waits_ms), (now_ms - waits_ms[0]) / 1000) if waits_ms else cls()


class RefusedError(JobError):
    """A failure that lies with the user and not with the request: the job is neither retried nor kept."""


class ChatRetryPolicy(RetryPolicy):
    """Knows the errors of providers and of the storage by name."""

    def judge(self, error: BaseException, *, claim: Claim, max_tries: int) -> Verdict:
        """Decide what follows the error that a job function raised."""
        waited = Waited.of(claim.history, claim.now_ms)
        verdict = judge(
            error, tries=claim.tries, max_tries=max_tries, spared=claim.spared - waited.times, waited=waited
        )
        return verdict or super().judge(error, claim=claim, max_tries=max_tries)

    def is_dead_letter(self, error: JobError) -> bool:
        """Whether the job is kept: not where its request would fail again, nor where its user has reached a cap."""
        return not isinstance(error, RefusedError) and error.code not in _FAULTS_OF_THE_REQUEST


def judge(
    error: BaseException, *, tries: int, max_tries: int, spared: int, waited: Waited = Waited()
) -> Verdict | None:
    """Decide what follows an error of a provider or of the storage; None for any other.

    Args:
        error: what the job function raised.
        tries: attempts that count, with the one that failed.
        max_tries: attempts a job has.
        spared: attempts that did not count so far, but for waits.
        waited: the waits for the provider so far.
    """
    if isinstance(error, ProviderError):
        return _judge_provider(error, tries, max_tries, spared, waited)
    if isinstance(error, RedisError) or is_transient(error):
        if spared < FREE_STORAGE_FAULTS:
            return Again(_delay_s(1), "storage_unavailable", spared=True)
        failure = JobError(ErrorCode.INTERNAL, "Redis or PostgreSQL could not be reached; try again later")
        return _again_or(failure, _delay_s(tries), tries, max_tries, "storage_unavailable")
    return None


def code_of(error: ProviderError) -> str:
    """The code of a job that fails for good with `error`."""
    verdict = _judge_provider(error, MAX_TRIES, MAX_TRIES, 0, Waited())
    return verdict.code if isinstance(verdict, JobError) else verdict.reason


def _judge_provider(error: ProviderError, tries: int, max_tries: int, spared: int, waited: Waited) -> Verdict:
    match error:
        case ProviderBusyError():
            return _judge_wait(error, waited)
        case RateLimitedError():
            return _judge_rate_limit(error, tries, max_tries, spared)
        case ProviderUnavailableError():
            failure = JobError(ErrorCode.PROVIDER_UNAVAILABLE, str(error))
            return _again_or(failure, _delay_s(tries, error.retry_after_s), tries, max_tries, failure.code)
        case StalledError():
            failure = JobError(ErrorCode.STALLED, str(error))
            return _again_or(failure, _delay_s(tries), tries, max_tries, failure.code)
    return JobError(_permanent_code(error), str(error))


def _judge_wait(error: ProviderBusyError, waited: Waited) -> Verdict:
    """A job that is not let through costs nothing: time alone bounds it."""
    is_worth_it = waited.since_s + error.retry_after_s <= error.longest_wait_s
    if error.retry_after_s > LONGEST_RETRY_AFTER_S or not is_worth_it:
        code = ErrorCode.PROVIDER_UNAVAILABLE if error.is_down else ErrorCode.RATE_LIMITED
        return JobError(code, str(error))
    # The longer it takes, the more jobs wait: later looks are rarer, and spread.
    return Again(_delay_s(min(waited.times + 1, LATER_WAITS), error.retry_after_s), PROVIDER_BUSY, spared=True)


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

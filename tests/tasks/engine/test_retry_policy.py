"""The retry policy: what each error means for its job."""

from __future__ import annotations

import asyncpg
import pytest
from arq.worker import Retry
from protostar_client.contract import ErrorCode, JobError
from redis.exceptions import ConnectionError as RedisConnectionError

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
from tasks.retry_policy import (
    FREE_RATE_LIMITS,
    FREE_STORAGE_FAULTS,
    LONGEST_DELAY_S,
    LONGEST_RETRY_AFTER_S,
    PROVIDER_BUSY,
    ChatRetryPolicy,
    RefusedError,
)

MAX_TRIES = 5


def claim_of(*, tries: int = 1, spared: int = 0, waits_ms: tuple[int, ...] = (), now_ms: int = 0) -> Claim:
    history = tuple({"attempt": 1, "reason": PROVIDER_BUSY, "at_ms": at_ms} for at_ms in waits_ms)
    return Claim(b"j", tries + spared, spared, 0, b"", False, history, claimed_ms=now_ms)


def judge(error: BaseException, **claim: object) -> Verdict:
    return ChatRetryPolicy().judge(error, claim=claim_of(**claim), max_tries=MAX_TRIES)  # type: ignore[arg-type]


RETRIED = [
    (ProviderUnavailableError("down"), "provider_unavailable"),
    (StalledError("silent"), "stalled"),
    (RateLimitedError("slow down", retry_after_s=None), "rate_limited"),
]


@pytest.mark.parametrize(("error", "code"), RETRIED)
def test_a_passing_fault_of_the_provider_is_retried_and_final_at_the_last_try(error: Exception, code: str) -> None:
    again = judge(error, tries=MAX_TRIES - 1)
    assert isinstance(again, Again)
    assert (again.reason, again.spared) == (code, False)
    failure = judge(error, tries=MAX_TRIES)
    assert isinstance(failure, JobError)
    assert failure.code == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProviderError("no such model"), "provider_error"),
        (ContextLengthError("too long"), "context_length"),
        (ContentFilteredError("flagged"), "content_filtered"),
        (JobError(ErrorCode.INVALID_REQUEST, "no"), "invalid_request"),
        (ValueError("a bug"), "internal"),
    ],
)
def test_a_lasting_fault_is_final_at_once(error: Exception, code: str) -> None:
    failure = judge(error)
    assert isinstance(failure, JobError)
    assert failure.code == code


@pytest.mark.parametrize(
    "error", [RedisConnectionError(), asyncpg.ConnectionDoesNotExistError(), OSError(), TimeoutError()]
)
def test_a_storage_that_is_away_costs_no_try_for_a_while(error: Exception) -> None:
    again = judge(error, tries=MAX_TRIES, spared=FREE_STORAGE_FAULTS - 1)
    assert isinstance(again, Again)
    assert (again.reason, again.spared) == ("storage_unavailable", True)
    counted = judge(error, tries=1, spared=FREE_STORAGE_FAULTS)
    assert isinstance(counted, Again)
    assert not counted.spared
    assert isinstance(judge(error, tries=MAX_TRIES, spared=FREE_STORAGE_FAULTS), JobError)


def test_a_wait_that_the_provider_asks_for_costs_no_try_and_is_kept() -> None:
    error = RateLimitedError("slow down", retry_after_s=7)
    again = judge(error, tries=MAX_TRIES)
    assert isinstance(again, Again)
    assert again.spared
    assert again.delay_s >= 7
    assert isinstance(judge(error, tries=MAX_TRIES, spared=FREE_RATE_LIMITS), JobError)


def test_a_wait_that_is_too_long_is_a_failure() -> None:
    verdict = judge(RateLimitedError("tomorrow", retry_after_s=LONGEST_RETRY_AFTER_S + 1))
    assert isinstance(verdict, JobError)


def busy() -> ProviderBusyError:
    return ProviderBusyError("busy", retry_after_s=1, longest_wait_s=900, is_down=False)


def test_waits_for_the_provider_are_bounded_by_redis_clock_not_by_the_workers() -> None:
    """The worker's own clock does not matter: here Redis' clock stands in the year 1970."""
    again = judge(busy(), waits_ms=(1000, 2000), now_ms=800_000)
    assert isinstance(again, Again)
    assert again.spared
    assert isinstance(judge(busy(), waits_ms=(1000, 2000), now_ms=901_000), JobError)


def test_delays_double_with_jitter_up_to_a_limit() -> None:
    for tries in range(1, 12):
        verdict = ChatRetryPolicy().judge(StalledError("x"), claim=claim_of(tries=tries), max_tries=99)
        assert isinstance(verdict, Again)
        longest = min(LONGEST_DELAY_S, 0.5 * 2 ** (tries - 1))
        assert longest / 2 <= verdict.delay_s <= longest


def test_a_job_that_asks_to_be_retried_is_retried_when_it_asks() -> None:
    again = judge(Retry(defer=3))
    assert again == Again(3.0, "retry")
    failure = judge(Retry(), tries=MAX_TRIES)
    assert isinstance(failure, JobError)
    assert failure.code == "too_many_attempts"


def test_only_what_may_succeed_later_is_a_dead_letter() -> None:
    policy = ChatRetryPolicy()
    kept = {code for code in ErrorCode if policy.is_dead_letter(JobError(code, ""))}
    assert kept == set(ErrorCode) - {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNKNOWN_MODE,
        ErrorCode.PROMPT_TOO_LONG,
        ErrorCode.CONTEXT_LENGTH,
        ErrorCode.CONTENT_FILTERED,
    }
    assert not policy.is_dead_letter(RefusedError(ErrorCode.RATE_LIMITED, "the user's cap is reached"))


def test_the_engines_own_policy_retries_only_what_asks_for_it() -> None:
    policy = RetryPolicy()
    assert isinstance(policy.judge(OSError(), claim=claim_of(), max_tries=MAX_TRIES), JobError)
    assert isinstance(policy.judge(Retry(), claim=claim_of(), max_tries=MAX_TRIES), Again)

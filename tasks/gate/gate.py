"""The gate before the provider: while a model is limited or down, no worker sends it a request.

The state of a model is in Redis (`tasks/gate/lua/gate_enter.lua`), so all workers share it. While Redis is away,
requests pass.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from uuid import uuid4

import structlog
from protostar_client import keys
from protostar_client.contract import ErrorCode
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rag.providers import (
    ProviderBusyError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    StalledError,
)
from tasks.engine.scripts import Script
from tasks.gate.rate_limits import RateLimits
from tasks.monitoring import metrics
from tasks.retry_policy import FIRST_DELAY_S, LONGEST_DELAY_S, code_of

logger = structlog.stdlib.get_logger("protostar.gate")

FAILURES: Final = 5  # in a row, within a minute, that open the breaker
FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 60.0
LONGEST_PAUSE_ASKED_S: Final = 3600.0  # a provider that asks for more gets one request an hour
PROBE_SLACK_S: Final = 5.0
GATE_TIMEOUT_S: Final = 1.0

_ENTER: Final = Script.beside(__file__, "gate_enter")
_REPORT: Final = Script.beside(__file__, "gate_report")

T = TypeVar("T")
Outcome = Literal["nothing", "token", "answered", "limited", "failed"]


class Gate:
    """Lets requests to models pass, or names the time to wait.

    Args:
        redis: holds the state that all workers share.
        provider: the provider's name.
        owner: the name of this worker; a probe whose worker is dead blocks no other request.
        first_token_s: the longest time of a probe.
        longest_wait_s: the longest time that a job may wait in all; 0 leaves the gate open.
        limits: requests and tokens per minute.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        provider: str,
        owner: str,
        first_token_s: float,
        longest_wait_s: float,
        limits: RateLimits,
    ) -> None:
        self._redis = redis
        self._provider = provider
        self._owner = owner
        self._probe_ms = int((first_token_s + PROBE_SLACK_S) * 1000)
        self._longest_wait_s = longest_wait_s
        self._limits = limits
        self._busy_until_s: dict[str, float] = {}

    async def look(self, models: Sequence[str]) -> None:
        """Check whether one of the models may be asked, and take nothing from the limits. Redis is asked only if this
        worker knows of a pause.

        Raises:
            ProviderBusyError: none may be asked; it names the shortest wait.
        """
        if all(self._busy_until_s.get(model, 0.0) > time.monotonic() for model in models):
            await self._first(models, self._look)

    async def enter(self, models: Sequence[str], *, tokens: int) -> Ticket:
        """Let a request with so many tokens pass to the first of the models that may be asked.

        Raises:
            ProviderBusyError: none may be asked; it names the shortest wait.
        """
        return await self._first(models, lambda model: self._enter(model, tokens))

    async def report(self, ticket: Ticket, outcome: Outcome, *, pause_s: float = 0.0) -> float:
        """Record the outcome of a request; returns the seconds for which its model is paused."""
        reason = ErrorCode.PROVIDER_UNAVAILABLE if outcome == "failed" else ErrorCode.RATE_LIMITED
        first_s, longest_s = FIRST_PAUSE_S, LONGEST_PAUSE_S
        if outcome == "limited":
            first_s, longest_s = FIRST_DELAY_S * random.uniform(0.5, 1.0), LONGEST_DELAY_S
        pauses_ms = (int(seconds * 1000) for seconds in (min(pause_s, LONGEST_PAUSE_ASKED_S), first_s, longest_s))
        arguments: list[str | int] = [ticket.token, outcome, reason, *pauses_ms, FAILURES]
        left_s = int(await self._run(_REPORT, ticket.model, *arguments) or 0) / 1000
        self._remember(ticket.model, left_s)
        if left_s and outcome != "nothing":
            logger.warning("model_paused", model=ticket.model, seconds=round(left_s, 1), reason=reason)
        return left_s

    def busy(self, model: str, wait_s: float, reason: str) -> ProviderBusyError:
        """Make the error for a request that may not be sent."""
        is_down = reason == ErrorCode.PROVIDER_UNAVAILABLE
        state = "is down" if is_down else "is limited"
        return ProviderBusyError(
            f"{self._provider}'s model {model} {state}; it may be asked again in {wait_s:.0f} s",
            retry_after_s=wait_s,
            longest_wait_s=self._longest_wait_s,
            is_down=is_down,
        )

    async def _first(self, models: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> T:
        busy: list[ProviderBusyError] = []
        for model in models:
            try:
                return await ask(model)
            except ProviderBusyError as error:
                busy.append(error)
        soonest = min(busy, key=lambda error: error.retry_after_s)
        metrics.GATE_WAITS.labels("down" if soonest.is_down else "limited").inc()
        raise soonest

    async def _enter(self, model: str, tokens: int) -> Ticket:
        token = uuid4().hex
        ticket = Ticket(self, model, token if await self._ask(model, token) else "")
        wait_s = await self._take(model, tokens)
        if wait_s:
            # Shared, so that other workers wait without a request of their own.
            wait_s = max(wait_s, await self.report(ticket, "nothing", pause_s=wait_s))
            raise self.busy(model, wait_s, ErrorCode.RATE_LIMITED)
        return ticket

    async def _look(self, model: str) -> None:
        await self._ask(model, "", only_look=True)

    async def _ask(self, model: str, token: str, *, only_look: bool = False) -> bool:
        """Ask for permission; returns whether the request is a probe."""
        if not self._longest_wait_s:
            return False
        reply = await self._run(_ENTER, model, self._owner, token, self._probe_ms, int(only_look))
        wait_ms, reason, is_probe = reply or (0, b"", 0)
        self._remember(model, wait_ms / 1000)
        if wait_ms:
            raise self.busy(model, wait_ms / 1000, reason.decode())
        return bool(is_probe)

    async def _take(self, model: str, tokens: int) -> float:
        try:
            async with asyncio.timeout(GATE_TIMEOUT_S):
                return await self._limits.take(f"{self._provider}:{model}", tokens=tokens)
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("limits_call_failed", error=error)
            return 0.0

    async def _run(self, script: Script, model: str, *arguments: str | int) -> Any:
        if not self._longest_wait_s:
            return None
        try:
            async with asyncio.timeout(GATE_TIMEOUT_S):
                return await script.run(self._redis, keys.gate(self._provider, model), *arguments)
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("gate_call_failed", script=script.name, error=error)
            return None

    def _remember(self, model: str, wait_s: float) -> None:
        self._busy_until_s[model] = time.monotonic() + wait_s


@dataclass(slots=True)
class Ticket:
    """A permitted request to a model; `token` is empty if it is not a probe."""

    gate: Gate
    model: str
    token: str
    _is_over: bool = False

    async def began(self) -> None:
        """Record the first token: the provider is up."""
        if self.token and not self._is_over:
            await self.gate.report(self, "token")
            self.token = ""

    async def answered(self) -> None:
        """Record a whole answer."""
        await self._end("answered")

    async def failed(self, error: ProviderError) -> ProviderError:
        """Record an error; returns the error to raise. A probe that fails waits for the next one."""
        if self._is_over:
            return error
        is_probe = bool(self.token)
        if not isinstance(error, ProviderBusyError):
            metrics.MODEL_ERRORS.labels(self.model, code_of(error)).inc()
        match error:
            case RateLimitedError():
                await self._end("limited", error.retry_after_s or 0.0)
            case ProviderUnavailableError(retry_after_s=retry_after_s):
                left_s = await self._end("failed", retry_after_s or 0.0)
                return self._wait_on(left_s) if is_probe else error
            case StalledError():
                left_s = await self._end("failed")
                return self._wait_on(left_s) if is_probe else error
            case ProviderBusyError():
                await self.give_up()
            case _:
                await self._end("answered")  # the provider is up and refuses this request
        return error

    async def give_up(self) -> None:
        """Record that the request was not sent, or was abandoned: another one may be the probe."""
        if self.token:
            await self._end("nothing")
        self._is_over = True

    async def _end(self, outcome: Outcome, pause_s: float = 0.0) -> float:
        if self._is_over:
            return 0.0
        self._is_over = True
        return await self.gate.report(self, outcome, pause_s=pause_s)

    def _wait_on(self, left_s: float) -> ProviderBusyError:
        return self.gate.busy(self.model, left_s, ErrorCode.PROVIDER_UNAVAILABLE)

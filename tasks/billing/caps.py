"""What a user may spend: tokens or money a day, and answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from protostar_client.contract import ErrorCode
from tortoise.backends.base.client import BaseDBAsyncClient

from protostar.settings import Settings
from tasks.engine.claim import CANCEL_GRACE_S
from tasks.retry_policy import RefusedError

# Days are UTC's, by PostgreSQL's clock, which all workers share.
_SPENT: Final = """
WITH clock AS (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS midnight)
SELECT clock.midnight + interval '1 day' AS resets_at,
  COALESCE(sum(input_tokens::bigint + output_tokens) FILTER (WHERE created_at >= midnight), 0)::bigint AS tokens,
  COALESCE(sum(cost) FILTER (WHERE created_at >= midnight), 0) AS cost,
  count(*) FILTER (
    WHERE outcome IS NULL AND created_at > now() - $3::interval
    AND EXISTS (SELECT 1 FROM messages WHERE messages.job_id = charges.job_id AND role = 'user')
  ) AS answers,
  EXISTS (SELECT 1 FROM charges WHERE job_id = $2::varchar AND user_uuid = $1) AS is_let_in
FROM clock LEFT JOIN charges ON user_uuid = $1 AND created_at >= LEAST(midnight, now() - $3::interval)
GROUP BY clock.midnight
"""


class CapReachedError(RefusedError):
    """A user's cap is reached."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.RATE_LIMITED, message)


@dataclass(frozen=True, slots=True)
class Caps:
    """What one user may spend; 0 is no cap. An answer that is open for longer than `longest_s` is not under way."""

    daily_tokens: int
    daily_cost: Decimal
    answers_at_once: int
    longest_s: float

    @classmethod
    def of(cls, settings: Settings) -> Caps | None:
        """Read the caps from the settings; None where there is none."""
        if not settings.has_user_caps:
            return None
        # No attempt lives longer. An older open charge belongs to a worker that died and whose job is not taken over.
        longest_s = settings.job_timeout + CANCEL_GRACE_S
        return cls(settings.user_daily_tokens, settings.user_daily_cost, settings.user_answers_at_once, longest_s)

    async def check(self, connection: BaseDBAsyncClient, *, user_uuid: UUID | None, job_id: str) -> None:
        """Let no other answer of the user in until the transaction ends; then see whether this one may come in.

        Raises:
            CapReachedError: it may not.
        """
        # A statement of its own: the next one must see what was committed while this one waited.
        await connection.execute_query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [str(user_uuid)])
        values = [user_uuid, job_id, timedelta(seconds=self.longest_s)]
        [spent] = await connection.execute_query_dict(_SPENT, values)
        if not spent["is_let_in"] and (problem := self._problem(spent)):
            raise CapReachedError(problem)

    def _problem(self, spent: dict[str, Any]) -> str | None:
        resets = f"it is reset at {_iso(spent['resets_at'])}"
        if 0 < self.daily_tokens <= spent["tokens"]:
            used = f"{spent['tokens']:,} of {self.daily_tokens:,} tokens are used"
            return f"the user's daily tokens are used up: {used}; {resets}, ask again then with a new job id"
        if 0 < self.daily_cost <= spent["cost"]:
            used = f"{spent['cost'].normalize():f} of {self.daily_cost.normalize():f} is spent"
            return f"the user's daily cost is used up: {used}; {resets}, ask again then with a new job id"
        if 0 < self.answers_at_once <= spent["answers"]:
            used = f"{spent['answers']} of {self.answers_at_once} are under way"
            return f"the user's answers at once are used up: {used}; ask again when one of them ends, with a new job id"
        return None


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")

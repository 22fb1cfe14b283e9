"""Stops a chat job at a named moment, in an unmodified worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

import asyncpg

from tests.support.redis_gate import Hold, RedisGate, runs, says
from tests.support.stack_under_test import Stack, until

TEXT: Final = (
    "워커가 죽으면 다른 워커가 이어받습니다. 답은 처음부터 다시 옵니다. 독자는 그것을 압니다. 저장된 답은 하나입니다."
)
PIECES: Final = [TEXT[i : i + 4] for i in range(0, len(TEXT), 4)]
SUMMARY: Final = "다른 워커가 이어받고 저장된 답은 하나입니다."
SUMMARY_MODEL: Final = "summary-model"


class Moment(StrEnum):
    """The moments at which a job can be stopped."""

    CLAIM_UNHEARD = "claim_unheard"  # Redis has given the job to a worker, which has not heard of it
    CLAIMED = "claimed"  # while the question is stored
    FIRST_TOKEN = "before_the_first_token"
    MID_STREAM = "mid_stream"
    BEFORE_COMMIT = "before_commit"
    IN_COMMIT = "in_commit"  # PostgreSQL has been told to commit
    BEFORE_DONE = "between_commit_and_done"
    DONE_UNHEARD = "done_unheard"  # the ending is told, the worker does not know
    BEFORE_FINISH = "between_done_and_finish"
    FINISH_UNHEARD = "finish_unheard"  # finished, the worker does not know
    IN_RELAY = "in_the_outbox_relay"  # the summary is enqueued, its row not yet deleted


UNASKED: Final = {Moment.CLAIM_UNHEARD, Moment.CLAIMED}
"""Moments before the model is asked."""
STREAMING: Final = {Moment.FIRST_TOKEN, Moment.MID_STREAM}
"""Moments that wait for the model."""
IN_TRANSACTION: Final = {Moment.CLAIMED: 1, Moment.BEFORE_COMMIT: 2, Moment.IN_COMMIT: 3}
"""Moments that wait inside PostgreSQL, with the number of their lock in `TRIGGERS`."""
TOLD: Final = {Moment.DONE_UNHEARD, Moment.BEFORE_FINISH, Moment.FINISH_UNHEARD, Moment.IN_RELAY}
"""Moments after `done`."""
STORED: Final = TOLD | {Moment.IN_COMMIT, Moment.BEFORE_DONE}
"""Moments at which PostgreSQL has the answer, or will have it even if the worker dies."""

# Each waits while somebody holds the lock (its number, the job's hash): inside a statement, or inside COMMIT.
TRIGGERS: Final = """
CREATE FUNCTION wait_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::int, hashtext(NEW.job_id));
  RETURN NEW;
END $$;
CREATE TRIGGER claimed BEFORE INSERT ON messages
  FOR EACH ROW WHEN (NEW.role = 'user') EXECUTE FUNCTION wait_at(1);
CREATE TRIGGER before_commit BEFORE INSERT ON messages
  FOR EACH ROW WHEN (NEW.role = 'assistant') EXECUTE FUNCTION wait_at(2);
CREATE CONSTRAINT TRIGGER in_commit AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.role = 'assistant') EXECUTE FUNCTION wait_at(3);
"""

_WAITS: Final = """
SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
  AND classid::int = $1 AND objid::bigint = hashtext($2)::bigint & 4294967295
"""

_HOLDS: Final[dict[Moment, Callable[[RedisGate, str], Hold]]] = {
    Moment.CLAIM_UNHEARD: lambda gate, job_id: gate.hold(runs("claim"), where="reply", reply_has=job_id),
    Moment.BEFORE_DONE: lambda gate, job_id: gate.hold(runs("append", job_id, '"type":"done"')),
    Moment.DONE_UNHEARD: lambda gate, job_id: gate.hold(runs("append", job_id, '"type":"done"'), where="reply"),
    Moment.BEFORE_FINISH: lambda gate, job_id: gate.hold(runs("finish", job_id, "done")),
    Moment.FINISH_UNHEARD: lambda gate, job_id: gate.hold(runs("finish", job_id, "done"), where="reply"),
    Moment.IN_RELAY: lambda gate, job_id: gate.hold(says("PUBLISH", "outbox")),
}


@dataclass(slots=True)
class Stopped:
    """A job that waits at a moment, in the worker `pid`."""

    job_id: str
    moment: Moment
    session_id: str
    pid: int
    stack: Stack
    hold: Hold | None = None
    lock: asyncpg.Connection[Any] | None = None

    def let_go(self, *, drop: bool = False) -> None:
        """Let the job go on; with `drop`, the command that waits at the gate is lost instead."""
        if self.lock is not None:
            self.lock.terminate()
        if self.hold is not None and drop:
            self.hold.drop()
        elif self.hold is not None:
            self.hold.release()
        self.stack.model.release(self.job_id)


async def stop_at(stack: Stack, gate: RedisGate, moment: Moment, *, hold_again: bool = False) -> Stopped:
    """Enqueue a question and wait until its job has come to a moment; `hold_again`: in its next attempt too."""
    job_id = f"{moment}-{uuid4().hex[:8]}"
    answer = {"contains": job_id, "model": "test-model", "pieces": PIECES, "delay_s": 0.002}
    if moment in STREAMING:
        after = 0 if moment is Moment.FIRST_TOKEN else len(PIECES) // 2
        stack.model.script({**answer, "after": after, "hold": job_id})
    elif moment not in UNASKED:
        stack.model.script(answer)
    stack.model.script({**answer, "times": None, "hold": again(job_id) if hold_again else None})
    stopped = Stopped(job_id, moment, f"session-{job_id}", 0, stack)
    if moment in _HOLDS:
        stopped.hold = _HOLDS[moment](gate, job_id)
    if moment in IN_TRANSACTION:
        stopped.lock = await asyncpg.connect(stack.database_url)
        await stopped.lock.execute("SELECT pg_advisory_lock($1, hashtext($2))", IN_TRANSACTION[moment], job_id)
    await stack.ask(f"질문 {job_id}", session=stopped.session_id, job_id=job_id)
    await until(lambda: _reached(stopped), f"{job_id} is stopped", stack.logs)
    stopped.pid = stopped.hold.pid if stopped.hold else await pid_of_owner(stack, job_id)
    return stopped


def again(job_id: str) -> str:
    """The gate at which the next attempt of a job waits."""
    return f"{job_id}-again"


async def pid_of_owner(stack: Stack, job_id: str) -> int:
    """Return the process id of the lease's owner; 0 where there is none."""
    lease = await stack.redis.get(f"arq:in-progress:{job_id}")
    return int(lease.decode().rsplit("-", 2)[1]) if lease else 0


async def _reached(stopped: Stopped) -> bool:
    if stopped.hold is not None:
        told = stopped.moment is not Moment.IN_RELAY or await stopped.stack.redis.exists(f"arq:result:{stopped.job_id}")
        return stopped.hold.reached and bool(told)
    if stopped.lock is not None:
        return bool(await stopped.lock.fetch(_WAITS, IN_TRANSACTION[stopped.moment], stopped.job_id))
    if not await asyncio.to_thread(stopped.stack.model.waiting, stopped.job_id):
        return False
    if stopped.moment is Moment.FIRST_TOKEN:
        return True
    entries = await stopped.stack.redis.xrange(f"chat:events:{stopped.job_id}")
    return sum(b'"type":"delta"' in fields[b"data"] for _, fields in entries) > 0

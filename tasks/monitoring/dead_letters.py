"""Dead letters: jobs that failed for a reason other than the request, kept so that they can be retried."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from arq.constants import expires_extra_ms
from protostar_client import keys
from redis.asyncio import Redis

from tasks.engine.scripts import Script

_PAGE: Final = 500
_PUT_BACK: Final = Script.beside(__file__, "put_back")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead job. `history` has the reason of each attempt before the last; `payload` is its JSON."""

    id: str
    job_id: str
    function: str
    payload: str | None
    code: str
    message: str
    attempt: int
    history: list[dict[str, Any]]
    at_ms: int


async def dead_letters(redis: Redis) -> AsyncIterator[DeadLetter]:
    """Iterate over the dead letters, the newest first."""
    newest = "+"
    while True:
        entries = await redis.xrevrange(keys.DEAD, max=newest, count=_PAGE)
        for entry_id, fields in entries:
            yield DeadLetter(id=entry_id.decode(), **json.loads(fields[b"data"]))
        if len(entries) < _PAGE:
            return
        newest = f"({entries[-1][0].decode()}"


async def put_back(redis: Redis, letter: DeadLetter) -> bool:
    """Queue the job again with all its attempts; False if somebody has done so before.

    Raises:
        ValueError: the letter holds no payload, because the job had expired in the queue.
    """
    if letter.payload is None:
        raise ValueError(f"job {letter.job_id} had expired, so there is nothing to put back; enqueue it again")
    return bool(await _PUT_BACK.run(redis, letter.id, letter.job_id, letter.payload, expires_extra_ms))

"""Readers that come and go while workers die: does each end with exactly the stored answer?"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast
from uuid import uuid4

from protostar_client import ChatClient, keys

from benchmarks.streaming.legs import DONE, SHEETS, Sheet
from benchmarks.streaming.stage import Stage, question
from stack.errors import StackError
from stack.processes import wait_until

PROCESSES: Final = 4
WORKERS: Final = 3
PATIENCE_S: Final = 120.0
LATE_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """`readers` of `answers`, each of `tokens` at `rate` a second, asked within `seconds` with so many kills."""

    seed: int
    answers: int = 60
    readers: int = 500
    rate: int = 30
    tokens: int = 150
    seconds: float = 20.0
    kills: int = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of readers, but for `legs` and `restarts`, which are of all of them together."""

    readers: int
    exact: int
    wrong_text: int
    out_of_order: int
    gaps: int
    not_done: int
    unfinished: int
    legs: int
    restarts: int
    result_differs: int
    kills: int


async def run(stage: Stage, plan: Plan) -> Outcome:
    """Ask, read, kill, and compare."""
    dice = random.Random(plan.seed)
    for _ in range(WORKERS):
        stage.start_worker()
    for number in range(PROCESSES):
        stage.start_legs(plan.seed * PROCESSES + number)
    workers = stage.workers[:WORKERS]
    begin_s = time.monotonic()
    deeds = sorted([(dice.uniform(0, plan.seconds), "ask") for _ in range(plan.answers)] + _kills(dice, plan))
    job_ids: list[str] = []
    readers = [len(range(number, plan.readers, plan.answers)) for number in range(plan.answers)]
    async with ChatClient.connect(stage.redis_url) as client:
        for moment_s, deed in deeds:
            await asyncio.sleep(max(0.0, begin_s + moment_s - time.monotonic()))
            if deed == "kill":
                victim = workers.pop(dice.randrange(len(workers)))
                stage.kill(victim)
                workers.append(stage.launch())
                continue
            asked = question(rate=plan.rate, tokens=plan.tokens)
            handle = await client.enqueue(session_id=uuid4().hex, **asked)
            _send_readers(stage, plan, dice, handle.job_id, readers[len(job_ids)])
            job_ids.append(handle.job_id)
    sheets = await _ended(stage, plan.readers)
    return await _judge(stage, plan, sheets, job_ids)


def _kills(dice: random.Random, plan: Plan) -> list[tuple[float, str]]:
    return [(dice.uniform(2, plan.seconds + 2), "kill") for _ in range(plan.kills)]


def _send_readers(stage: Stage, plan: Plan, dice: random.Random, job_id: str, count: int) -> None:
    for _ in range(count):
        longest_s = 3 * plan.tokens / plan.rate if dice.random() < LATE_SHARE else 0.5
        sheet = Sheet(job_id=job_id, not_before_s=time.monotonic() + dice.uniform(0, longest_s))
        stage.redis.lpush(SHEETS, sheet.model_dump_json())


async def _ended(stage: Stage, count: int) -> list[Sheet]:
    def all_ended() -> bool:
        return cast(int, stage.redis.llen(DONE)) >= count

    with suppress(StackError):  # those that have not ended are counted
        await asyncio.to_thread(wait_until, all_ended, timeout_s=PATIENCE_S, what="every reader ends")
    return [Sheet.model_validate_json(sheet) for sheet in cast(list[bytes], stage.redis.lrange(DONE, 0, -1))]


async def _judge(stage: Stage, plan: Plan, sheets: list[Sheet], job_ids: list[str]) -> Outcome:
    stored = await stage.stored()
    results = {job_id: _result(stage, job_id) for job_id in job_ids}
    return Outcome(
        readers=plan.readers,
        exact=sum(_is_exact(sheet, stored) for sheet in sheets),
        wrong_text=sum(sheet.text != stored.get(sheet.job_id) for sheet in sheets),
        out_of_order=sum(sheet.out_of_order > 0 for sheet in sheets),
        gaps=sum(sheet.gaps > 0 for sheet in sheets),
        not_done=sum(sheet.ending != "done" for sheet in sheets),
        unfinished=plan.readers - len(sheets),
        legs=sum(sheet.legs for sheet in sheets),
        restarts=sum(sheet.restarts for sheet in sheets),
        result_differs=sum(results[job_id] != stored.get(job_id) for job_id in job_ids),
        kills=plan.kills,
    )


def _is_exact(sheet: Sheet, stored: dict[str, str]) -> bool:
    faults = sheet.out_of_order + sheet.gaps
    return sheet.ending == "done" and not faults and sheet.text == stored.get(sheet.job_id)


def _result(stage: Stage, job_id: str) -> str | None:
    record = cast(bytes | None, stage.redis.get(keys.result(job_id)))
    result = json.loads(record)["r"] if record else None
    return result.get("content") if isinstance(result, dict) else None

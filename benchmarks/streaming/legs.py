"""Readers that read a bit of an answer, leave, and come back, in any process.

A reader's sheet travels through a Redis list: whichever process takes it reads on from its last id for a random
while. Run with a Redis URL and a seed; sheets that are done go to the list `DONE`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack, aclosing
from typing import Final

import redis.asyncio
import uvloop
from protostar_client import ChatClient, JobHandle
from pydantic import BaseModel

from benchmarks.streaming.stage import USER

SHEETS: Final = "legs:sheets"
DONE: Final = "legs:done"
CLIENTS: Final = 3
AT_ONCE: Final = 150
LONGEST_LEG_S: Final = 2.0
LONGEST_AWAY_S: Final = 1.0


class Sheet(BaseModel):
    """A reader: what it has heard, from where it goes on, and not before which moment of the monotonic clock."""

    job_id: str
    not_before_s: float
    last_id: str | None = None
    text: str = ""
    legs: int = 0
    restarts: int = 0
    gaps: int = 0
    out_of_order: int = 0
    ending: str = ""

    def hear(self, kind: str, event_id: str, text: str | None) -> None:
        """Take an event in; note whether it comes right after the last one."""
        attempt, seq = map(int, event_id.split("-"))
        last_attempt, last_seq = map(int, (self.last_id or "0-0").split("-"))
        self.gaps += kind == "gap"
        self.out_of_order += not (
            (attempt == last_attempt and seq == last_seq + 1) or (attempt > last_attempt and seq == 1)
        )
        if kind == "restart" or attempt != last_attempt:
            self.restarts += last_attempt > 0
            self.text = ""
        self.text += text or ""
        self.last_id = event_id


async def read_on(sheet: Sheet, handle: JobHandle, dice: random.Random) -> None:
    """Read until the end, until so many events were read, or for so long, whichever comes first."""
    sheet.legs += 1
    most = dice.choice((1, 3, 10, 30, 100))
    try:
        async with asyncio.timeout(dice.uniform(0, LONGEST_LEG_S)), aclosing(handle.events(sheet.last_id)) as events:
            async for event in events:
                sheet.hear(event.type, event.id, event.text)
                most -= 1
                if event.is_ending:
                    sheet.ending = event.type
                if most == 0:
                    return
    except TimeoutError:
        return  # it left in the middle of waiting


async def main(redis_url: str, seed: int) -> None:
    """Take sheets and read on, until killed."""
    dice = random.Random(seed)
    slots = asyncio.Semaphore(AT_ONCE)
    running: set[asyncio.Task[None]] = set()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(redis.asyncio.Redis.from_url(redis_url))
        clients = [await stack.enter_async_context(ChatClient.connect(redis_url)) for _ in range(CLIENTS)]

        async def leg(sheet: Sheet) -> None:
            await asyncio.sleep(max(0.0, sheet.not_before_s - time.monotonic()))
            if dice.random() < 0.1:  # one that connects for this alone
                async with ChatClient.connect(redis_url) as client:
                    await read_on(sheet, client.handle(sheet.job_id, user_uuid=USER), dice)
            else:
                await read_on(sheet, dice.choice(clients).handle(sheet.job_id, user_uuid=USER), dice)
            sheet.not_before_s = time.monotonic() + dice.uniform(0, LONGEST_AWAY_S)
            await server.execute_command("LPUSH", DONE if sheet.ending else SHEETS, sheet.model_dump_json())

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            slots.release()
            task.result()  # a failure is the run's: its reader never ends, and the log says why

        while True:
            await slots.acquire()
            _, taken = await server.execute_command("BRPOP", SHEETS, 0)
            task = asyncio.create_task(leg(Sheet.model_validate_json(taken)))
            running.add(task)
            task.add_done_callback(ended)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))

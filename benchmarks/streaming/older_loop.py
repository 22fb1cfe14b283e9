"""The loop that came before: takes questions from a list, reads the SDK's typed stream, publishes every token.

Run with a Redis URL and the model server's base URL. Nothing is stored: an answer that nobody hears is gone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

import openai
import redis.asyncio as redis
import uvloop

QUEUE: Final = "older:questions"
CHANNEL_PREFIX: Final = "older:answer:"


async def answer(server: redis.Redis, client: openai.AsyncOpenAI, element: bytes) -> None:
    """Ask the model, and publish as it speaks."""
    question = json.loads(element)
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": question["content"]}], stream=True
    )
    channel = CHANNEL_PREFIX + question["id"]
    async for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            await server.publish(channel, json.dumps({"type": "message", "content": text, "id": question["id"]}))
    await server.publish(channel, json.dumps({"type": "done", "content": "done", "id": question["id"]}))


async def main(redis_url: str, base_url: str) -> None:
    """Serve for ever."""
    client = openai.AsyncOpenAI(base_url=base_url, api_key="sk-none")
    tasks: set[asyncio.Task[None]] = set()
    async with redis.Redis.from_url(redis_url) as server:
        while True:
            element = await server.execute_command("BRPOP", QUEUE, 0)
            task = asyncio.create_task(answer(server, client, element[1]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:3]))

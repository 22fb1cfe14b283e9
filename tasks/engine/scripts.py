"""Runs Lua scripts in Redis. Each package keeps its scripts in a folder `lua`, one script a file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, Self, cast

from protostar_client import keys
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

REDIS_TIMEOUT_S: Final = 5.0

Argument = str | int | bytes

_SHARED: Final = Path(__file__).parent / "lua"
_INCLUDE: Final = re.compile(r"^-- include: (.+)$", re.MULTILINE)


class Script:
    """One Lua script.

    Every constant of `protostar_client.keys` is a local variable of the script. A line `-- include: NAME.lua ...`
    in its header puts files of `tasks/engine/lua` before it.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path

    @classmethod
    def beside(cls, module_file: str, name: str) -> Self:
        """The script `lua/{name}.lua` beside a module; pass the module's `__file__`."""
        return cls(Path(module_file).parent / "lua" / f"{name}.lua")

    @cached_property
    def text(self) -> str:
        """The script with key names and included files, as Redis runs it."""
        text = self._path.read_text()
        included = _INCLUDE.search(text)
        parts = [(_SHARED / part).read_text() for part in (included[1].split() if included else [])]
        return "\n".join([_key_names(), *parts, text])

    @cached_property
    def sha1(self) -> str:
        """The name under which Redis caches the script."""
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, *arguments: Argument) -> Any:
        """Run the script; send its text only where Redis does not have it.

        Raises:
            TimeoutError: no reply within `REDIS_TIMEOUT_S`; the script may have run.
        """
        values: Any = arguments  # redis-py takes numbers and bytes too, its types name text only
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            try:
                return await cast(Awaitable[Any], redis.evalsha(self.sha1, 0, *values))
            except NoScriptError:
                return await cast(Awaitable[Any], redis.eval(self.text, 0, *values))


class Batch:
    """Sends calls of one script that arrive while others are under way to Redis together, as one message."""

    def __init__(self, redis: Redis, script: Script) -> None:
        self._redis = redis
        self._script = script
        self._waiting: list[tuple[asyncio.Future[Any], tuple[Argument, ...]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, *arguments: Argument) -> Any:
        """Run the script, as `Script.run` does; a call that is cancelled may still be made."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((reply, arguments))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name=f"batch:{self._script.name}")
        return await reply

    async def _send(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting, []
            try:
                replies = await self._replies([arguments for _, arguments in calls])
            except Exception as error:
                replies = [error] * len(calls)
            for (waiting, _), reply in zip(calls, replies, strict=True):
                if waiting.done():
                    continue
                if isinstance(reply, Exception):
                    waiting.set_exception(reply)
                else:
                    waiting.set_result(reply)
        self._sender = None

    async def _replies(self, calls: list[tuple[Argument, ...]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for arguments in calls:
            values: Any = arguments
            pipeline.evalsha(self._script.sha1, 0, *values)
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            replies = await pipeline.execute(raise_on_error=False)
        return [
            await self._script.run(self._redis, *arguments) if isinstance(reply, NoScriptError) else reply
            for arguments, reply in zip(calls, replies, strict=True)
        ]


def _key_names() -> str:
    names = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    values = (f"'{value}'" for value in names.values())
    return f"local {', '.join(names)} = {', '.join(values)}"

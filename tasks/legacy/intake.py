"""The older protocol: what producers LPUSH on one list becomes jobs of the queue, in order, none lost or doubled.

An intake looks at the oldest element without taking it, makes a job of it here, and has one script take exactly this
element from the list and enqueue its job, or do nothing if another worker was first. There is no state in between that
a crash could leave behind, so there is nothing to recover, and no second list that a crash would put out of order.

It waits with `BLMOVE list list RIGHT RIGHT`: the move of the last element to where it is changes nothing, but blocks
until there is one. So an idle worker costs one command in `BLOCK_S`, and an element is seen at once.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, cast
from uuid import UUID, uuid4

import structlog
from arq.constants import expires_extra_ms
from protostar_client import keys
from protostar_client.codec import dump_json
from protostar_client.contract import (
    GENERATE_CHAT,
    JOB_ID_MAX_CHARACTERS,
    ChatRequest,
    ErrorCode,
    EventType,
    JobId,
    SessionId,
)
from protostar_client.normalization import Text, clean_text
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tasks.engine.scripts import REDIS_TIMEOUT_S, Script
from tasks.engine.waiting import keep_running

logger = structlog.stdlib.get_logger("protostar.legacy")

BLOCK_S: Final = 2  # less than REDIS_TIMEOUT_S, after which a Redis that says nothing counts as away
REST_S: Final = 0.25
RETRY_S: Final = 1.0
ELEMENT_MAX_BYTES: Final = 8 * 1024 * 1024  # the largest content and context are 5 MB with every character escaped

DEAD_MAX_ELEMENTS: Final = 1000
DEAD_LIFE: Final = timedelta(days=30)
DEAD_ELEMENT_MAX_CHARACTERS: Final = 8000
REASON_MAX_CHARACTERS: Final = 1000

INTAKE: Final = Script.beside(__file__, "intake")
BURY: Final = Script.beside(__file__, "bury")


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NumberOrJobId = Annotated[JobId, BeforeValidator(_number_as_text)]
_JOB_ID: Final = TypeAdapter(NumberOrJobId)


class UnusableElementError(Exception):
    """An element that can't become a job. `reason` is for people; `fields` is what could be read of it."""

    def __init__(self, reason: str, fields: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fields = fields or {}


class OlderRequest(BaseModel):
    """An older producer's JSON object; sizes and the mode are the job's to judge, which tells the reader."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    user_uuid: Annotated[UUID, Field(alias="uuid")]
    session_id: Annotated[SessionId, Field(alias="sessionId"), BeforeValidator(_number_as_text)]
    content: Text
    mode: Text | None = None
    context: Text | None = None
    job_id: Annotated[NumberOrJobId | None, Field(alias="jobId")] = None


@dataclass(frozen=True, slots=True)
class OlderJob:
    """The job an element becomes: its id, the keyword arguments of `generate_chat`, what could be read of it."""

    job_id: str
    arguments: dict[str, Any]
    fields: dict[str, Any]


class OlderIntake:
    """Moves the elements of the older list into the queue; every worker runs one.

    Args:
        redis: the queue's Redis, with connections that do not repeat a command by themselves.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        kept = keep_running(self._run, logger=logger, event="intake_failed", again_s=RETRY_S)
        self._task = asyncio.create_task(kept, name="older-intake")

    async def close(self) -> None:
        """Stop; what is left in the list is another worker's."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Take the oldest element, if there is one."""
        element = await self._wait()
        if element is not None and await self._take(element) == "taken":
            # The worker that was faster goes on; the others need not race for every element.
            await asyncio.sleep(REST_S * random.uniform(0.5, 1.5))

    async def _wait(self) -> bytes | None:
        """The oldest element, left where it is; None if there was none for a while."""
        found = self._redis.blmove(keys.OLDER_QUEUE, keys.OLDER_QUEUE, BLOCK_S, "RIGHT", "RIGHT")
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            return await cast(Awaitable[bytes | None], found)

    async def _take(self, element: bytes) -> str:
        try:
            job = await self._read(element)
            payload = dump_json({"t": None, "f": GENERATE_CHAT, "a": [], "k": job.arguments})[:-1] + b',"et":'
            reply: bytes = await INTAKE.run(
                self._redis, element, job.job_id, payload, expires_extra_ms, job.arguments["user_uuid"]
            )
            if reply == b"foreign":
                raise UnusableElementError("jobId: is the id of another job; use an id of your own", job.fields)
        except UnusableElementError as problem:
            logger.warning("element_unusable", kept_in=keys.OLDER_DEAD)  # its reason may quote what users said
            reply = await bury(self._redis, element, problem)
        return reply.decode()

    async def _read(self, element: bytes) -> OlderJob:
        if len(element) > ELEMENT_MAX_BYTES:
            raise UnusableElementError(f"larger than {ELEMENT_MAX_BYTES} bytes")
        if element.lstrip()[:1] in (b"{", b"[", b'"'):
            return parse_element(element)
        job_id = _task_id(element)
        return parse_element(await self._task_object(job_id), job_id=job_id)

    async def _task_object(self, job_id: str) -> bytes:
        key = keys.older_task(job_id)
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                value: bytes = await self._redis.getrange(key, 0, ELEMENT_MAX_BYTES)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise UnusableElementError(f"{key} is not a string; SET a JSON object there") from None
            raise
        if not value:
            raise UnusableElementError(f"not a JSON object, and there is none at {key}; SET it before the LPUSH")
        if len(value) > ELEMENT_MAX_BYTES:
            raise UnusableElementError(f"{key} is larger than {ELEMENT_MAX_BYTES} bytes")
        return value


def parse_element(data: bytes, *, job_id: str | None = None) -> OlderJob:
    """The job that a JSON object becomes, under `job_id`, else under its own `jobId`, else under a new id.

    Raises:
        UnusableElementError: not a JSON object, or a field that a job needs is missing or of a wrong type.
    """
    try:
        fields = json.loads(data.decode())
    except UnicodeDecodeError:
        raise UnusableElementError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise UnusableElementError("not JSON, or nested too deeply") from None
    if not isinstance(fields, dict):
        raise UnusableElementError("not a JSON object")
    if job_id is not None:
        fields["jobId"] = job_id
    try:
        request = OlderRequest.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        told = problem["msg"].removeprefix("Value error, ")
        raise UnusableElementError(f"{problem['loc'][0]}: {told}", fields) from None
    if request.job_id and request.job_id.startswith(keys.OWN_JOB_IDS):
        raise UnusableElementError("jobId: begins like a job of the worker's own; use an id of your own", fields)
    return OlderJob(request.job_id or uuid4().hex, _arguments(request), fields)


def _arguments(request: OlderRequest) -> dict[str, Any]:
    optional = {"mode": request.mode, "context": request.context}
    return {
        "user_uuid": str(request.user_uuid),
        "session_id": request.session_id,
        "content": request.content,
        **{
            name: ChatRequest.model_fields[name].default if value is None else value for name, value in optional.items()
        },
    }


def _task_id(element: bytes) -> str:
    try:
        return _JOB_ID.validate_python(element.decode())
    except (UnicodeDecodeError, ValidationError):
        raise UnusableElementError(
            f"neither a JSON object nor an id of 1 to {JOB_ID_MAX_CHARACTERS} printable characters"
        ) from None


async def bury(redis: Redis, element: bytes, problem: UnusableElementError) -> bytes:
    """Move the oldest element to the dead ones, which are bounded; returns the reply of `bury.lua`."""
    oldest = (datetime.now(UTC) - DEAD_LIFE).isoformat(timespec="milliseconds")
    limits = (DEAD_MAX_ELEMENTS, int(DEAD_LIFE.total_seconds()), oldest)
    reply: bytes = await BURY.run(redis, element, *_dead_letter(element, problem), *limits)
    return reply


def _dead_letter(element: bytes, problem: UnusableElementError) -> tuple[bytes, str, bytes]:
    """What is kept of an element, and the channel and the words for its reader, who may be waiting."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = element[: 4 * DEAD_ELEMENT_MAX_CHARACTERS].decode(errors="backslashreplace")[:DEAD_ELEMENT_MAX_CHARACTERS]
    kept = {"reason": clean_text(problem.reason)[:REASON_MAX_CHARACTERS], "element": text, "at": now}
    names = {name: _name(problem.fields.get(name)) for name in ("uuid", "sessionId", "jobId")}
    if not names["uuid"] or not names["sessionId"]:
        return dump_json(kept), "", b""
    said = {
        "type": EventType.ERROR.value,
        "content": kept["reason"],
        "code": ErrorCode.INVALID_REQUEST.value,
        **names,
        "timestamp": now,
    }
    return dump_json(kept), keys.older_channel(names["uuid"], names["sessionId"]), dump_json(said)


def _name(value: object) -> str:
    text = _number_as_text(value)
    return clean_text(text)[:JOB_ID_MAX_CHARACTERS] if isinstance(text, str) else ""

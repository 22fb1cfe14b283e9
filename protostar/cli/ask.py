"""`protostar ask`, `protostar chat` and `protostar enqueue`: questions for the workers."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import typer
from protostar_client import ChatClient, JobHandle, JobVanished, OnBusy, ProtostarError
from protostar_client.contract import ChatRequest, check_turn_id

from protostar.cli.support.answer_view import AnswerView, cancel_on_signals
from protostar.cli.support.errors import INTERRUPTED, CommandError, using_client
from protostar.cli.support.options import ContextFile, Mode, Session, User, account_uuid, new_session, read_context
from protostar.cli.support.output import note, write, write_json
from protostar.settings import RedisSettings, load

_CANCEL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Question:
    request: ChatRequest
    job_id: str | None = None
    on_busy: OnBusy = "enqueue"

    async def enqueue(self, client: ChatClient) -> JobHandle:
        return await client.enqueue(**dict(self.request), job_id=self.job_id, on_busy=self.on_busy)


def _request(content: str, user: UUID | None, session: str, mode: str, context: str = "") -> ChatRequest:
    """Check the request before Redis is asked, so that wrong use is always reported as such."""
    named = {"content": content, "session_id": session, "mode": mode, "context": context}
    return ChatRequest.parse(named | {"user_uuid": user or account_uuid()})


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    user: User = None,
    session: Session = None,
    mode: Mode = "general",
    context: ContextFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event of the answer.")] = False,
) -> None:
    """Ask a question and print the answer as it arrives. Ctrl-C cancels the job."""
    session_id = new_session() if session is None else session
    try:
        with using_client():
            asked = _Question(_request(question, user, session_id, mode, read_context(context)))
            asyncio.run(_ask(load(RedisSettings), asked, json=json))
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None
    if session is None and not json:
        note(f"to go on in this session: --session {session_id}")


def chat(user: User = None, session: Session = None, mode: Mode = "general") -> None:
    """Ask several questions in one session, one per line. Ctrl-C cancels an answer, Ctrl-D ends."""
    session_id = new_session() if session is None else session
    with using_client():
        _request("x", user, session_id, mode)
    failed = False
    for line in _lines():
        try:
            with using_client():
                asyncio.run(_ask(load(RedisSettings), _Question(_request(line, user, session_id, mode))))
        except asyncio.CancelledError:
            note("the answer was cancelled")
        except CommandError as error:
            note(str(error))
            failed = True
    note(f"to go on in this session: --session {session_id}")
    if failed:
        raise CommandError("not every question was answered")


def _lines() -> Iterator[str]:
    """Read questions line by line, with a prompt on a terminal; empty lines are skipped."""
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lets input() edit what is typed
    while True:
        try:
            line = input("> " if is_typed else "")
        except EOFError:
            return
        if line.strip():
            yield line


async def _ask(settings: RedisSettings, question: _Question, *, json: bool = False) -> None:
    cancel_on_signals()
    async with _connect(settings) as client:
        handle = await question.enqueue(client)
        try:
            await AnswerView(json=json).follow(handle)
        except (asyncio.CancelledError, BrokenPipeError):
            # In a task of its own: before Python 3.11.3 a timeout in a cancelled task raises a second cancellation.
            await asyncio.create_task(_cancel(handle))
            raise


async def _cancel(handle: JobHandle) -> None:
    try:
        await handle.cancel(timeout_s=_CANCEL_TIMEOUT_S)
    except JobVanished:
        return
    except (TimeoutError, ProtostarError):
        note(f"job {handle.job_id} was asked to end, but no worker has confirmed it")


def enqueue(
    question: Annotated[str, typer.Argument(help="The question.")],
    user: User = None,
    session: Session = None,
    mode: Mode = "general",
    context: ContextFile = None,
    job_id: Annotated[str | None, typer.Option(help="The job's id. The same id again is the same turn.")] = None,
    on_busy: Annotated[OnBusy, typer.Option(help="What to do if the session has an unfinished turn.")] = "enqueue",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Put a question into the queue and print the job's id for `protostar watch`. Does not wait for the answer."""
    session_id = new_session() if session is None else session
    with using_client():
        request = _request(question, user, session_id, mode, read_context(context))
        job_id = None if job_id is None else check_turn_id(job_id)
        handle = asyncio.run(_enqueue(load(RedisSettings), _Question(request, job_id, on_busy)))
    if json:
        told = {"job_id": handle.job_id, "created": handle.created}
        write_json(told | {"user_uuid": str(request.user_uuid), "session_id": session_id})
        return
    write(f"{handle.job_id}\n")
    if not handle.created:
        note("the job was known before; nothing was enqueued")


async def _enqueue(settings: RedisSettings, question: _Question) -> JobHandle:
    async with _connect(settings) as client:
        return await question.enqueue(client)


def _connect(settings: RedisSettings) -> contextlib.AbstractAsyncContextManager[ChatClient]:
    return ChatClient.connect(settings.redis_url.get_secret_value(), max_queue=settings.max_queue)

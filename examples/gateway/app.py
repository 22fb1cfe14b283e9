"""The routes: ask, follow, stop, look back, open a source; and the page that does all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path as FilePath
from typing import Annotated, Final

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from protostar_client import (
    Cancelled,
    ChatClient,
    ConnectionLost,
    Event,
    EventsExpired,
    JobError,
    JobHandle,
    JobVanished,
    OnBusy,
    ReaderTooSlow,
    RedisRefused,
    Source,
)
from pydantic import BaseModel, ConfigDict

from .config import Config
from .errors import NotFoundError, answer_errors
from .library import Library, Passage, PastMessage
from .protection import Protection
from .users import User, remember_users, sign_in

PAGE: Final = FilePath(__file__).parent / "page"
RETRY_MS: Final = 1_000
ALIVE_EVERY_S: Final = 3.0
"""How often a stream without events says that it is alive: a page that hears nothing for longer connects again."""
HISTORY_MAX_MESSAGES: Final = 200
SOURCES_TIMEOUT_S: Final = 2.0
ALIVE: Final = ServerSentEvent(data={"type": "alive"})
_EVENT_ID: Final = r"^[0-9]{1,18}-[0-9]{1,18}$"
_HEADERS: Final = {
    # Nothing but our own files may run or be shown, whatever a model or a document says.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Question(BaseModel):
    """What a browser asks. The client checks the values; here only their types are looked at."""

    model_config = ConfigDict(extra="forbid")

    session_id: str
    content: str
    job_id: str | None = None
    mode: str = "general"
    context: str = ""
    on_busy: OnBusy = "enqueue"


class Asked(BaseModel):
    """A job, and whether this request enqueued it: the same `job_id` again is the same turn."""

    job_id: str
    created: bool


class Cancellation(BaseModel):
    """Whether the job was cancelled; null where no worker has ended it yet, and the request stands."""

    cancelled: bool | None


router = APIRouter()


def make_app(config: Config) -> FastAPI:
    """The gateway; it connects when it is started."""

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        library = await Library.open(config.database_url.get_secret_value())
        try:
            redis_url = config.redis_url.get_secret_value()
            async with ChatClient.connect(redis_url, max_queue=config.max_queue) as client:
                app.state.client, app.state.library = client, library
                yield
        finally:
            await library.close()

    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="Protostar gateway", lifespan=connected, docs_url=None, redoc_url=None)
    remember_users(app, config)
    answer_errors(app)
    app.add_middleware(Protection, allowed_hosts=config.allowed_hosts)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=PAGE / "static"))
    return app


def _client(request: Request) -> ChatClient:
    client: ChatClient = request.app.state.client
    return client


def _library(request: Request) -> Library:
    library: Library = request.app.state.library
    return library


Client = Annotated[ChatClient, Depends(_client)]
TheLibrary = Annotated[Library, Depends(_library)]


async def _known_job(job_id: str, user: User, client: Client) -> JobHandle:
    """The handle of a job of the user's, asked for while there can still be a status code.

    Raises:
        JobVanished: there is none.
    """
    handle = client.handle(job_id, user_uuid=user)
    with suppress(TimeoutError, JobError, Cancelled):  # whether it waits, runs or has ended is not the question
        await handle.result(timeout_s=0)
    return handle


KnownJob = Annotated[JobHandle, Depends(_known_job)]


@router.get("/", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    """The chat page; whoever opens it first becomes a user."""
    sign_in(request)
    return FileResponse(PAGE / "index.html", headers=_HEADERS)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process serves."""
    return {"status": "ok"}


@router.post("/api/answers", status_code=202)
async def ask(question: Question, user: User, client: Client) -> Asked:
    """Put a question into the queue."""
    handle = await client.enqueue(user_uuid=user, **question.model_dump())
    return Asked(job_id=handle.job_id, created=handle.created)


@router.get("/api/answers/{job_id}")
async def look_up(handle: KnownJob) -> dict[str, str]:
    """Whether a job of the user's is known: what an EventSource that was refused can't tell."""
    return {"job_id": handle.job_id}


@router.get("/api/answers/{job_id}/events", response_class=EventSourceResponse)
async def follow(
    handle: KnownJob,
    last_event_id: Annotated[str | None, Header(pattern=_EVENT_ID)] = None,
    after: Annotated[str | None, Query(pattern=_EVENT_ID)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """The events of an answer after the last one that was seen.

    A browser that lost the connection sends `Last-Event-ID` by itself; `after` is for one that has just loaded the
    page. Messages have no `event:` name, because one named "error" could not be told from EventSource's own. After the
    one of type `over` there is nothing more to come, and the browser must not come back. One of type `alive` is sent
    where nothing else was for `ALIVE_EVERY_S`: a comment, which a script can't see, would not show that a proxy on the
    way has gone silent.
    """
    yield ServerSentEvent(comment="an answer", retry=RETRY_MS)
    try:
        async with aclosing(handle.events(last_event_id or after)) as events:
            async for event in _with_signs_of_life(events):
                yield (
                    ALIVE
                    if event is None
                    else ServerSentEvent(id=event.id, raw_data=event.model_dump_json(exclude_none=True))
                )
    except (ReaderTooSlow, ConnectionLost, RedisRefused):
        return  # the browser comes back with the last id it saw
    except (JobError, Cancelled, JobVanished, EventsExpired) as error:
        yield ServerSentEvent(data={"type": "over", "message": str(error)})
    else:
        yield ServerSentEvent(data={"type": "over"})


def _as_message(event: Event) -> ServerSentEvent:
    return ServerSentEvent(id=event.id, raw_data=event.model_dump_json(exclude_none=True))


async def _with_signs_of_life(events: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """The events, and None whenever there was none for `ALIVE_EVERY_S`."""
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=ALIVE_EVERY_S)
            if not done:
                yield None
                continue
            event = following.result()
            if event is None:
                return
            yield event
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()
        await asyncio.wait({following})


@router.post("/api/answers/{job_id}/cancel")
async def cancel(handle: KnownJob, response: Response) -> Cancellation:
    """Stop an answer, or take a question out of the queue."""
    try:
        return Cancellation(cancelled=await handle.cancel())
    except TimeoutError:
        response.status_code = 202
        return Cancellation(cancelled=None)


@router.get("/api/answers/{job_id}/passages/{chunk_id}")
async def passage(
    job_id: str, chunk_id: Annotated[int, Path(gt=0, lt=2**63)], user: User, client: Client, library: TheLibrary
) -> Passage:
    """A passage that an answer of the user's was given, within its document."""
    stored = (await library.sources(user, [job_id])).get(job_id, [])
    if not _cites(stored, chunk_id) and not await _tells_of(await _known_job(job_id, user, client), chunk_id):
        raise NotFoundError(f"no answer of yours with the id {job_id!r} was given passage {chunk_id}")
    found = await library.passage(chunk_id)
    if found is None:
        raise NotFoundError("the document was changed or removed since it was quoted")
    return found


def _cites(sources: list[Source], chunk_id: int) -> bool:
    return any(source.chunk_id == chunk_id for source in sources)


async def _tells_of(handle: JobHandle, chunk_id: int) -> bool:
    """Whether an answer that is not stored yet has named a passage."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SOURCES_TIMEOUT_S), aclosing(handle.events()) as events:
            async for event in events:
                if _cites(event.sources or [], chunk_id):
                    return True
    return False


@router.get("/api/messages")
async def messages(
    session_id: Annotated[str, Query(min_length=1, max_length=128)],
    user: User,
    library: TheLibrary,
    limit: Annotated[int, Query(ge=1, le=HISTORY_MAX_MESSAGES)] = 50,
) -> list[PastMessage]:
    """The newest messages of a session of the user's, oldest first. They come from PostgreSQL and wait in no queue."""
    return await library.messages(user, session_id, limit)

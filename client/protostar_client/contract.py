"""What a service and the worker agree on: names, requests, results, events, error codes, the JSON codec."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)

from protostar_client import keys
from protostar_client.normalization import Name, Text, not_blank

GENERATE_CHAT: Final = "generate_chat"
SUMMARIZE_MESSAGE: Final = "summarize_message"
ROLL_UP_SESSION: Final = "roll_up_session"
REINDEX_CORPUS: Final = "reindex_corpus"
INDEX_DOCUMENTS: Final = "index_documents"
READ_HISTORY: Final = "read_history"

CONTENT_MAX_CHARACTERS: Final = 32_000
CONTEXT_MAX_CHARACTERS: Final = 400_000
SESSION_ID_MAX_CHARACTERS: Final = 128
JOB_ID_MAX_CHARACTERS: Final = 256
HISTORY_MAX_MESSAGES: Final = 500
DOCUMENTS_MAX_PATTERNS: Final = 100
PATTERN_MAX_CHARACTERS: Final = 300


class ErrorCode(StrEnum):
    """Why a job failed."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_MODE = "unknown_mode"
    PROMPT_TOO_LONG = "prompt_too_long"
    CONTEXT_LENGTH = "context_length"
    RATE_LIMITED = "rate_limited"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_ERROR = "provider_error"
    CONTENT_FILTERED = "content_filtered"
    STALLED = "stalled"
    JOB_TIMEOUT = "job_timeout"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    QUEUE_FULL = "queue_full"
    INTERNAL = "internal"


class ProtostarError(Exception):
    """The base of every error that this package raises by itself."""


class JobError(ProtostarError):
    """A job's final failure. `code` is for programs, `message` for people: what was wrong, what to do."""

    def __init__(self, code: ErrorCode | str, message: str) -> None:
        super().__init__(str(code), message)
        self.code = str(code)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvalidRequest(JobError):  # noqa: N818  (reads as what happened, like the other errors of this package)
    """A request that no worker would take. `field` is the argument that is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, f"{field}: {problem}")
        self.field = field


SessionId = Annotated[Name, Field(min_length=1, max_length=SESSION_ID_MAX_CHARACTERS)]
JobId = Annotated[Name, Field(min_length=1, max_length=JOB_ID_MAX_CHARACTERS)]
RowId = Annotated[int, Field(strict=True, gt=0, lt=2**63)]  # strict: JSON's true is no 1
_JOB_ID: Final = TypeAdapter(JobId)


def check_job_id(job_id: str) -> str:
    """The id, if a job can have it.

    Raises:
        InvalidRequest: it is empty, too long, or holds a control character.
    """
    try:
        return _JOB_ID.validate_python(job_id)
    except ValidationError as error:
        raise InvalidRequest("job_id", _in_words(error.errors()[0])) from None


def check_turn_id(job_id: str) -> str:
    """As `check_job_id`, for a chat job, which can't have the id of a job of the worker's own."""
    if job_id.startswith(keys.OWN_JOB_IDS):
        raise InvalidRequest("job_id", f"begins like a job of the worker's own ({', '.join(keys.OWN_JOB_IDS)})")
    return check_job_id(job_id)


def _in_words(problem: Mapping[str, Any]) -> str:
    """What is wrong with a field, for people."""
    limits = problem.get("ctx", {})
    if "min_length" in limits:
        return "is empty; give at least one character"
    if "max_length" in limits:
        unit = "entries" if limits.get("field_type") in ("List", "Tuple") else "characters"
        return f"is too long; give at most {limits['max_length']:,} {unit}"
    return str(problem["msg"]).removeprefix("Value error, ")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Self:
        """Validate and clean a job's keyword arguments.

        Raises:
            InvalidRequest: a field is missing, unknown, oversized or of a wrong type.
        """
        try:
            return cls.model_validate(dict(arguments))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            field = str(problem["loc"][0]) if problem["loc"] else "request"
            raise InvalidRequest(field, _in_words(problem)) from None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, as JSON values."""
        return self.model_dump(mode="json")


class ChatRequest(_Request):
    """The keyword arguments of `generate_chat`."""

    user_uuid: UUID
    session_id: SessionId
    content: Annotated[Text, Field(min_length=1, max_length=CONTENT_MAX_CHARACTERS), AfterValidator(not_blank)]
    mode: Annotated[Name, Field(min_length=1, max_length=64)] = "general"
    context: Annotated[Text, Field(max_length=CONTEXT_MAX_CHARACTERS)] = ""
    documents: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=PATTERN_MAX_CHARACTERS)]],
        Field(max_length=DOCUMENTS_MAX_PATTERNS),
    ] = []

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, as JSON values; no `documents` where all are meant, for workers before 1.0."""
        return self.model_dump(mode="json", exclude=None if self.documents else {"documents"})


class SummaryRequest(_Request):
    """The keyword arguments of `summarize_message`."""

    message_id: RowId


class RollUpRequest(_Request):
    """The keyword arguments of `roll_up_session`: the session's row, and the message after which to begin."""

    session: RowId
    until: Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class ReindexRequest(_Request):
    """The keyword arguments of `reindex_corpus`: with `full`, what has not changed is indexed too."""

    full: StrictBool = False


class HistoryRequest(_Request):
    """The keyword arguments of `read_history`: the newest `limit` messages of a session."""

    user_uuid: UUID
    session_id: SessionId
    limit: Annotated[int, Field(strict=True, ge=1, le=HISTORY_MAX_MESSAGES)] = 50


class _Model(BaseModel):
    # A newer worker may say more than this version knows.
    model_config = ConfigDict(extra="ignore", json_schema_serialization_defaults_required=True)


class Usage(_Model):
    """What one answer used. `cost` is in the provider's currency, null where it names none."""

    input_tokens: int
    output_tokens: int
    cost: float | None = None
    estimated: bool = False


class Source(_Model):
    """A passage that the prompt held; `score` orders passages of one answer, higher is better."""

    chunk_id: int
    document: str
    heading: str
    score: float


class ChatResult(_Model):
    """The result of `generate_chat`."""

    message_id: int
    session_id: str
    content: str
    finish_reason: str
    model: str
    usage: Usage
    sources: list[Source]
    attempt: int


class SummaryResult(_Model):
    """The result of `summarize_message`; `model` is empty where no model was asked."""

    message_id: int
    summary: str
    model: str
    usage: Usage


class ReindexFailure(_Model):
    """A file that could not be indexed: its path inside the corpus folder, and why."""

    path: str
    reason: str


class ReindexResult(_Model):
    """The result of `reindex_corpus`: counts of documents, then of chunks written, then the time taken.

    `failures` are the first 100 of the `failed` files.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    failed: int
    chunks: int
    seconds: float
    failures: list[ReindexFailure] = []


class HistoryMessage(_Model):
    """One message of a session; `summary` is null until there is one, `created_at` has a time zone."""

    message_id: int
    role: Literal["user", "assistant"]
    content: str
    summary: str | None = None
    status: Literal["completed", "failed", "cancelled"]
    created_at: datetime
    job_id: str


class HistoryResult(_Model):
    """The result of `read_history`: messages, oldest first."""

    messages: list[HistoryMessage]


class EventType(StrEnum):
    """The types of an answer's events; `gap` is the client's own word and in no log."""

    START = "start"
    SOURCES = "sources"
    DELTA = "delta"
    RESTART = "restart"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    GAP = "gap"


# What an entry of an answer's log says beside `v`, `type`, `job_id`, `attempt` and `seq`.
EVENT_FIELDS: Final[dict[EventType, tuple[str, ...]]] = {
    EventType.START: ("session_id", "model"),
    EventType.SOURCES: ("sources",),
    EventType.DELTA: ("text",),
    EventType.RESTART: ("reason",),
    EventType.DONE: ("message_id", "finish_reason", "usage"),
    EventType.ERROR: ("code", "message"),
    EventType.CANCELLED: ("message_id",),
}
ENDINGS: Final = frozenset({EventType.DONE, EventType.ERROR, EventType.CANCELLED})


class Event(BaseModel):
    """One event of an answer; `id` is what a reader passes as `last_id` to go on after it.

    `restart` and `gap` void what was read before. After `gap` (events were lost) the client tells the answer as it
    is stored, as one `delta` and `done`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    v: Literal[1]
    type: str
    job_id: str
    attempt: int
    seq: int

    session_id: str | None = None
    model: str | None = None
    sources: list[Source] | None = None
    text: str | None = None
    reason: str | None = None
    message_id: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    code: str | None = None
    message: str | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the answer ends with this event."""
        return self.type in ENDINGS


CANCELLED_CODE: Final = "cancelled"

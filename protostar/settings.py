"""The settings of a worker and of the command line: the only reader of the environment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_QUOTING = "; write / @ and : in a password as %2F, %40 and %3A"
SHIPPED_PROMPTS_DIR = Path(__file__).resolve().parent.parent / "rag" / "prompt" / "shipped"


JobClass = Literal["chat", "summary", "reindex"]
ProviderName = Literal["openai", "openrouter"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """A variable is missing or wrong; the message is one line that names it and says what to do."""


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PROTOSTAR_", populate_by_name=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if conflicts := list(self._conflicts()):
            raise ValueError("\n".join(conflicts))
        return self

    def _conflicts(self) -> Iterator[str]:
        """What is wrong with variables that are right one by one, a line each."""
        yield from ()


class RedisSettings(_Environment):
    """What it takes to enqueue a question and read its answer."""

    redis_url: SecretStr = Field(SecretStr("redis://localhost:6379/0"), validation_alias="REDIS_URL")
    max_queue: int = Field(10_000, ge=1)

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr) -> SecretStr:
        url = urlsplit(_with_scheme(value, {"redis", "rediss", "unix"}).get_secret_value())
        if url.scheme != "unix" and not re.fullmatch(r"(/\d*)?", url.path):
            raise ValueError("names its database not by a number, as in redis://localhost:6379/0" + _QUOTING)
        return value


class DatabaseSettings(_Environment):
    """What it takes to reach PostgreSQL."""

    database_url: SecretStr = Field(SecretStr("postgres://localhost:5432/protostar"), validation_alias="DATABASE_URL")

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, value: SecretStr) -> SecretStr:
        return _with_scheme(value, {"postgres", "postgresql"})


class ChunkingSettings(_Environment):
    """What decides how a file is cut and indexed. `chat_model` is the model whose tokens are counted."""

    chat_model: str = ""
    chunk_tokens: int = Field(400, ge=16)
    chunk_overlap: int = Field(60, ge=0)
    morphemes: Literal["", "kiwi"] = ""

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.chunk_overlap * 2 > self.chunk_tokens:
            yield (
                f"PROTOSTAR_CHUNK_OVERLAP is {self.chunk_overlap}; it can be at most half of "
                f"PROTOSTAR_CHUNK_TOKENS ({self.chunk_tokens})"
            )


class CorpusSettings(DatabaseSettings, ChunkingSettings):
    """What it takes to index the corpus and to search it, without a chat model."""

    provider: ProviderName = "openai"
    openai_api_key: SecretStr | None = Field(None, validation_alias="OPENAI_API_KEY")
    openai_base_url: SecretStr | None = Field(None, validation_alias="OPENAI_BASE_URL")
    openrouter_api_key: SecretStr | None = Field(None, validation_alias="OPENROUTER_API_KEY")
    openrouter_base_url: SecretStr | None = Field(None, validation_alias="OPENROUTER_BASE_URL")
    embedding_model: str = ""
    vector_search: Literal["auto", "exact"] = "auto"
    corpus_dir: Path = Path("corpus")
    corpus_ignore: Annotated[tuple[str, ...], NoDecode] = ()
    max_file_mb: int = Field(64, ge=1, le=1_048_576)

    @field_validator("openai_base_url", "openrouter_base_url")
    @classmethod
    def _base_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (problem := _problem_of_base_url(value.get_secret_value())):
            raise ValueError(problem)
        return value

    @field_validator("openai_api_key", "openrouter_api_key")
    @classmethod
    def _key_fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ValueError(
                "holds what no HTTP header can: a line's end, a character that is not ASCII, or a space at an end; "
                "copy it anew"
            )
        return value

    @field_validator("corpus_ignore", mode="before")
    @classmethod
    def _split_patterns(cls, value: object) -> object:
        return _split_at_commas(value)

    @property
    def max_file_bytes(self) -> int:
        """The size over which a file of the corpus is refused."""
        return self.max_file_mb * 1024 * 1024


class Settings(CorpusSettings, RedisSettings):
    """Everything the environment decides. Times are in seconds, sizes in tokens unless a name says else."""

    chat_model: str = Field(min_length=1)
    fallback_models: Annotated[tuple[str, ...], NoDecode] = ()
    summary_model: str = ""
    context_window: int = Field(8192, ge=256, le=100_000_000)
    max_output_tokens: int = Field(1024, ge=1)

    reindex_minutes: int = Field(10, ge=0, le=1440)
    fan_out_mb: float = Field(64, ge=0, le=1_048_576, allow_inf_nan=False)
    prompts_dir: Path = SHIPPED_PROMPTS_DIR

    serve: Annotated[tuple[JobClass, ...], NoDecode] = ("chat", "summary", "reindex")
    max_jobs: int = Field(100, ge=1, le=10_000)
    job_timeout: float = Field(300, gt=0, le=86_400)
    lease: float = Field(15, ge=1, le=3600)
    first_token_timeout: float = Field(60, gt=0, le=86_400)
    stall_timeout: float = Field(30, gt=0, le=86_400)
    event_ttl: int = Field(3600, ge=1, le=31_536_000)
    shutdown_grace: int = Field(20, ge=0, le=86_400)

    requests_per_minute: int = Field(0, ge=0)
    tokens_per_minute: int = Field(0, ge=0)
    provider_wait: float = Field(900, ge=0, le=86_400)

    user_daily_tokens: int = Field(0, ge=0)
    user_daily_cost: Decimal = Field(Decimal(0), ge=0, allow_inf_nan=False)
    user_answers_at_once: int = Field(0, ge=0)

    metrics_port: int = Field(0, ge=0, le=65_535)
    metrics_host: str = "127.0.0.1"
    log_format: LogFormat = "text"
    log_level: LogLevel | None = None
    # OpenTelemetry reads it, and its other variables, itself: here it only says that there are to be traces.
    otlp_endpoint: SecretStr | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")

    @field_validator("fallback_models", "serve", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return _split_at_commas(value)

    @field_validator("serve")
    @classmethod
    def _serves_something(cls, value: tuple[JobClass, ...]) -> tuple[JobClass, ...]:
        if not value:
            raise ValueError(f"names no class of jobs; name one or more of {', '.join(get_args(JobClass))}")
        return value

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.max_output_tokens >= self.context_window:
            yield (
                f"PROTOSTAR_MAX_OUTPUT_TOKENS is {self.max_output_tokens}; it must be below "
                f"PROTOSTAR_CONTEXT_WINDOW ({self.context_window})"
            )
        if not self.provider_wait and (self.requests_per_minute or self.tokens_per_minute):
            yield "PROTOSTAR_PROVIDER_WAIT is 0; a limit a minute needs jobs that may wait: raise it"
        if self.provider == "openrouter" and self.openrouter_api_key is None:
            yield "OPENROUTER_API_KEY is not set; PROTOSTAR_PROVIDER=openrouter needs it"
        if self.provider == "openai" and self.openai_api_key is None:
            yield "OPENAI_API_KEY is not set; give your provider's key, or any text where none is asked for"

    @property
    def fan_out_bytes(self) -> int:
        """The size of changed files from which on workers share a reindex; 0 is never."""
        return math.ceil(self.fan_out_mb * 1024 * 1024)

    @property
    def chat_models(self) -> tuple[str, ...]:
        """The models that may answer, in the order they are asked."""
        return (self.chat_model, *self.fallback_models)

    @property
    def summary_model_or_chat(self) -> str:
        """The model that writes summaries."""
        return self.summary_model or self.chat_model

    @property
    def has_user_caps(self) -> bool:
        """Whether anything bounds what one user may ask."""
        return bool(self.user_daily_tokens or self.user_daily_cost or self.user_answers_at_once)


def _split_at_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _with_scheme(url: SecretStr, schemes: set[str]) -> SecretStr:
    scheme = urlsplit(url.get_secret_value()).scheme
    if scheme not in schemes:
        raise ValueError(f"starts with {scheme or 'no scheme'!r}; use one of {', '.join(sorted(schemes))}")
    try:
        _ = urlsplit(url.get_secret_value()).port
    except ValueError:  # its message would quote what may be half a password
        raise ValueError("has a port that is no number" + _QUOTING) from None
    return url


def _problem_of_base_url(text: str) -> str | None:
    """What is wrong with a provider's base URL, in words that quote nothing of it: it may hold a secret."""
    if not text.isprintable() or " " in text:
        return "holds a space or a line's end; write it without"
    try:
        url = urlsplit(text)
    except ValueError:  # a host in brackets that is no address, or characters that no host has
        return "is no URL; write it as https://host/v1"
    if url.scheme not in ("http", "https"):
        return "starts with neither http:// nor https://; write it as https://host/v1"
    if url.username is not None or url.password is not None:
        return "holds a user or a password; leave them out, the API key has a variable of its own"
    try:
        _ = url.port
    except ValueError:
        return "has a port that is no number up to 65535"
    return None if url.hostname else "names no host; write it as https://host/v1"


S = TypeVar("S", bound=_Environment)


def load_settings() -> Settings:
    """Read everything the environment decides.

    Raises:
        SettingsError: a variable is missing or wrong.
    """
    return load(Settings)


def load(kind: type[S]) -> S:
    """Read the part of the environment that `kind` names.

    Raises:
        SettingsError: a variable of that part is missing or wrong.
    """
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError(_problems(error)[0][1]) from None


@dataclass(frozen=True, slots=True)
class Examined:
    """An environment in which anything may be wrong.

    `settings` has defaults where variables are `wrong`, and may not be consistent; `problems` names all there are, a
    line each.
    """

    settings: Settings
    wrong: frozenset[str]
    problems: tuple[str, ...]


def examine() -> Examined:
    """Read everything the environment decides, to look around with, however much of it is wrong."""
    found: dict[str, str] = {}
    while True:
        try:
            settings = _Lenient(**{_key(variable): _stand_in(variable) for variable in found})
            break
        except ValidationError as error:
            found |= dict(_problems(error))
    # What conflicts with a default that stands in for a wrong value is no news.
    conflicts = [line for line in Settings._conflicts(settings) if not any(variable in line for variable in found)]
    return Examined(settings, frozenset(found), (*found.values(), *conflicts))


class _Lenient(Settings):
    def _conflicts(self) -> Iterator[str]:
        yield from ()


def _key(variable: str) -> str:
    return variable.removeprefix("PROTOSTAR_").lower() if variable.startswith("PROTOSTAR_") else variable


def _stand_in(variable: str) -> Any:
    fields = Settings.model_fields
    named = (field for name, field in fields.items() if _key(variable) in (name, field.validation_alias))
    return next(("unknown" if field.is_required() else field.default for field in named), None)


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    """The variables that are wrong and a line on each; no name where some don't go together."""
    found: list[tuple[str, str]] = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            found += [("", line) for line in message.splitlines()]
            continue
        name = str(problem["loc"][0])
        variable = name if name.isupper() else f"PROTOSTAR_{name.upper()}"
        is_missing = problem["type"] == "missing"
        said = "is not set; set it (the README lists every variable)" if is_missing else f"is wrong: {message}"
        found.append((variable, f"{variable} {said}"))
    return found

"""The settings of a worker and of the command line: the only reader of the environment."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar, get_args

from protostar_client.redis_connection.url import SCHEMES, names_database, parse
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protostar.settings_problems import problems
from protostar.urls import QUOTING, problem_of_base_url, with_scheme

SHIPPED_PROMPTS_DIR = Path(__file__).resolve().parent.parent / "rag" / "prompt" / "shipped"

REINDEX_MINUTES: Final = tuple(n for n in range(1441) if n == 0 or 60 % n == 0 or (n % 60 == 0 and 1440 % n == 0))
"""The intervals that ARQ's cron can keep: a whole part of an hour, or whole hours that are a part of a day."""

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
        if not value.get_secret_value().startswith("sentinel://"):  # which may name several ports
            with_scheme(value, set(SCHEMES))
        url = value.get_secret_value()
        try:
            parse(url)
        except ValueError:  # its message may quote a part of the password
            raise ValueError("is not a Redis URL; see docs/production.md for the forms" + QUOTING) from None
        if not names_database(url):
            raise ValueError("does not name its database by a number; write it as redis://localhost:6379/0" + QUOTING)
        return value


class DatabaseSettings(_Environment):
    """What it takes to reach PostgreSQL."""

    database_url: SecretStr = Field(SecretStr("postgres://localhost:5432/protostar"), validation_alias="DATABASE_URL")

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, value: SecretStr) -> SecretStr:
        return with_scheme(value, {"postgres", "postgresql"})


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
    rerank_model: str = ""
    rerank_base_url: SecretStr | None = None
    rerank_api_key: SecretStr | None = None
    rerank_threshold: float | None = Field(None, allow_inf_nan=False)
    corpus_dir: Path = Path("corpus")
    corpus_ignore: Annotated[tuple[str, ...], NoDecode] = ()
    max_file_mb: int = Field(64, ge=1, le=1_048_576)

    @field_validator("openai_base_url", "openrouter_base_url", "rerank_base_url")
    @classmethod
    def _base_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (problem := problem_of_base_url(value.get_secret_value())):
            raise ValueError(problem)
        return value

    @field_validator("openai_api_key", "openrouter_api_key", "rerank_api_key")
    @classmethod
    def _key_fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ValueError(
                "cannot be sent in an HTTP header: it holds a line break, a character that is not ASCII, or a space at "
                "one end; copy it again"
            )
        return value

    @field_validator("corpus_ignore", mode="before")
    @classmethod
    def _split_patterns(cls, value: object) -> object:
        return _split_at_commas(value)

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if bool(self.rerank_model) != (self.rerank_base_url is not None):
            yield "PROTOSTAR_RERANK_MODEL and PROTOSTAR_RERANK_BASE_URL belong together; set both or neither"

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

    reindex_minutes: int = 10
    fan_out_mb: float = Field(64, ge=0, le=1_048_576, allow_inf_nan=False)
    prompts_dir: Path = SHIPPED_PROMPTS_DIR

    serve: Annotated[tuple[JobClass, ...], NoDecode] = ("chat", "summary", "reindex")
    max_jobs: int = Field(100, ge=1, le=10_000)
    job_timeout: float = Field(300, gt=0, le=86_400)
    lease: float = Field(15, ge=1, le=3600)
    first_token_timeout: float = Field(60, gt=0, le=86_400)
    stall_timeout: float = Field(30, gt=0, le=86_400)
    event_ttl: int = Field(3600, ge=1, le=31_536_000)
    older_protocol: bool = True
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

    @field_validator("reindex_minutes")
    @classmethod
    def _divides_the_day(cls, value: int) -> int:
        if value not in REINDEX_MINUTES:
            allowed = ", ".join(map(str, REINDEX_MINUTES))
            raise ValueError(f"does not divide an hour or a day evenly; use one of {allowed} (0 is never)")
        return value

    @field_validator("serve")
    @classmethod
    def _serves_something(cls, value: tuple[JobClass, ...]) -> tuple[JobClass, ...]:
        if not value:
            raise ValueError(f"does not name a class of jobs; name one or more of {', '.join(get_args(JobClass))}")
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
        raise SettingsError(problems(error, kind)[0][1]) from None


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that looks like a setting and that nothing reads."""

    name: str
    nearest: str
    """The most similar setting; empty where none is similar."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return f"did you mean {self.nearest}?" if self.nearest else "it has no effect; remove it"


def unknown_variables() -> list[UnknownVariable]:
    """Find variables that begin like ours and are not settings, with the most similar setting."""
    known = [name.upper() for name, field in Settings.model_fields.items() if not field.validation_alias]
    found = []
    for variable, value in sorted(os.environ.items()):
        name = variable.upper().removeprefix("PROTOSTAR_")
        if name != variable.upper() and name not in known and not _of_kubernetes(name, value):
            nearest = get_close_matches(name, known, n=1)
            found.append(UnknownVariable(variable, f"PROTOSTAR_{nearest[0]}" if nearest else ""))
    return found


def _of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable for a service whose name begins with ours."""
    return bool(re.search(r"(^|_)SERVICE_(HOST|PORT(_\w+)?)$|(^|_)PORT_\d+_\w+$", name)) or (
        name.endswith("PORT") and "://" in value
    )


@contextmanager
def set_for_library(variable: str, value: str) -> Iterator[None]:
    """Set a variable that a library reads while the context lasts."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before

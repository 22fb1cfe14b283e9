"""What the environment decides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Config(BaseSettings):
    """Where Redis and PostgreSQL are, and what signs a browser's cookie."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_ignore_empty=True, hide_input_in_errors=True)

    redis_url: SecretStr = Field(default=SecretStr("redis://localhost:6379/0"), validation_alias="REDIS_URL")
    database_url: SecretStr = Field(
        default=SecretStr("postgres://localhost:5432/protostar"), validation_alias="DATABASE_URL"
    )
    max_queue: int = Field(default=10_000, ge=1, validation_alias="PROTOSTAR_MAX_QUEUE")

    secret: SecretStr = Field(min_length=16)
    """Signs the cookie that says who a browser is; whoever knows it is everybody."""
    secure_cookies: bool = False
    """Set it where the gateway is reached by HTTPS."""
    allowed_hosts: Annotated[list[str], NoDecode] = ["localhost", "127.0.0.1", "[::1]"]
    """The host names that browsers reach the gateway under, separated by commas; `*` allows every one."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value

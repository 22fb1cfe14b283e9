"""What the environment decides."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


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

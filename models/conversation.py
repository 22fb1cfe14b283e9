"""Sessions, their messages, and the follow-up jobs committed with them."""

from __future__ import annotations

from enum import StrEnum

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model


class MessageRole(StrEnum):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"


class MessageStatus(StrEnum):
    """How the turn of a message ended; a question is completed as soon as it is stored."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Session(Model):
    """A conversation of one user. The same `session_id` of two users is two sessions."""

    id = fields.BigIntField(primary_key=True)
    user_uuid = fields.UUIDField()
    session_id = fields.CharField(max_length=128)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        """Table and keys."""

        table = "sessions"
        unique_together = (("user_uuid", "session_id"),)


class Message(Model):
    """One question or one answer.

    `attempt` of a question is the newest attempt that has opened its turn: it fences older attempts.
    `attempt` of an answer is the attempt that wrote it.
    """

    id = fields.BigIntField(primary_key=True)
    session: fields.ForeignKeyRelation[Session] = fields.ForeignKeyField(
        "models.Session", related_name="messages", on_delete=fields.CASCADE
    )
    job_id = fields.CharField(max_length=256)
    role = fields.CharEnumField(MessageRole, max_length=16)
    content = fields.TextField()
    summary = fields.TextField(null=True)
    status = fields.CharEnumField(MessageStatus, max_length=16, default=MessageStatus.COMPLETED)
    finish_reason = fields.CharField(max_length=64, null=True)
    model = fields.TextField(null=True)
    usage: fields.JSONField[dict[str, object]] = fields.JSONField(null=True)
    sources: fields.JSONField[list[dict[str, object]]] = fields.JSONField(null=True)
    attempt = fields.IntField(default=1)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        """Table and keys."""

        table = "messages"
        unique_together = (("job_id", "role"),)
        indexes = (Index(fields=("session_id", "id")),)


class OutboxJob(Model):
    """A job to enqueue, committed together with what it follows; the relay deletes it once it is queued."""

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=256, unique=True)
    function = fields.TextField()
    arguments: fields.JSONField[dict[str, object]] = fields.JSONField()
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        """Table and keys."""

        table = "outbox_jobs"

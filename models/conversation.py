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
    """A conversation of one user. The same `session_id` of two users is two sessions.

    `summary` sums up every turn up to the message `summary_until`; both are null until there are too many turns.
    """

    id = fields.BigIntField(primary_key=True)
    user_uuid = fields.UUIDField()
    session_id = fields.CharField(max_length=128)
    summary = fields.TextField(null=True)
    summary_until = fields.BigIntField(null=True)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        """Table and keys."""

        table = "sessions"
        unique_together = (("user_uuid", "session_id"),)


class Message(Model):
    """One question or one answer.

    `attempt` of a question is the newest attempt that has opened its turn: it fences older attempts.
    `attempt` of an answer is the attempt that wrote it. `prompt` is the recipe by which its prompt can be made again;
    the texts of the prompt are in the table `prompt_texts`, by session and hash.
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
    provider = fields.CharField(max_length=32, null=True)
    model = fields.TextField(null=True)
    prompt: fields.JSONField[dict[str, object]] = fields.JSONField(null=True)
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


class Charge(Model):
    """What one attempt of a job cost at the provider, written before its request is sent and again when it is over.

    `outcome` is null while the attempt runs, and `input_tokens` 0 until its request is sent. `user_uuid` is null where
    the cost has no user, as that of reindexing. `cost` is in the provider's currency, null where it names none.
    """

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=256)
    attempt = fields.IntField()
    user_uuid = fields.UUIDField(null=True)
    provider = fields.CharField(max_length=32)
    model = fields.TextField()
    input_tokens = fields.IntField()
    output_tokens = fields.IntField(default=0)
    cost = fields.DecimalField(max_digits=18, decimal_places=10, null=True)
    estimated = fields.BooleanField(default=True)
    outcome = fields.CharField(max_length=32, null=True)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        """Table and keys."""

        table = "charges"
        unique_together = (("job_id", "attempt"),)
        indexes = (Index(fields=("user_uuid", "created_at")),)

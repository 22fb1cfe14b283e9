"""Tortoise models of conversations, charges and the outbox; the schema; the one way to run a transaction."""

from models.conversation import Charge, Message, MessageRole, MessageStatus, OutboxJob, Session

__all__ = [
    "Charge",
    "Message",
    "MessageRole",
    "MessageStatus",
    "OutboxJob",
    "Session",
]

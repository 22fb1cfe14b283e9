"""Tortoise models: conversations, the corpus index, and the one way to run a transaction."""

from models.conversation import Message, MessageRole, MessageStatus, OutboxJob, Session
from models.corpus import Chunk, Document, Generation, Segment

__all__ = [
    "Chunk",
    "Document",
    "Generation",
    "Message",
    "MessageRole",
    "MessageStatus",
    "OutboxJob",
    "Segment",
    "Session",
]

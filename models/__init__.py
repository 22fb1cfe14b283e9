"""Tortoise models: conversations, the corpus index, and the one way to run a transaction."""

from models.conversation import Charge, Message, MessageRole, MessageStatus, OutboxJob, PromptText, Session
from models.corpus import Chunk, Document, Generation, Segment

__all__ = [
    "Charge",
    "Chunk",
    "Document",
    "Generation",
    "Message",
    "MessageRole",
    "MessageStatus",
    "OutboxJob",
    "PromptText",
    "Segment",
    "Session",
]

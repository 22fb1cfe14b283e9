"""Tortoise models: conversations, the corpus index, and the one way to run a transaction."""

from models.conversation import Charge, Message, MessageRole, MessageStatus, OutboxJob, PromptText, Session
from models.corpus import Chunk, Document, Folder, Generation, IndexUnit, ReindexRun, Segment

__all__ = [
    "Charge",
    "Chunk",
    "Document",
    "Folder",
    "Generation",
    "IndexUnit",
    "Message",
    "MessageRole",
    "MessageStatus",
    "OutboxJob",
    "PromptText",
    "ReindexRun",
    "Segment",
    "Session",
]

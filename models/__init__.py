"""Tortoise models: conversations, the corpus index, and the one way to run a transaction."""

from models.conversation import Message, MessageRole, MessageStatus, OutboxJob, Session
from models.corpus import Chunk, Document

__all__ = ["Chunk", "Document", "Message", "MessageRole", "MessageStatus", "OutboxJob", "Session"]

"""Put questions to Protostar's workers and read their answers, from any Python service."""

from protostar_client.client import ChatClient, OnBusy
from protostar_client.contract import (
    ChatResult,
    ErrorCode,
    Event,
    EventType,
    HistoryMessage,
    InvalidRequest,
    JobError,
    ProtostarError,
    Source,
    Usage,
)
from protostar_client.errors import (
    Cancelled,
    ClientClosed,
    ConnectionLost,
    EventsExpired,
    InvalidUrl,
    JobVanished,
    QueueFull,
    ReaderTooSlow,
    RedisRefused,
    SessionBusy,
)
from protostar_client.handle import JobHandle

__all__ = [
    # asking
    "ChatClient",
    "JobHandle",
    "OnBusy",
    # what comes back
    "ChatResult",
    "Event",
    "EventType",
    "HistoryMessage",
    "Source",
    "Usage",
    # errors
    "ProtostarError",
    "JobError",
    "ErrorCode",
    "InvalidRequest",
    "QueueFull",
    "SessionBusy",
    "Cancelled",
    "JobVanished",
    "EventsExpired",
    "ReaderTooSlow",
    "ConnectionLost",
    "RedisRefused",
    "ClientClosed",
    "InvalidUrl",
]

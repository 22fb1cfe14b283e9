"""Entries of an answer's log, and their ids."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple, Self

from protostar_client.contract import Event, InvalidRequest, ProtostarError

StreamEntry = tuple[bytes, dict[bytes, bytes]]

_ID: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")


class EntryId(NamedTuple):
    """The id of an event: ids compare as the events follow each other."""

    attempt: int
    seq: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id that `text` writes.

        Raises:
            InvalidRequest: it is not the id of an event.
        """
        match = _ID.fullmatch(text)
        if match is None:
            raise InvalidRequest("last_id", f"{text[:64]!r} is no event's id; pass the `id` of the last event seen")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"

    def is_next_to(self, earlier: EntryId) -> bool:
        """Whether nothing that counts is missing between the two: an attempt voids those before it."""
        return self.seq == (earlier.seq + 1 if self.attempt == earlier.attempt else 1)


START: Final = EntryId(0, 0)

# The ending of an answer whose log is gone has no seq: this one stands for it, so that a reader can resume there.
AS_STORED_SEQ: Final = 2**63 - 1


def parse_entry(entry: StreamEntry) -> tuple[Event, EntryId]:
    """The event in an entry of a log.

    Raises:
        ProtostarError: it is not one that this version knows.
    """
    raw_id, fields = entry
    event_id = raw_id.decode()
    try:
        return Event.model_validate({**json.loads(fields[b"data"]), "id": event_id}), EntryId.parse(event_id)
    except (KeyError, TypeError, ValueError, InvalidRequest) as error:
        raise ProtostarError(
            f"event {event_id} is not one that this version reads; upgrade protostar-client"
        ) from error

"""The topic of words in the clear, for tenants who want one: events as JSON, masked, for consumers without keys.

An erase does not reach it, so it is kept for days only, and a certificate names it.
"""

from dataclasses import replace
from typing import NamedTuple

from processors.webhooks.message import body_of
from schemas.event import Event
from schemas.events import Session
from streams.codec import headers
from streams.keys import Position
from streams.topics import CLEAR, CONVERSATION, TOPICS

CONTENT_TYPE = b"application/json"
WORDS = frozenset(name for name in CONVERSATION if not name.startswith("voice.audio"))


class ClearRecord(NamedTuple):
    """A record of the topic."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def clear_record(event: Event, position: Position) -> ClearRecord:
    """The event, masked already, and where it lies in the log; as webhooks tell it, less the caller's own id."""
    if isinstance(event, Session):
        event = replace(event, caller=None)
    value = body_of(event, position, TOPICS[CLEAR].record_bytes_max // 2)
    named = [(name, CONTENT_TYPE if name == "content-type" else value) for name, value in headers(event)]
    return ClearRecord(event.session_id.encode(), value, named)

"""Trunkline's own dialect, `/v1/calls`: binary PCM16 at 16,000 Hz both ways, JSON text for all else.

docs/calls.md describes every message.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api.audio import BYTES_PER_MS, SAMPLE_RATE_HZ, peak_of
from api.dialects.dialect import (
    AUDIO_BYTES_MAX,
    DIGITS,
    Audio,
    Bad,
    Command,
    Dtmf,
    HangUp,
    Message,
    Playout,
    Received,
    Resume,
    Resumed,
    Start,
    Started,
    json_object,
    odd_length,
    too_big,
    whole_number,
)
from schemas.event import Event
from schemas.events import Control, Intent, SpeechChunk, SpeechChunkKind

TEXT_BYTES_MAX = 16_384
CONTEXT_ENTRIES_MAX = 64
SAMPLES_MAX = 2**53 - 1
EVENT_IDS_MAX = 256
MESSAGE_TYPES = ("start", "resume", "playout", "dtmf", "hang_up")

_ENVELOPE = frozenset({"session_id", "tenant_id", "agent_id", "kind", "pcm"})


class NativeDialect:
    """See `Dialect`."""

    channel = "websocket"
    text_rate_per_s = 50
    bytes_per_ms = BYTES_PER_MS

    def receive_text(self, text: str) -> Sequence[Command]:
        """See `Dialect`."""
        message = json_object(text, TEXT_BYTES_MAX)
        if isinstance(message, Bad):
            return (message,)
        match message.get("type"):
            case "start":
                return (_start(message),)
            case "resume":
                return (_resume(message),)
            case "playout":
                return (_playout(message),)
            case "dtmf":
                return (_dtmf(message),)
            case "hang_up":
                return (HangUp(),)
        return (Bad("unknown_type", "The message's type is not known.", f"type is one of {', '.join(MESSAGE_TYPES)}."),)

    def receive_bytes(self, data: bytes) -> Sequence[Command]:
        """See `Dialect`."""
        if len(data) % 2:
            return (odd_length(len(data)),)
        if len(data) > AUDIO_BYTES_MAX:
            return (too_big(len(data), AUDIO_BYTES_MAX),)
        return (Audio(data),) if data else ()

    def pcm(self, data: bytes) -> bytes:
        """See `Dialect`: it is."""
        return data

    def peak(self, data: bytes) -> int:
        """See `Dialect`."""
        return peak_of(data)

    def started(self, started: Started) -> Sequence[Message]:
        """See `Dialect`."""
        return (
            _text(
                type="started",
                session_id=started.session_id,
                agent=started.agent,
                sample_rate_hz=SAMPLE_RATE_HZ,
                resume_token=started.resume_token,
            ),
        )

    def resumed(self, resumed: Resumed) -> Sequence[Message]:
        """See `Dialect`."""
        return (
            _text(
                type="resumed",
                session_id=resumed.session_id,
                agent=resumed.agent,
                sample_index=resumed.sample_index,
                resume_token=resumed.resume_token,
            ),
        )

    def acknowledged(self, sample_index: int) -> Sequence[Message]:
        """See `Dialect`."""
        return (_text(type="acknowledged", sample_index=sample_index),)

    def going_away(self) -> Sequence[Message]:
        """See `Dialect`."""
        return (_text(type="going_away"),)

    def event(self, event: Event) -> Sequence[Message]:
        """See `Dialect`."""
        record = event.to_record()
        message = {"type": _type_of(event), **{name: record[name] for name in record if name not in _ENVELOPE}}
        return (msgspec.json.encode(message).decode(),)

    def audio(self, chunk: SpeechChunk) -> Sequence[Message]:
        """See `Dialect`."""
        message: dict[str, Any] = {
            "type": "audio",
            "turn": chunk.turn,
            "sentence": chunk.sentence,
            "sample_index": chunk.sample_index,
            "duration_ms": round(len(chunk.pcm) / BYTES_PER_MS, 2),
            "last_of_sentence": chunk.last_of_sentence,
            "event_id": chunk.event_id,
            "occurred_at": chunk.occurred_at,
        }
        if chunk.text:
            message["text"] = chunk.text
        return (msgspec.json.encode(message).decode(), chunk.pcm)

    def clear(self, turn: int, heard_ms: int) -> Sequence[Message]:
        """See `Dialect`."""
        return (_text(type="clear", turn=turn, heard_ms=heard_ms),)

    def transfer(self, target: str) -> Sequence[Message]:
        """See `Dialect`."""
        return (_text(type="transfer", target=target),)

    def error(self, code: str, message: str, hint: str, retry_after_s: int | None = None) -> Sequence[Message]:
        """See `Dialect`."""
        later = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        return (_text(type="error", code=code, message=message, hint=hint, **later),)

    def ended(self, reason: str) -> Sequence[Message]:
        """See `Dialect`."""
        return (_text(type="ended", reason=reason),)


def _text(**message: Any) -> str:
    return msgspec.json.encode(message).decode()


def _type_of(event: Event) -> str:
    if isinstance(event, Intent):
        return "intent"
    if isinstance(event, SpeechChunk) and event.kind is SpeechChunkKind.TEXT:
        return "text"
    if isinstance(event, Control):
        return f"control_{event.kind}"
    return str(getattr(event, "kind", event.NAME))


def _start(message: Mapping[str, Any]) -> Command:
    agent, caller, context = message.get("agent"), message.get("caller"), message.get("context")
    agent = "" if agent is None else agent
    context = {} if context is None else context
    if not isinstance(agent, str):
        return _invalid("agent", "the name of an agent; GET /v1/agents lists them")
    if caller is not None and (not isinstance(caller, str) or len(caller) > 256):
        return _invalid("caller", "a text of at most 256 characters, or nothing")
    rate_hz = message.get("sample_rate_hz", SAMPLE_RATE_HZ)
    if isinstance(rate_hz, bool) or rate_hz != SAMPLE_RATE_HZ:
        return Bad(
            "unsupported_sample_rate",
            "The sample rate is not supported.",
            f"Resample to {SAMPLE_RATE_HZ} Hz, PCM16 mono, and say sample_rate_hz: {SAMPLE_RATE_HZ}.",
        )
    if not isinstance(context, dict) or len(context) > CONTEXT_ENTRIES_MAX:
        return _invalid("context", f"an object of at most {CONTEXT_ENTRIES_MAX} texts")
    if not all(isinstance(value, str | int | float | bool) for value in context.values()):
        return _invalid("context", "an object whose values are texts or numbers")
    return Start(agent=agent, caller=caller, context={name: _context_text(value) for name, value in context.items()})


def _context_text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _playout(message: Mapping[str, Any]) -> Command:
    values = []
    for name, given in (("turn", message), ("sentence", {"sentence": 0, **message}), ("heard_ms", message)):
        value = whole_number(given, name)
        if value is None:
            return _invalid(name, "a whole number from 0")
        values.append(value)
    return Playout(*values)


def _resume(message: Mapping[str, Any]) -> Command:
    token, received, event_ids = message.get("resume_token"), message.get("received"), message.get("event_ids", [])
    if not isinstance(token, str):
        return _invalid("resume_token", "what the gateway gave with started")
    position = None
    if received is not None:
        numbers = [
            whole_number(received, name, SAMPLES_MAX) if isinstance(received, dict) else None
            for name in ("turn", "sample_index")
        ]
        if None in numbers:
            return _invalid("received", "an object with turn and sample_index, whole numbers from 0, or nothing")
        position = Received(*(number or 0 for number in numbers))
    heard = message.get("heard")
    played = _playout(heard) if isinstance(heard, dict) else None
    if heard is not None and not isinstance(played, Playout):
        return _invalid("heard", "an object with turn and heard_ms, as in playout, or nothing")
    if not isinstance(event_ids, list) or len(event_ids) > EVENT_IDS_MAX or any(type(e) is not str for e in event_ids):
        return _invalid("event_ids", f"a list of at most {EVENT_IDS_MAX} texts")
    kept_from = whole_number({"kept_from": 0, **message}, "kept_from", SAMPLES_MAX)
    if kept_from is None:
        return _invalid("kept_from", "a whole number from 0")
    return Resume(token, position, played if isinstance(played, Playout) else None, frozenset(event_ids), kept_from)


def _dtmf(message: Mapping[str, Any]) -> Command:
    digit, press_id = message.get("digit"), message.get("id", "")
    if not isinstance(digit, str) or digit.upper() not in DIGITS:
        return _invalid("digit", "one of 0-9, *, #, A-D")
    if not isinstance(press_id, str) or len(press_id) > 64:
        return _invalid("id", "a text of at most 64 characters, or nothing")
    return Dtmf(digit.upper(), press_id)


def _invalid(name: str, expected: str) -> Bad:
    return Bad("invalid_field", f"The field {name} is not usable.", f"{name}: expected {expected}.")

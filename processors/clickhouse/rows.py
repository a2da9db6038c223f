"""Events as rows: the pure part of the sink. One topic is one table, one event one row."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from processors.privacy import Policies
from schemas import files
from schemas.event import Event, Part
from schemas.events import (
    EVENTS,
    Access,
    AudioFrame,
    Checkpoint,
    Control,
    Customer,
    DeadLetter,
    Delivery,
    Health,
    Intent,
    Refusal,
    Response,
    Session,
    SpeechChunk,
    Suggestion,
    Transcript,
)
from streams.codec import Codec, CodecError
from streams.consumer import Record

TABLES: Mapping[type[Event], str] = {
    Access: "accesses",
    AudioFrame: "audio_frames",
    Checkpoint: "checkpoints",
    Control: "controls",
    Customer: "customers",
    DeadLetter: "dead_letters",
    Delivery: "deliveries",
    Health: "health",
    Intent: "intents",
    Refusal: "refusals",
    Response: "responses",
    Session: "sessions",
    SpeechChunk: "speech_chunks",
    Suggestion: "suggestions",
    Transcript: "transcripts",
}
TABLE_OF_TOPIC: Mapping[str, str] = {event.TOPIC: TABLES[event] for event in EVENTS}

_UUIDS = frozenset({"event_id", "session_id", "causation_id"})
# An Avro int is an Int32 in ClickHouse, which Avro itself reads and writes without its limits.
_INT = range(-(2**31), 2**31)
# DateTime64(6) in ClickHouse: 1900 to 2299.
_TIME_US = range(-2_208_988_800_000_000, 10_413_792_000_000_000)
_TIMES = frozenset({"occurred_at", "captured_at", "speech_ended_at"})

# Under a NULL the value that was there goes on lying in the file, hence text is emptied, not taken away.
_EMPTY = {"string": "''", "bytes": "''", "array": "[]", "map": "map()"}

Extract = Callable[[Any], Any]


class UnfitError(CodecError):
    """An event that its table cannot hold: an event all the same, which no stage that reads it need have refused."""

    def __init__(self, detail: str) -> None:
        super().__init__("invalid_field", detail)


def columns(event: type[Event]) -> tuple[str, ...]:
    """The columns that a row of this kind fills, in the order of `row`."""
    return (*(column for column, _ in _PLANS[event]), "kafka_partition", "kafka_offset")


def row_of(codec: Codec, policies: Policies, record: Record) -> tuple[Event, tuple[Any, ...]]:
    """The record's event, masked as its tenant wants it, and its row: what the sink writes, and what the audit expects.

    Raises CodecError, UnfitError where the record is an event.
    """
    event = policies.redacted(codec.decode_keyed(record.topic, record.key, record.value))
    return event, row(event, record.partition, record.offset)


def row(event: Event, partition: int, offset: int) -> tuple[Any, ...]:
    """The event as a row. Raises UnfitError(invalid_field) naming a field that its column cannot hold."""
    return (*(extract(event) for _, extract in _PLANS[type(event)]), partition, offset)


def personal_columns(event: type[Event]) -> dict[str, str]:
    """The columns of this kind's table that hold personal data, each with the SQL that empties it."""
    types = {field["name"]: field["type"] for field in files.load(event.NAME)["fields"]}
    return {name: _emptied(name, types[name]) for name in sorted(event.PII) if name != "pcm"}


def _emptied(name: str, avro: Any) -> str:
    value = _EMPTY[_kind(avro)]
    return f"if(isNull({name}), NULL, {value})" if isinstance(avro, list) else value


def _kind(avro: Any) -> str:
    if isinstance(avro, list):
        return _kind(next(branch for branch in avro if branch != "null"))
    return str(avro["type"] if isinstance(avro, dict) else avro)


def _plan(event: type[Event]) -> tuple[tuple[str, Extract], ...]:
    types = {field["name"]: field["type"] for field in files.load(event.NAME)["fields"]}
    return tuple(_column(event, field.name, types[field.name]) for field in fields(event))


def _column(event: type[Event], name: str, avro: Any) -> tuple[str, Extract]:
    if name == "pcm":
        return "pcm_bytes", lambda value: len(value.pcm)
    if name in _UUIDS:
        return name, lambda value: _uuid(name, getattr(value, name))
    if name in _TIMES:
        return name, lambda value: _time(name, getattr(value, name))
    if name in event.PARTS:
        numbers = [field["name"] for field in avro["items"]["fields"] if field["type"] == "int"]
        return name, lambda value: [_part(name, numbers, part) for part in getattr(value, name)]
    if avro == "int":
        return name, lambda value: _int(name, getattr(value, name))
    if name in event.ENUMS:
        return name, lambda value: str(getattr(value, name))
    return name, lambda value: _plain(getattr(value, name))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _part(name: str, numbers: Sequence[str], part: Part) -> dict[str, Any]:
    record = part.to_record()
    for number in numbers:
        _int(f"{name}.{number}", record[number])
    return record


def _int(name: str, value: int) -> int:
    if value not in _INT:
        raise UnfitError(f"{name}: a whole number of 32 bits is expected")
    return value


def _uuid(name: str, value: str | None) -> uuid.UUID | None:
    if value is None:
        return None
    try:
        return uuid.UUID(value)
    except ValueError:
        raise UnfitError(f"{name}: a UUID is expected") from None


def _time(name: str, value: int | None) -> int | None:
    if value is not None and value not in _TIME_US:
        raise UnfitError(f"{name}: microseconds between the years 1900 and 2299 are expected")
    return value


_PLANS = {event: _plan(event) for event in EVENTS}

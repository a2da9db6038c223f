"""Events to and from Kafka values: Avro in the Confluent wire format (0x00, schema id as uint32 big endian, Avro).

Readers resolve what any known version wrote to the current schema. The published schemas mark times as
timestamp-micros; here the mark is stripped, so that times stay the int microseconds that events hold.

With a keyring, personal fields are written sealed and come back opened; without one, or after the call was erased, they
read as empty (docs/adr/0009-sealed-fields.md).
"""

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import fastavro
from fastavro.validation import ValidationError, validate

from schemas import files
from schemas.event import Event
from schemas.events import EVENTS, Control, ControlKind
from schemas.publish import pending
from streams import metrics
from streams.keyring import AlteredError, DataKey, Keyring
from streams.topics import TOPICS

CONTENT_TYPE = "application/vnd.confluent.avro"

_FRAME = struct.Struct(">bI")
# No snapshot begins with it: msgpack has no such byte.
_SEALED_STATE = b"\xc1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


class CodecError(ValueError):
    """A value that is no event of its topic.

    `reason` is the dead letter's word: empty, not_framed, unknown_schema, truncated, wrong_schema_for_topic,
    wrong_key, altered or invalid_field. `detail` names what was expected and never quotes the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SchemaIds(Protocol):
    """Which id stands for which schema; see `registry.py` for the two implementations."""

    def id_of(self, name: str) -> int:
        """The id of the current schema of that name."""
        ...

    def schema(self, schema_id: int) -> files.Schema | None:
        """The schema with that id, None when there is none; raises RegistryError when that cannot be found out."""
        ...


class RegistryError(RuntimeError):
    """Schema ids cannot be found out: unpublished schemas, or a registry that does not answer."""


class BuiltInIds:
    """The ids that ship with the platform, in `schemas/published`."""

    def __init__(self) -> None:
        if pending():
            raise RegistryError(f"unpublished schemas: {', '.join(pending())}; run python -m schemas.publish")
        self._current = {entry.name: entry.id for entry in files.published()}
        self._entries = {entry.id: entry for entry in files.published()}

    def id_of(self, name: str) -> int:
        """See `SchemaIds`."""
        return self._current[name]

    def schema(self, schema_id: int) -> files.Schema | None:
        """See `SchemaIds`."""
        entry = self._entries.get(schema_id)
        return None if entry is None else files.load_published(entry)


@dataclass(frozen=True, slots=True)
class Personal:
    """The personal fields of a schema: `sealed` holds an Avro record of them, and they themselves read as `empty`.

    `data_class` names the call's key that seals them.
    """

    schema: Any
    empty: Mapping[str, Any]
    data_class: str


class _Plan(NamedTuple):
    """How values of one schema are read: the writer's and the reader's (None: as written), also of what is sealed."""

    writer: Any
    reader: Any | None
    personal: Personal | None
    personal_reader: Any | None


class Codec:
    """Encodes and decodes events; safe to use from several threads."""

    def __init__(self, ids: SchemaIds, keys: Keyring | None = None, seals: bool = True) -> None:
        """With `keys`, what is sealed is opened; unless `seals` is false, personal fields are written sealed, too."""
        self._ids = ids
        self._keys = keys
        self._seals = seals and keys is not None
        self._writers = {
            event: (_FRAME.pack(0, ids.id_of(event.NAME)), _current(event.NAME), personal_of(files.load(event.NAME)))
            for event in EVENTS
        }
        self._plans: dict[tuple[str, int], _Plan] = {}

    def encode(self, event: Event) -> bytes:
        """The Kafka value. Raises CodecError(invalid_field) naming the field where one has the wrong type."""
        frame, schema, personal = self._writers[type(event)]
        buffer = BytesIO()
        buffer.write(frame)
        try:
            record = event.to_record()
            if personal is not None:
                record[files.SEALED] = self._seal(event, record, personal) if self._seals else b""
            fastavro.schemaless_writer(buffer, schema, record)
        except (ValueError, TypeError, AttributeError, OverflowError, LookupError) as error:
            raise CodecError("invalid_field", _mistake(event, schema) or type(error).__name__) from None
        return buffer.getvalue()

    def _seal(self, event: Event, record: dict[str, Any], personal: Personal) -> bytes:
        """Takes what is personal out of the record and returns it sealed: nothing, where the call was erased."""
        if not any(record[name] for name in personal.empty):
            return b""
        assert self._keys is not None
        key = self._keys.keys(event.session_id, event.tenant_id).get(personal.data_class)
        plain = BytesIO()
        fastavro.schemaless_writer(plain, personal.schema, record)
        record.update(personal.empty)
        return b"" if key is None else key.seal(plain.getvalue(), event.event_id)

    def decode(self, topic: str, value: bytes | None) -> Event:
        """The event in a value of that topic; raises CodecError, and RegistryError when the registry is away."""
        entry = TOPICS.get(topic)
        if entry is None or entry.event is None:
            raise CodecError("wrong_schema_for_topic", f"{topic} holds no events")
        if not value:
            raise CodecError("empty", "an Avro value is expected")
        if value[0] != 0:
            raise CodecError("not_framed", "a first byte of 0 (Confluent wire format) is expected")
        if len(value) < _FRAME.size:
            raise CodecError("truncated", f"{_FRAME.size} bytes of frame are expected, got {len(value)}")
        schema_id = _FRAME.unpack_from(value)[1]
        plan = self._plans.get((topic, schema_id)) or self._plan(topic, entry.event, schema_id)
        record = _read(value, plan.writer, plan.reader)
        sealed = record.pop(files.SEALED, b"")
        if sealed and self._keys is not None and plan.personal is not None:
            key = self._keys.known(record["session_id"]).get(plan.personal.data_class)
            self._open(key, record, sealed, plan.personal, plan.personal_reader)
        event = _build(entry.event, record)
        if self._keys is not None and isinstance(event, Control) and event.kind is ControlKind.ERASE:
            self._keys.forget(event.session_id)
        return event

    def _open(
        self, key: DataKey | None, record: dict[str, Any], sealed: bytes, personal: Personal, reader: Any | None
    ) -> None:
        """Puts back what is personal; it stays empty where the call was erased or has no key here."""
        if key is None:
            metrics.unopened.inc()
            return
        try:
            plain = key.open(sealed, record["event_id"])
        except AlteredError as error:
            raise CodecError("altered", str(error)) from None
        record.update(_read(plain, personal.schema, reader, 0))

    def unproved(self, event: Event) -> frozenset[str]:
        """The personal fields of an event that was read of which nobody can say here what they were.

        Those of a call that was erased; without its keys, those that read as empty.
        """
        personal = self._writers[type(event)][2]
        if personal is None or (self._keys and personal.data_class in self._keys.known(event.session_id)):
            return frozenset()
        erased = self._keys is not None and self._keys.file(event.session_id) is not None
        return frozenset(name for name in personal.empty if erased or not getattr(event, name))

    def seal_state(self, session_id: str, stage: str, data: bytes) -> bytes:
        """A stage's snapshot as it is stored: sealed where the call has a key, which its first words give it."""
        key = self._keys.known(session_id).get(files.WORDS) if self._keys is not None and self._seals else None
        return data if key is None else _SEALED_STATE + key.seal(data, stage)

    def open_state(self, session_id: str, stage: str, data: bytes) -> bytes | None:
        """The inverse; None where the call was erased or has no key here. Raises AlteredError."""
        if not data.startswith(_SEALED_STATE):
            return data
        key = self._keys.known(session_id).get(files.WORDS) if self._keys is not None else None
        return None if key is None else key.open(data[len(_SEALED_STATE) :], stage)

    def decode_keyed(self, topic: str, key: bytes | None, value: bytes | None) -> Event:
        """As `decode`, and the record's key must be the event's session id (else CodecError(wrong_key))."""
        event = self.decode(topic, value)
        if key != event.session_id.encode():
            raise CodecError("wrong_key", "the session id in UTF-8 is expected as key")
        return event

    def _plan(self, topic: str, event: type[Event], schema_id: int) -> _Plan:
        """The plan for values of that id; what they hold sealed is read by the same writer's schema."""
        schema = self._ids.schema(schema_id)
        if schema is None:
            raise CodecError("unknown_schema", f"schema id {schema_id} is not known")
        try:
            writer, reader = _parsed(schema), _current(event.NAME)
            sealed, opened = personal_of(schema), personal_of(files.load(event.NAME))
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, LookupError, TypeError):
            raise CodecError("wrong_schema_for_topic", f"schema id {schema_id} is no Avro record") from None
        if writer.get("name") != reader["name"]:
            raise CodecError("wrong_schema_for_topic", f"{topic} holds {reader['name']}, got {writer.get('name')}")
        wanted = None if sealed is None or opened is None or opened.schema == sealed.schema else opened.schema
        plan = self._plans[topic, schema_id] = _Plan(writer, None if writer == reader else reader, sealed, wanted)
        return plan


def personal_of(schema: files.Schema) -> Personal | None:
    """The schema of what `sealed` holds: a record of the same name with the personal fields alone; None without any."""
    fields = files.personal(schema)
    if not fields:
        return None
    only = {"type": "record", "name": schema["name"], "namespace": schema.get("namespace", ""), "fields": fields}
    empty = {field["name"]: _empty(field["type"], field["default"]) for field in fields}
    return Personal(_parsed(only), empty, files.data_class(schema))


def _empty(avro: Any, default: Any) -> Any:
    return default.encode("latin-1") if avro == "bytes" else default


def headers(event: Event, traceparent: str | None = None) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes in binary mode, and the trace: by default that of the event's turn."""
    time = (_EPOCH + timedelta(microseconds=event.occurred_at)).isoformat(timespec="microseconds")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.event_id.encode()),
        ("ce_type", event.ce_type.encode()),
        ("ce_source", _source(event.tenant_id, event.TOPIC)),
        ("ce_time", time.replace("+00:00", "Z").encode()),
        ("ce_subject", event.session_id.encode()),
        ("content-type", CONTENT_TYPE.encode()),
        ("traceparent", (traceparent or traceparent_of(event)).encode()),
    ]


class TraceParent(NamedTuple):
    """A W3C trace context: 32 and 16 lower-case hex digits, neither all zero, and whether the trace is sampled."""

    trace_id: str
    span_id: str
    sampled: bool


def traceparent_of(event: Event) -> str:
    """The W3C traceparent of the event: one trace for each turn of a session, one span for each event."""
    span = hashlib.blake2b(event.event_id.encode(), digest_size=8).hexdigest()
    return f"00-{trace_id_of(event.session_id, event.turn)}-{span}-01"


@lru_cache(maxsize=4096)
def trace_id_of(session_id: str, turn: int) -> str:
    """The trace that all events of the turn share."""
    return hashlib.blake2b(f"{session_id}/{turn}".encode(), digest_size=16).hexdigest()


def parse_traceparent(value: str | bytes | None) -> TraceParent | None:
    """The trace context, or None where the value is none (W3C Trace Context, 3.2): the caller then starts its own."""
    if value is None:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & 1))


@cache
def default_codec() -> Codec:
    """The codec of the ids that ship with the platform, without keys; `registry.codec_for` knows what settings name."""
    return Codec(BuiltInIds())


@lru_cache(maxsize=256)
def _source(tenant_id: str, topic: str) -> bytes:
    return f"/trunkline/{quote(tenant_id, safe='')}/{topic}".encode()


@cache
def _current(name: str) -> Any:
    return _parsed(files.load(name))


def _parsed(schema: files.Schema) -> Any:
    return fastavro.parse_schema(_without_logical_types(schema), named_schemas={})


def _without_logical_types(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_logical_types(item) for item in node]
    if isinstance(node, dict):
        return {key: _without_logical_types(item) for key, item in node.items() if key != "logicalType"}
    return node


def _read(value: bytes, writer: Any, reader: Any | None, start: int = _FRAME.size) -> dict[str, Any]:
    buffer = BytesIO(value)
    buffer.seek(start)
    try:
        record: dict[str, Any] = fastavro.schemaless_reader(buffer, writer, reader)
    except fastavro.read.SchemaResolutionError:
        detail = f"the writer's schema cannot be read as the current {writer['name']}"
        raise CodecError("wrong_schema_for_topic", detail) from None
    except EOFError:
        raise CodecError("truncated", "the value ends within the record") from None
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise CodecError("invalid_field", f"no Avro record of {writer['name']} ({type(error).__name__})") from None
    if buffer.tell() != len(value):
        raise CodecError("invalid_field", f"{len(value) - buffer.tell()} bytes follow the record")
    return record


def _build(event: type[Event], record: dict[str, Any]) -> Event:
    try:
        built = event.from_record(record)
    except (ValueError, TypeError) as error:
        raise CodecError("invalid_field", f"no {event.__name__} ({type(error).__name__})") from None
    for name in ("event_id", "session_id"):
        if not record[name]:
            raise CodecError("invalid_field", f"{name}: a value is expected")
    return built


def _mistake(event: Event, schema: Any) -> str | None:
    """Names the field that does not fit, without its value."""
    for field in schema["fields"]:
        try:
            value = event.to_record().get(field["name"], b"" if field["name"] == files.SEALED else None)
            validate(value, field["type"], raise_errors=True)
        except ValidationError:
            return f"{event.NAME}.{field['name']}: {field['doc']}"
        except Exception:
            return f"{event.NAME}.{field['name']}"
    return None

"""The wire format: what is written is read back, whatever version wrote it, and garbage is refused by reason."""

import copy
import dataclasses
import io
import struct
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import files, json_form
from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, Intent, Transcript, TranscriptKind
from streams import codec as codec_module
from streams.codec import BuiltInIds, Codec, CodecError, RegistryError, default_codec, headers, parse_traceparent
from streams.topics import TOPICS

CODEC = default_codec()
REASONS = {"empty", "not_framed", "unknown_schema", "truncated", "wrong_schema_for_topic", "invalid_field"}
FINAL = [event for event in json_form.examples(Transcript) if event.text][-1]
FRAME = json_form.examples(AudioFrame)[0]
UNSEALED = {"sealed": b""}
TOPIC_NAMES = sorted(event.TOPIC for event in EVENTS)


class OtherIds(BuiltInIds):
    """The built-in ids and one more: another version of a schema, written by a newer or older platform."""

    def __init__(self, schema: files.Schema) -> None:
        super().__init__()
        self.other = schema

    def schema(self, schema_id: int) -> files.Schema | None:
        return self.other if schema_id == 1000 else super().schema(schema_id)


def framed(schema_id: int, schema: Any, record: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    buffer.write(struct.pack(">bI", 0, schema_id))
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema, named_schemas={}), record)
    return buffer.getvalue()


def refusal(topic: str, value: bytes | None, codec: Codec = CODEC) -> CodecError:
    with pytest.raises(CodecError) as caught:
        codec.decode(topic, value)
    return caught.value


def test_the_frame_is_confluents() -> None:
    value = CODEC.encode(FINAL)
    entry = [entry for entry in files.published() if entry.name == "transcript"][-1]
    assert value[:5] == b"\x00" + entry.id.to_bytes(4, "big")
    assert value == framed(entry.id, files.load_published(entry), FINAL.to_record() | UNSEALED)


def test_times_stay_microseconds() -> None:
    read = CODEC.decode("voice.transcripts", CODEC.encode(FINAL))
    assert isinstance(read, Transcript)
    assert read.occurred_at == FINAL.occurred_at
    assert type(read.speech_ended_at) is int


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_an_ordinary_avro_reader_sees_datetimes(event: type[Event]) -> None:
    example = json_form.examples(event)[0]
    buffer = io.BytesIO(CODEC.encode(example)[5:])
    record: Any = fastavro.schemaless_reader(buffer, fastavro.parse_schema(files.load(event.NAME), named_schemas={}))
    assert record["occurred_at"] == datetime.fromtimestamp(example.occurred_at / 1e6, UTC)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{}", "not_framed"),
        (b"\x01\x00\x00\x00\x09", "not_framed"),
        (b"\x00", "truncated"),
        (b"\x00\x00\x00\x00", "truncated"),
        (b"\x00\x00\x00\x00\x00", "unknown_schema"),
        (b"\x00\xff\xff\xff\xff" + CODEC.encode(FINAL)[5:], "unknown_schema"),
        (CODEC.encode(FRAME), "wrong_schema_for_topic"),
        (CODEC.encode(FINAL)[:5], "truncated"),
        (CODEC.encode(FINAL)[:-1], "truncated"),
        (CODEC.encode(FINAL) + b"\x00", "invalid_field"),
    ],
)
def test_what_is_no_transcript_is_refused_by_reason(value: bytes | None, reason: str) -> None:
    assert refusal("voice.transcripts", value).reason == reason


def test_every_cut_of_a_record_is_refused() -> None:
    value = CODEC.encode(FINAL)
    for length in range(len(value)):
        assert refusal("voice.transcripts", value[:length]).reason in ("empty", "truncated", "invalid_field")


def test_an_unknown_symbol_and_bad_text_are_invalid_fields() -> None:
    value = CODEC.encode(FINAL)
    start = value.index(FINAL.event_id.encode())
    assert refusal("voice.transcripts", value[:start] + b"\xff" + value[start + 1 :]).reason == "invalid_field"
    kind = json_form.examples(Transcript)[0]
    record = kind.to_record() | UNSEALED | {"kind": "whispered"}
    schema = copy.deepcopy(files.load("transcript"))
    next(entry for entry in schema["fields"] if entry["name"] == "kind")["type"]["symbols"].append("whispered")
    entry = [entry for entry in files.published() if entry.name == "transcript"][-1]
    assert refusal("voice.transcripts", framed(entry.id, schema, record)).reason == "invalid_field"


@pytest.mark.parametrize("name", ["event_id", "session_id"])
def test_an_event_without_id_is_refused(name: str) -> None:
    emptied: dict[str, Any] = {name: ""}
    value = CODEC.encode(dataclasses.replace(FINAL, **emptied))
    error = refusal("voice.transcripts", value)
    assert (error.reason, name in error.detail) == ("invalid_field", True)


@pytest.mark.parametrize("topic", ["voice.state.stt", "voice.unheard", ""])
def test_topics_without_events_are_refused(topic: str) -> None:
    assert refusal(topic, CODEC.encode(FINAL)).reason == "wrong_schema_for_topic"


@pytest.mark.parametrize("key", [None, b"", b"another", b"\xff"])
def test_a_wrong_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(CodecError) as caught:
        CODEC.decode_keyed("voice.transcripts", key, CODEC.encode(FINAL))
    assert caught.value.reason == "wrong_key"
    assert CODEC.decode_keyed("voice.transcripts", FINAL.session_id.encode(), CODEC.encode(FINAL)).turn == FINAL.turn


def test_a_newer_writer_is_read_by_the_current_schema() -> None:
    newer = copy.deepcopy(files.load("transcript"))
    newer["fields"].insert(3, {"name": "mood", "type": "string", "default": "", "doc": "New."})
    next(entry for entry in newer["fields"] if entry["name"] == "kind")["type"]["symbols"].insert(1, "whispered")
    codec = Codec(OtherIds(newer))
    record = FINAL.to_record() | UNSEALED | {"mood": "fine"}
    assert codec.decode("voice.transcripts", framed(1000, newer, record)) == CODEC.decode(
        "voice.transcripts", CODEC.encode(FINAL)
    )
    whispered = codec.decode("voice.transcripts", framed(1000, newer, record | {"kind": "whispered"}))
    assert isinstance(whispered, Transcript)
    assert whispered.kind is TranscriptKind.UNKNOWN


def test_an_older_writer_is_read_with_defaults() -> None:
    older = copy.deepcopy(files.load("transcript"))
    older["fields"] = [entry for entry in older["fields"] if entry["name"] not in ("words", "compute_ms")]
    codec = Codec(OtherIds(older))
    record = {
        name: value for name, value in FINAL.to_record().items() if name not in ("words", "compute_ms")
    } | UNSEALED
    read = codec.decode("voice.transcripts", framed(1000, older, record))
    assert isinstance(read, Transcript)
    assert (read.words, read.compute_ms, read.text) == ((), 0.0, FINAL.text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "record", "name": "Order", "fields": []},
        {"type": "record", "name": "Transcript", "fields": [{"name": "text", "type": "string"}]},
        {"type": "record", "name": "trunkline.Transcript", "fields": [{"name": "text", "type": "string"}]},
        {"type": "record", "name": "trunkline.Transcript", "fields": [{"name": "event_id", "type": "long"}]},
    ],
)
def test_a_foreign_schema_is_refused(schema: files.Schema) -> None:
    value = framed(1000, schema, {"text": "hello", "event_id": 5})
    assert refusal("voice.transcripts", value, Codec(OtherIds(schema))).reason == "wrong_schema_for_topic"


@pytest.mark.parametrize(
    "schema", [{"type": "record", "name": "Transcript"}, {"type": "record", "name": "Transcript", "fields": [{}]}, {}]
)
def test_a_broken_schema_in_the_registry_is_refused(schema: files.Schema) -> None:
    value = b"\x00" + (1000).to_bytes(4, "big")
    assert refusal("voice.transcripts", value, Codec(OtherIds(schema))).reason == "wrong_schema_for_topic"


def test_encoding_names_the_field_and_not_its_value() -> None:
    wrong: Any = dataclasses.replace(FINAL, text=1234567)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"invalid_field: transcript\.text: ") as caught:
        CODEC.encode(wrong)
    assert "1234567" not in str(caught.value)


def test_unpublished_schemas_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "pending", lambda: ["intent"])
    with pytest.raises(RegistryError, match=r"unpublished schemas: intent; run python -m schemas\.publish"):
        BuiltInIds()


# Whatever arrives, only CodecError comes out.

known_ids = st.sampled_from([entry.id for entry in files.published()])
bodies = st.one_of(st.binary(max_size=400), st.sampled_from([CODEC.encode(FINAL)[5:], CODEC.encode(FRAME)[5:]]))


@given(st.sampled_from(TOPIC_NAMES), st.binary(max_size=64))
def test_garbage_is_refused(topic: str, value: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        CODEC.decode(topic, value)
    assert caught.value.reason in REASONS


@given(known_ids, bodies, st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4))
def test_framed_garbage_is_refused_or_read(schema_id: int, body: bytes, flips: list[tuple[int, int]]) -> None:
    value = bytearray(b"\x00" + schema_id.to_bytes(4, "big") + body)
    for place, byte in flips:
        if len(value) > 5:
            value[5 + place % (len(value) - 5)] = byte
    entry = next(entry for entry in files.published() if entry.id == schema_id)
    topic = entry.subject.removesuffix("-value")
    reason, event = None, None
    try:
        event = CODEC.decode(topic, bytes(value))
    except CodecError as error:
        reason = error.reason
    assert reason in REASONS or isinstance(event, TOPICS[topic].event or Event)


@given(st.integers(-(2**63), 2**63 - 1))
def test_huge_lengths_are_refused_without_reading_them(length: int) -> None:
    zigzag = (length << 1) ^ (length >> 63)
    encoded = bytearray()
    while zigzag > 0x7F:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    encoded.append(zigzag)
    value = CODEC.encode(FINAL)[:5] + bytes(encoded) + b"abc"
    assert refusal("voice.transcripts", value).reason in REASONS


# Headers.


def test_headers_are_cloudevents_in_binary_mode() -> None:
    found = dict(headers(FINAL))
    assert found["ce_specversion"] == b"1.0"
    assert found["ce_id"] == FINAL.event_id.encode()
    assert found["ce_type"] == b"trunkline.transcript.final"
    assert found["ce_subject"] == FINAL.session_id.encode()
    assert found["ce_source"] == b"/trunkline/demo/voice.transcripts"
    time = datetime.fromisoformat(found["ce_time"].decode())
    assert time == datetime.fromtimestamp(FINAL.occurred_at / 1e6, UTC)
    assert set(found) == {
        *("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject"),
        *("content-type", "traceparent"),
    }


def test_a_tenant_of_any_name_makes_a_uri_reference() -> None:
    source = dict(headers(dataclasses.replace(FINAL, tenant_id="acme & söhne/x")))["ce_source"]
    assert source == b"/trunkline/acme%20%26%20s%C3%B6hne%2Fx/voice.transcripts"


def test_headers_hold_no_personal_data() -> None:
    for event in EVENTS:
        for example in json_form.examples(event):
            joined = b" ".join(value for _, value in headers(example))
            for name in event.PII:
                value = getattr(example, name)
                if isinstance(value, str) and len(value) > 3:
                    assert value.encode() not in joined


def test_events_of_a_turn_share_a_trace_and_have_spans_of_their_own() -> None:
    final, intent = FINAL, dataclasses.replace(json_form.examples(Intent)[0], turn=FINAL.turn)
    first, second = (parse_traceparent(dict(headers(event))["traceparent"]) for event in (final, intent))
    assert first is not None
    assert second is not None
    assert first.trace_id == second.trace_id
    assert first.span_id != second.span_id
    assert parse_traceparent(dict(headers(dataclasses.replace(final, turn=7)))["traceparent"]) != first


def test_a_given_trace_is_kept() -> None:
    given_parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    assert dict(headers(FINAL, given_parent))["traceparent"] == given_parent.encode()
    parent = parse_traceparent(given_parent)
    assert parent == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        b"\xff\xff",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
    ],
)
def test_what_is_no_traceparent_is_none(value: str | bytes | None) -> None:
    assert parse_traceparent(value) is None


def test_a_later_version_of_traceparent_may_have_more() -> None:
    assert parse_traceparent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more") is not None

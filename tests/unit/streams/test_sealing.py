"""Personal fields are in the log only sealed: readers with keys see the event, all others one without words."""

import copy
import dataclasses
import io
import uuid
from pathlib import Path
from typing import Any

import fastavro
import pytest

from schemas import files, json_form
from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, Control, ControlKind, Transcript
from streams.codec import BuiltInIds, Codec, CodecError, default_codec
from streams.keyring import Keyring
from streams.kms import LocalKeys
from tests.unit.streams.test_codec import OtherIds, framed

EXAMPLES = [(event, number) for event in EVENTS for number in range(len(files.examples(event.NAME)))]
IDS = [f"{event.NAME}-{number}" for event, number in EXAMPLES]
FINAL = [event for event in json_form.examples(Transcript) if event.text][-1]


def codec_at(directory: Path, ids: BuiltInIds | None = None) -> Codec:
    """As another process would have it."""
    return Codec(ids or BuiltInIds(), Keyring(directory, LocalKeys(directory)))


def personal_bytes(value: Any) -> list[bytes]:
    """The texts and bytes in a field that are long enough to be looked for."""
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return [raw] if len(raw) > 3 else []
    if isinstance(value, dict):
        return [part for item in value.values() for part in personal_bytes(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            part
            for field in dataclasses.fields(value)
            if not field.repr
            for part in personal_bytes(getattr(value, field.name))
        ]
    return [part for item in value for part in personal_bytes(item)] if isinstance(value, tuple) else []


@pytest.mark.parametrize(("event", "number"), EXAMPLES, ids=IDS)
def test_an_example_is_sealed_and_opened(tmp_path: Path, event: type[Event], number: int) -> None:
    example = json_form.examples(event)[number]
    value = codec_at(tmp_path).encode(example)
    ids = {example.session_id.encode(), example.event_id.encode()}
    for name in event.PII:
        for secret in personal_bytes(getattr(example, name)):
            assert secret in ids or secret not in value, f"{event.NAME}.{name}"
    clear = default_codec().decode(event.TOPIC, default_codec().encode(example))
    assert codec_at(tmp_path).decode(event.TOPIC, value) == clear


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_a_reader_without_keys_gets_the_rest(tmp_path: Path, event: type[Event]) -> None:
    for example in json_form.examples(event):
        read = default_codec().decode(event.TOPIC, codec_at(tmp_path).encode(example))
        assert (read.event_id, read.session_id, read.seq) == (example.event_id, example.session_id, example.seq)
        assert not any(getattr(read, name) for name in event.PII)


@pytest.mark.parametrize("event", [event for event in EVENTS if event.PII], ids=lambda event: event.NAME)
def test_whoever_has_the_key_opens_it_with_stock_tools(tmp_path: Path, event: type[Event]) -> None:
    example = next(e for e in json_form.examples(event) if any(getattr(e, name) for name in event.PII))
    value = codec_at(tmp_path).encode(example)
    schema = files.load(event.NAME)
    read: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(schema, named_schemas={}))
    key = Keyring(tmp_path, LocalKeys(tmp_path)).known(example.session_id)[schema.get("sealed_with", "words")]
    personal = {**schema, "fields": [field for field in schema["fields"] if field.get("pii")]}
    plain = io.BytesIO(key.open(read["sealed"], read["event_id"]))
    opened: Any = fastavro.schemaless_reader(plain, fastavro.parse_schema(personal, named_schemas={}))
    assert set(opened) == event.PII
    assert not plain.read()


def test_without_words_nothing_is_sealed_and_no_key_is_made(tmp_path: Path) -> None:
    codec_at(tmp_path).encode(dataclasses.replace(FINAL, text="", words=()))
    assert not list(tmp_path.iterdir())


def test_an_erased_call_reads_as_if_nobody_had_spoken(tmp_path: Path) -> None:
    value = codec_at(tmp_path).encode(FINAL)
    Keyring(tmp_path, LocalKeys(tmp_path)).destroy(FINAL.session_id, FINAL.tenant_id)
    read = codec_at(tmp_path).decode(FINAL.TOPIC, value)
    assert isinstance(read, Transcript)
    assert (read.text, read.words, read.turn) == ("", (), FINAL.turn)


def test_what_is_written_after_the_erase_has_no_words_at_all(tmp_path: Path) -> None:
    Keyring(tmp_path, LocalKeys(tmp_path)).destroy(FINAL.session_id, FINAL.tenant_id)
    value = codec_at(tmp_path).encode(FINAL)
    assert FINAL.text.encode() not in value
    schema = fastavro.parse_schema(files.load("transcript"), named_schemas={})
    read: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema)
    assert (read["text"], read["words"], read["sealed"]) == ("", [], b"")


def test_a_process_that_reads_erase_forgets_the_key_at_once(tmp_path: Path) -> None:
    codec = codec_at(tmp_path)
    value = codec.encode(FINAL)
    assert codec.decode(FINAL.TOPIC, value) == default_codec().decode(FINAL.TOPIC, default_codec().encode(FINAL))
    Keyring(tmp_path, LocalKeys(tmp_path)).destroy(FINAL.session_id, FINAL.tenant_id)
    erase = next(event for event in json_form.examples(Control) if event.kind is ControlKind.ERASE)
    codec.decode(Control.TOPIC, codec.encode(dataclasses.replace(erase, session_id=FINAL.session_id)))
    read = codec.decode(FINAL.TOPIC, value)
    assert isinstance(read, Transcript)
    assert not read.text


def test_altered_and_transplanted_fields_are_bad_input(tmp_path: Path) -> None:
    codec = codec_at(tmp_path)
    value = codec.encode(FINAL)
    other = dataclasses.replace(FINAL, event_id=str(uuid.uuid4()))
    for bad in (value[:-1] + bytes([value[-1] ^ 1]), value.replace(FINAL.event_id.encode(), other.event_id.encode())):
        with pytest.raises(CodecError) as caught:
            codec.decode(FINAL.TOPIC, bad)
        assert caught.value.reason == "altered"


def test_what_an_older_platform_wrote_in_the_clear_is_read(tmp_path: Path) -> None:
    read = codec_at(tmp_path).decode(FINAL.TOPIC, default_codec().encode(FINAL))
    assert isinstance(read, Transcript)
    assert read.text == FINAL.text


def test_what_a_newer_platform_sealed_is_read(tmp_path: Path) -> None:
    """Its personal fields are others, in another order: what is sealed is resolved, as the record is."""
    newer = copy.deepcopy(files.load("transcript"))
    at = [field["name"] for field in newer["fields"]].index("words")
    newer["fields"].insert(at, {"name": "mood", "type": "string", "default": "", "doc": "New.", "pii": True})
    codec = codec_at(tmp_path, OtherIds(newer))
    key = Keyring(tmp_path, LocalKeys(tmp_path)).keys(FINAL.session_id, FINAL.tenant_id)["words"]
    personal = {**newer, "fields": [field for field in newer["fields"] if field.get("pii")]}
    plain = framed(0, personal, FINAL.to_record() | {"mood": "fine"})[5:]
    sealed = {"mood": "", "text": "", "words": [], "sealed": key.seal(plain, FINAL.event_id)}
    read = codec.decode(FINAL.TOPIC, framed(1000, newer, FINAL.to_record() | sealed))
    assert read == default_codec().decode(FINAL.TOPIC, default_codec().encode(FINAL))


def test_sealing_can_be_switched_off_and_what_was_sealed_stays_readable(tmp_path: Path) -> None:
    sealed = codec_at(tmp_path).encode(FINAL)
    off = Codec(BuiltInIds(), Keyring(tmp_path, LocalKeys(tmp_path)), seals=False)
    assert FINAL.text.encode() in off.encode(FINAL)
    assert off.decode(FINAL.TOPIC, sealed) == off.decode(FINAL.TOPIC, off.encode(FINAL))


def test_snapshots_are_sealed_with_the_call_and_stage(tmp_path: Path) -> None:
    codec = codec_at(tmp_path)
    frame = json_form.examples(AudioFrame)[0]
    assert codec.seal_state(frame.session_id, "stt", b"words") == b"words", "no word of it has a key yet"
    codec.encode(frame)
    sealed = codec.seal_state(frame.session_id, "stt", b"words")
    assert b"words" not in sealed
    assert codec_at(tmp_path).open_state(frame.session_id, "stt", sealed) == b"words"
    assert codec.open_state(frame.session_id, "stt", b"words") == b"words"
    assert default_codec().open_state(frame.session_id, "stt", sealed) is None
    Keyring(tmp_path, LocalKeys(tmp_path)).destroy(frame.session_id, frame.tenant_id)
    assert codec_at(tmp_path).open_state(frame.session_id, "stt", sealed) is None

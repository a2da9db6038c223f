"""Every example event survives the trip through its typed class, JSON and Avro; personal data never shows."""

import dataclasses
import struct
from typing import Any

import pytest

from schemas import files, json_form
from schemas.event import Event
from schemas.events import EVENTS
from streams.codec import default_codec

EXAMPLES = [(event, number) for event in EVENTS for number in range(len(files.examples(event.NAME)))]
IDS = [f"{event.NAME}-{number}" for event, number in EXAMPLES]


def in_single_precision(value: Any) -> Any:
    """The value with its floats as Avro's `float` keeps them."""
    if isinstance(value, float):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: in_single_precision(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return tuple(map(in_single_precision, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("event", "number"), EXAMPLES, ids=IDS)
def test_an_example_survives_avro(event: type[Event], number: int) -> None:
    example = json_form.examples(event)[number]
    codec = default_codec()
    read = codec.decode(event.TOPIC, codec.encode(example))
    assert read == in_single_precision(example)
    assert type(read) is event
    assert codec.encode(read) == codec.encode(example)


@pytest.mark.parametrize(("event", "number"), EXAMPLES, ids=IDS)
def test_an_example_survives_json(event: type[Event], number: int) -> None:
    example = json_form.examples(event)[number]
    assert json_form.from_json(event, json_form.to_json(example)) == example


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_examples_show_every_kind_and_every_field(event: type[Event]) -> None:
    examples = json_form.examples(event)
    assert len(examples) > 1
    assert len({example.event_id for example in examples}) == len(examples)
    kinds = set(event.ENUMS["kind"]) - {"unknown"} if "kind" in event.ENUMS else set()
    assert {getattr(example, "kind", None) for example in examples} - {None} == kinds
    for field in dataclasses.fields(event):
        if field.default is not dataclasses.MISSING and field.name not in ("sample_rate_hz", "causation_id"):
            values = [getattr(example, field.name) for example in examples]
            assert any(value != field.default for value in values), f"no example sets {event.NAME}.{field.name}"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_every_personal_field_stays_out_of_repr(event: type[Event]) -> None:
    declared = dataclasses.fields(event)
    by_name = {field.name: field for field in declared}
    for entry in files.load(event.NAME)["fields"]:
        if entry.get("pii"):
            assert entry["name"] in event.PII
            assert not by_name[entry["name"]].repr, f"{event.NAME}.{entry['name']}"
        items = entry["type"].get("items") if isinstance(entry["type"], dict) else None
        for part in items["fields"] if isinstance(items, dict) else ():
            if part.get("pii"):
                assert entry["name"] in event.PII
                of_part = {field.name: field for field in dataclasses.fields(event.PARTS[entry["name"]])}
                assert not of_part[part["name"]].repr, f"{event.NAME}.{entry['name']}.{part['name']}"


@pytest.mark.parametrize(("event", "number"), EXAMPLES, ids=IDS)
def test_the_words_of_an_example_do_not_show(event: type[Event], number: int) -> None:
    example = json_form.examples(event)[number]
    shown = f"{example!r} {example}"
    for name in event.PII:
        value = getattr(example, name)
        if isinstance(value, str) and len(value) > 3:
            assert value not in shown
        if isinstance(value, bytes) and value:
            assert repr(value) not in shown
    for word in ("one two", "1234,", "+43", "where", "C-2041"):
        assert f"'{word}" not in shown


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_a_foreign_field_is_refused(event: type[Event]) -> None:
    values = json_form.to_json(json_form.examples(event)[0])
    with pytest.raises(TypeError):
        json_form.from_json(event, values | {"shoe_size": 43})
    del values["session_id"]
    with pytest.raises(TypeError):
        json_form.from_json(event, values)

"""The typed events are exactly what the schema files say."""

import copy

import pytest

from schemas import events, files, generate


def test_events_are_generated_from_the_current_schemas() -> None:
    assert generate.TARGET.read_text() == generate.source(), "run python -m schemas.generate"


def test_every_schema_has_its_event_and_topic() -> None:
    assert [event.NAME for event in events.EVENTS] == list(files.names())
    assert len({event.TOPIC for event in events.EVENTS}) == len(events.EVENTS)
    assert all(files.load(name)["key"] == "session_id" for name in files.names())


def test_long_docs_are_wrapped_within_the_line_length() -> None:
    assert all(len(line) <= generate.LINE_LENGTH for line in generate.TARGET.read_text().splitlines())


def test_a_field_without_doc_is_refused_by_name() -> None:
    schema = copy.deepcopy(files.load("control"))
    next(entry for entry in schema["fields"] if entry["name"] == "reason").pop("doc")
    with pytest.raises(generate.SchemaError, match=r"control\.avsc: field reason: a doc is expected"):
        generate.event_source("control", schema)


def test_a_schema_that_does_not_begin_with_the_envelope_is_refused() -> None:
    schema = copy.deepcopy(files.load("control"))
    schema["fields"].pop(3)
    with pytest.raises(generate.SchemaError, match="must begin with the envelope event_id, session_id"):
        generate.event_source("control", schema)


@pytest.mark.parametrize("name", files.names())
def test_nothing_in_a_schema_is_left_undocumented(name: str) -> None:
    schema = files.load(name)
    assert schema["doc"]
    for field in schema["fields"]:
        assert field["doc"].endswith("."), f"{name}.{field['name']}"


@pytest.mark.parametrize(
    ("name", "field", "dropped", "complaint"),
    [
        ("transcript", "words", "pii", r"words: a pii mark is expected, since its parts have one"),
        ("transcript", "text", "default", r"text: a default is expected of a personal field"),
        ("session", "sealed", "type", r"a field sealed of type bytes is expected"),
    ],
)
def test_personal_fields_can_be_sealed(name: str, field: str, dropped: str, complaint: str) -> None:
    schema = copy.deepcopy(files.load(name))
    entry = next(entry for entry in schema["fields"] if entry["name"] == field)
    entry.pop(dropped)
    entry.setdefault("type", "string")
    with pytest.raises(generate.SchemaError, match=complaint):
        generate.event_source(name, schema)

"""A change that would break an older reader or writer is found, and fastavro agrees that it would break."""

import copy
import io
from collections.abc import Callable
from typing import Any

import fastavro
import pytest

from schemas import compatibility, files, json_form
from schemas.events import EVENTS, Transcript

Change = Callable[[files.Schema], Any]
OLD = files.load("transcript")


def field(schema: files.Schema, name: str) -> Any:
    return next(entry for entry in schema["fields"] if entry["name"] == name)


def changed(change: Change) -> files.Schema:
    new = copy.deepcopy(OLD)
    change(new)
    return new


def added(**entry: Any) -> Change:
    return lambda schema: schema["fields"].append({"name": "channel", "type": "string", "doc": "Which.", **entry})


def removed(name: str) -> Change:
    return lambda schema: schema["fields"].remove(field(schema, name))


def updated(name: str, **entry: Any) -> Change:
    return lambda schema: field(schema, name).update(entry)


ALLOWED: dict[str, Change] = {
    "nothing": lambda schema: None,
    "a new field with a default": added(default=""),
    "a field with a default goes": removed("model"),
    "another doc": updated("text", doc="Words."),
    "a new enum symbol, the enum having a default": lambda schema: field(schema, "kind")["type"]["symbols"].append("x"),
    "a pii mark comes": updated("model", pii=True),
    "a part gets a field with a default": lambda schema: field(schema, "words")["type"]["items"]["fields"].append(
        {"name": "speaker", "type": "int", "default": 0, "doc": "Who."}
    ),
    "text becomes bytes, which Avro reads both ways": updated("model", type="bytes"),
}
BREAKING: dict[str, tuple[Change, str]] = {
    "a new field without default": (added(), "channel: a default is expected"),
    "a field without default goes": (removed("utterance"), "utterance: a default is expected"),
    "int becomes long, which older readers cannot read": (updated("utterance", type="long"), "older readers"),
    "long becomes int": (updated("seq", type="int"), "cannot read older records"),
    "string becomes int": (updated("text", type="int", default=0), "text: string cannot be read as int"),
    "a field becomes optional": (updated("text", type=["null", "string"], default=None), "text: "),
    "a branch joins a union": (updated("causation_id", type=["null", "string", "int"]), "causation_id: int"),
    "times lose their unit": (updated("occurred_at", type="long"), "occurred_at: timestamp-micros"),
    "an enum symbol goes": (lambda schema: field(schema, "kind")["type"]["symbols"].pop(), "symbol final must stay"),
    "an enum is renamed": (lambda schema: field(schema, "kind")["type"].update(name="What"), "enum "),
    "a pii mark goes": (lambda schema: field(schema, "text").pop("pii"), "text: the pii mark must stay"),
    "the pii mark of a part goes": (
        lambda schema: field(schema, "words")["type"]["items"]["fields"][0].pop("pii"),
        "words[].word: the pii mark must stay",
    ),
    "a part loses a field": (
        lambda schema: field(schema, "words")["type"]["items"]["fields"].pop(),
        "words[].confidence: a default is expected",
    ),
    "the topic changes": (lambda schema: schema.update(topic="voice.words"), "topic: "),
    "the key changes": (lambda schema: schema.update(key="tenant_id"), "key: "),
    "the record is renamed": (lambda schema: schema.update(name="Words"), "name: "),
}


def read_both_ways(old: files.Schema, new: files.Schema) -> bool:
    """Whether fastavro reads the examples across the two schemas, in both directions."""
    records = [example.to_record() for example in json_form.examples(Transcript)]
    try:
        for writer, reader in ((old, new), (new, old)):
            for record in records:
                buffer = io.BytesIO()
                defaults = {entry["name"]: entry["default"] for entry in writer["fields"] if "default" in entry}
                values = {entry["name"]: "" for entry in writer["fields"]} | defaults | record
                fastavro.schemaless_writer(
                    buffer, fastavro.parse_schema(writer, named_schemas={}), _fitting(writer, values)
                )
                buffer.seek(0)
                fastavro.schemaless_reader(
                    buffer,
                    fastavro.parse_schema(writer, named_schemas={}),
                    fastavro.parse_schema(reader, named_schemas={}),
                )
    except fastavro.read.SchemaResolutionError:
        return False
    return True


def _fitting(schema: files.Schema, values: dict[str, Any]) -> dict[str, Any]:
    """The values with those of changed types replaced by their defaults."""
    fitting = dict(values)
    for entry in schema["fields"]:
        if entry["type"] == "bytes":
            fitting[entry["name"]] = b""
        elif entry["type"] == "int" and not isinstance(values[entry["name"]], int):
            fitting[entry["name"]] = entry.get("default", 0)
    return fitting


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_a_compatible_change_passes_and_avro_agrees(change: Change) -> None:
    new = changed(change)
    assert compatibility.problems(OLD, new) == []
    assert read_both_ways(OLD, new)


@pytest.mark.parametrize(("change", "expected"), BREAKING.values(), ids=BREAKING)
def test_a_breaking_change_is_named(change: Change, expected: str) -> None:
    assert any(expected in problem for problem in compatibility.problems(OLD, changed(change)))


@pytest.mark.parametrize("name", ["a new field without default", "a field without default goes", "long becomes int"])
def test_avro_agrees_that_it_breaks(name: str) -> None:
    assert not read_both_ways(OLD, changed(BREAKING[name][0]))


def test_an_enum_without_default_may_not_grow() -> None:
    old = changed(lambda schema: field(schema, "kind")["type"].pop("default"))
    new = copy.deepcopy(old)
    field(new, "kind")["type"]["symbols"].append("whispered")
    assert any("an enum default is expected" in problem for problem in compatibility.problems(old, new))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_the_current_schema_is_compatible_with_all_published(event: Any) -> None:
    assert compatibility.check(event.NAME) == []
    assert compatibility.missing() == []

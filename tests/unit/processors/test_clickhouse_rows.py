"""Every event fits its table: the SQL is read as it is, so that a schema and its table cannot drift apart."""

import re
import uuid
from dataclasses import replace
from typing import Any

import pytest

from processors.clickhouse.rows import TABLE_OF_TOPIC, TABLES, UnfitError, columns, row
from processors.clickhouse.store import MIGRATIONS, identifier, statements
from schemas import files, json_form
from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, Transcript

UUIDS = [(event, name) for event in EVENTS for name in ("event_id", "session_id", "causation_id")]
OF_TOPICS = (
    "0001_topics.sql",
    "0004_health.sql",
    "0011_refusals.sql",
    "0012_audit_topics.sql",
    "0014_customers.sql",
    "0015_suggestions.sql",
)
ADDED = ("0005_gateway.sql", "0006_unread.sql", "0008_heard.sql", "0010_budgets.sql", "0016_erased.sql")
TIMES = ("occurred_at", "captured_at", "speech_ended_at")


def tables() -> dict[str, dict[str, str]]:
    """Each table of a topic with its columns and their types."""
    found = {}
    for statement in (one for name in OF_TOPICS for one in statements((MIGRATIONS / name).read_text())):
        head = re.match(r"CREATE TABLE IF NOT EXISTS (\w+)\n\((.*?)\n\)\nENGINE", statement, re.DOTALL)
        assert head is not None, statement
        found[head[1]] = dict(re.findall(r"^ {4}(\w+) +(\w+)", head[2], re.MULTILINE))
    for sql in ((MIGRATIONS / name).read_text() for name in ADDED):
        for table, column, kind in re.findall(r"ALTER TABLE (\w+) ADD COLUMN IF NOT EXISTS (\w+) (\w+)", sql):
            found[table][column] = kind
    return found


@pytest.mark.parametrize("event", EVENTS)
def test_every_field_of_a_schema_has_its_column(event: type[Event]) -> None:
    fields = {field["name"] for field in files.load(event.NAME)["fields"]} - {files.SEALED}
    expected = {"pcm_bytes" if name == "pcm" else name for name in fields}
    placed = {"kafka_partition", "kafka_offset", "ingested_at"}
    assert set(tables()[TABLES[event]]) - placed == expected


@pytest.mark.parametrize("event", EVENTS)
def test_a_row_fills_its_table(event: type[Event]) -> None:
    table = tables()[TABLES[event]]
    assert set(columns(event)) == set(table) - {"ingested_at"}
    assert len(columns(event)) == len(table) - 1


def test_every_topic_of_events_has_a_table_of_its_own() -> None:
    assert set(TABLE_OF_TOPIC) == {event.TOPIC for event in EVENTS}
    assert set(TABLE_OF_TOPIC.values()) == set(tables())


@pytest.mark.parametrize("event", EVENTS)
def test_examples_become_rows(event: type[Event]) -> None:
    for example in json_form.examples(event):
        values = dict(zip(columns(event), row(example, 3, 7), strict=True))
        assert (values["kafka_partition"], values["kafka_offset"]) == (3, 7)
        assert values["event_id"] == uuid.UUID(example.event_id)
        assert values["occurred_at"] == example.occurred_at
        if "pcm" in example.to_record():
            assert values["pcm_bytes"] == len(example.to_record()["pcm"])
            assert "pcm" not in values


def test_parts_become_tuples_by_name() -> None:
    example = next(example for example in json_form.examples(Transcript) if example.words)
    values = dict(zip(columns(Transcript), row(example, 0, 0), strict=True))
    assert values["words"] == [word.to_record() for word in example.words]
    assert values["kind"] == str(example.kind)


@pytest.mark.parametrize(("event", "name"), UUIDS)
@pytest.mark.parametrize("value", ["nobody", "", "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2eXX"])
def test_what_is_no_uuid_is_refused_by_name(event: type[Event], name: str, value: str) -> None:
    refused(json_form.examples(event)[0], name, value)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("value", [-2_208_988_800_000_001, 10_413_792_000_000_000, 2**63 - 1])
def test_a_time_outside_the_column_is_refused_by_name(event: type[Event], value: int) -> None:
    example: Any = json_form.examples(event)[0]
    for name in TIMES:
        if hasattr(example, name):
            refused(example, name, value)


INTS = [
    (event, field["name"]) for event in EVENTS for field in files.load(event.NAME)["fields"] if field["type"] == "int"
]
LIMITS = (-(2**31), 2**31 - 1)


@pytest.mark.parametrize(("event", "name"), INTS)
def test_a_number_outside_the_column_is_refused_by_name(event: type[Event], name: str) -> None:
    """Avro writes and reads an int of any size."""
    example: Any = json_form.examples(event)[0]
    for value in (LIMITS[0] - 1, LIMITS[1] + 1, 2**53 // 16):
        refused(example, name, value)
    for value in LIMITS:
        assert value in row(replace(example, **{name: value}), 0, 0)


@pytest.mark.parametrize(("event", "name"), INTS)
def test_a_columns_numbers_are_those_of_its_field(event: type[Event], name: str) -> None:
    assert tables()[TABLES[event]][name] == "Int32"


def test_a_number_in_a_part_outside_the_column_is_refused_by_name() -> None:
    example = next(example for example in json_form.examples(Transcript) if example.words)
    word = replace(example.words[0], end_ms=2**31)
    with pytest.raises(UnfitError, match=r"words\.end_ms: "):
        row(replace(example, words=(word,)), 0, 0)


def refused(example: Event, name: str, value: Any) -> None:
    with pytest.raises(UnfitError, match=f"{name}: ") as caught:
        row(replace(example, **{name: value}), 0, 0)
    assert caught.value.reason == "invalid_field"
    assert str(value) not in caught.value.detail or value == ""


def test_statements_end_where_a_line_ends_with_a_semicolon() -> None:
    sql = "-- a; comment;\nSELECT ';' AS a;\n  -- more\nSELECT 2\n  AS b;\n"
    assert statements(sql) == ["SELECT ';' AS a", "SELECT 2\n  AS b"]


@pytest.mark.parametrize("name", ["", "a b", "a`b", "1a", "é", "a;DROP"])
def test_a_database_that_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"clickhouse\.database"):
        identifier(name)


def test_audio_is_counted_and_not_kept() -> None:
    example = json_form.examples(AudioFrame)[0]
    assert not any(isinstance(value, bytes) for value in row(example, 0, 0))

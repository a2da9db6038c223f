"""The AsyncAPI document: as generated, true to the catalogue, and valid in the eyes of AsyncAPI's own parser."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas import files, json_form
from schemas.event import Event
from schemas.events import EVENTS
from streams import asyncapi
from streams.codec import headers
from streams.topics import TOPICS
from tests.support import node

DOCUMENT: dict[str, Any] = asyncapi.document()
WARNING = 1  # AsyncAPI's parser: 0 is an error, 1 a warning, more are hints


def test_the_file_is_as_generated() -> None:
    assert asyncapi.TARGET.read_text(encoding="utf-8") == asyncapi.source(), "run python -m streams.asyncapi"
    assert yaml.safe_load(asyncapi.source()) == DOCUMENT


def test_the_environment_does_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_KAFKA__PARTITIONS", "64")
    monkeypatch.setenv("TRUNKLINE_KAFKA__RETENTION_DAYS", '{"voice.audio.in": 7}')
    assert asyncapi.document() == DOCUMENT


def test_it_has_every_topic_of_events_and_no_other() -> None:
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    assert addresses == {topic.name for topic in TOPICS.values() if topic.event is not None}
    for channel in DOCUMENT["channels"].values():
        kafka = channel["bindings"]["kafka"]
        assert kafka["topic"] == channel["address"]
        assert kafka["topicConfiguration"]["retention.ms"] == TOPICS[kafka["topic"]].retention_ms
    assert {operation["action"] for operation in DOCUMENT["operations"].values()} == {"send"}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_a_message_carries_its_schema_and_every_header(event: type[Event]) -> None:
    message = DOCUMENT["components"]["messages"][event.NAME]
    assert message["payload"]["schema"] == files.load(event.NAME)
    attributes = DOCUMENT["components"]["schemas"]["attributes"]
    types = message["headers"]["allOf"][1]["properties"]["ce_type"]["enum"]
    for example in json_form.examples(event):
        written = {name: value.decode() for name, value in headers(example)}
        assert set(written) == set(attributes["required"])
        assert written["ce_type"] in types
        for name, about in attributes["properties"].items():
            assert written[name] == about.get("const", written[name])


def test_a_file_that_differs_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncapi, "TARGET", tmp_path / "asyncapi.yaml")
    monkeypatch.setattr("sys.argv", ["asyncapi", "--check"])
    assert asyncapi.main() == 1
    monkeypatch.setattr("sys.argv", ["asyncapi"])
    assert asyncapi.main() == 0
    monkeypatch.setattr("sys.argv", ["asyncapi", "--check"])
    assert asyncapi.main() == 0
    asyncapi.TARGET.write_text(asyncapi.source() + "x: 1\n")
    assert asyncapi.main() == 1


def test_asyncapis_own_parser_takes_it(tmp_path: Path) -> None:
    found = json.loads(node.output(node.PROGRAMS / "asyncapi.mjs", tmp_path, str(asyncapi.TARGET)))
    assert [one for one in found["diagnostics"] if one["severity"] <= WARNING] == []
    assert set(found["payloads"]) == {files.load(event.NAME)["name"] for event in EVENTS}
    for event in EVENTS:
        schema = files.load(event.NAME)
        assert set(found["payloads"][schema["name"]]["schema"]["properties"]) == {
            field["name"] for field in schema["fields"]
        }


def test_asyncapis_own_parser_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(asyncapi.source().replace("action: send", "action: shout"))
    found = json.loads(node.output(node.PROGRAMS / "asyncapi.mjs", tmp_path, str(tmp_path / "wrong.yaml")))
    assert [one for one in found["diagnostics"] if one["severity"] == 0]

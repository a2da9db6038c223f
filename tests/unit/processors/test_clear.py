"""The clear topic's records are JSON, without audio and without the caller's id, and say where their event lies."""

import json
from dataclasses import replace

import pytest

from processors.clear import WORDS, clear_record
from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, Session
from streams.keys import Position

SPOKEN = [event for event in EVENTS if event.TOPIC in WORDS]


@pytest.mark.parametrize("event", SPOKEN, ids=lambda event: event.NAME)
def test_every_event_of_words_becomes_json(event: type[Event]) -> None:
    for example in json_form.examples(event):
        record = clear_record(example, Position(event.TOPIC, 3, 7))
        read = json.loads(record.value)
        assert record.key == example.session_id.encode()
        assert (read["data"]["topic"], read["data"]["partition"], read["data"]["offset"]) == (event.TOPIC, 3, 7)
        assert read["data"]["event"]["event_id"] == example.event_id
        assert dict(record.headers)["content-type"] == b"application/json"
        assert dict(record.headers)["ce_id"] == example.event_id.encode()


def test_the_callers_id_stays_out() -> None:
    example = replace(json_form.examples(Session)[0], caller="+43 660 1234567")
    record = clear_record(example, Position(Session.TOPIC, 0, 0))
    assert b"1234567" not in record.value
    assert json.loads(record.value)["data"]["event"]["caller"] is None


def test_audio_stays_out() -> None:
    assert {event.TOPIC for event in SPOKEN} == {
        "voice.sessions",
        "voice.transcripts",
        "voice.intents",
        "voice.responses",
        "voice.control",
    }

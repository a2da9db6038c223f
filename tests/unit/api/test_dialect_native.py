"""Trunkline's own dialect as tables."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.dialect import (
    Audio,
    Bad,
    Command,
    Dtmf,
    HangUp,
    Playout,
    Received,
    Resume,
    Resumed,
    Start,
    Started,
)
from api.dialects.native import NativeDialect
from schemas.events import Intent, IntentKind, SpeechChunk, SpeechChunkKind, Transcript, TranscriptKind, Word

ENVELOPE: dict[str, Any] = {
    "event_id": "e1",
    "session_id": "s1",
    "tenant_id": "t",
    "agent_id": "shop",
    "turn": 1,
    "seq": 4,
    "occurred_at": 1_700_000_000_000_000,
}

UNDERSTOOD: list[tuple[dict[str, Any], Command]] = [
    ({"type": "start"}, Start()),
    ({"type": "start", "agent": "shop", "caller": None, "context": None}, Start(agent="shop")),
    (
        {"type": "start", "caller": "Ann", "sample_rate_hz": 16000, "context": {"vip": True, "n": 3}},
        Start(caller="Ann", context={"vip": "true", "n": "3"}),
    ),
    ({"type": "playout", "turn": 2, "sentence": 1, "heard_ms": 640}, Playout(2, 1, 640)),
    ({"type": "playout", "turn": 2, "heard_ms": 640}, Playout(2, 0, 640)),
    ({"type": "dtmf", "digit": "a"}, Dtmf("A")),
    ({"type": "hang_up"}, HangUp()),
]

REFUSED: list[tuple[str, str, str]] = [
    ("", "invalid_json", "JSON"),
    ("null", "invalid_json", "JSON"),
    ('"start"', "invalid_json", "JSON"),
    ('{"type":', "invalid_json", "JSON"),
    ('{"type":null}', "unknown_type", "hang_up"),
    ('{"type":["start"]}', "unknown_type", "hang_up"),
    ('{"type":"START"}', "unknown_type", "start"),
    ('{"type":"start","agent":[]}', "invalid_field", "agent"),
    ('{"type":"start","agent":1}', "invalid_field", "agent"),
    ('{"type":"start","caller":5}', "invalid_field", "caller"),
    ('{"type":"start","sample_rate_hz":"16000"}', "unsupported_sample_rate", "16000"),
    ('{"type":"start","sample_rate_hz":true}', "unsupported_sample_rate", "16000"),
    ('{"type":"start","context":{"a":{}}}', "invalid_field", "context"),
    ('{"type":"playout","turn":-1,"heard_ms":1}', "invalid_field", "turn"),
    ('{"type":"playout","turn":1}', "invalid_field", "heard_ms"),
    ('{"type":"playout","turn":1,"heard_ms":1e99}', "invalid_field", "heard_ms"),
    ('{"type":"playout","turn":true,"heard_ms":1}', "invalid_field", "turn"),
    ('{"type":"playout","turn":1,"heard_ms":99999999999}', "invalid_field", "heard_ms"),
    ('{"type":"dtmf"}', "invalid_field", "digit"),
    ('{"type":"dtmf","digit":"12"}', "invalid_field", "digit"),
]


@pytest.mark.parametrize(("message", "command"), UNDERSTOOD)
def test_understood(message: dict[str, Any], command: Command) -> None:
    assert list(NativeDialect().receive_text(json.dumps(message))) == [command]


@pytest.mark.parametrize(("text", "code", "hint"), REFUSED)
def test_refused_with_a_hint(text: str, code: str, hint: str) -> None:
    (bad,) = NativeDialect().receive_text(text)
    assert isinstance(bad, Bad)
    assert bad.code == code
    assert hint in bad.hint


def test_binary_is_audio_of_whole_samples() -> None:
    dialect = NativeDialect()
    assert list(dialect.receive_bytes(b"ab")) == [Audio(b"ab")]
    assert list(dialect.receive_bytes(b"")) == []
    for data, code in ((b"abc", "odd_length"), (bytes(64_002), "message_too_big")):
        (bad,) = dialect.receive_bytes(data)
        assert isinstance(bad, Bad)
        assert bad.code == code


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert all(NativeDialect().receive_text(text))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_FIELDS = st.sampled_from(["agent", "caller", "context", "sample_rate_hz", "turn", "sentence", "heard_ms", "digit"])


@given(st.sampled_from(["start", "playout", "dtmf", "hang_up"]), st.dictionaries(_FIELDS, _JSON))
def test_no_field_raises(kind: str, fields: dict[str, Any]) -> None:
    (command,) = NativeDialect().receive_text(json.dumps({"type": kind, **fields}))
    assert isinstance(command, Start | Playout | Dtmf | HangUp | Bad)


@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    assert len(NativeDialect().receive_bytes(data)) <= 1


def test_events_carry_their_fields_and_no_envelope_of_the_log() -> None:
    word = Word(word="hello", start_ms=0, end_ms=300, confidence=0.9)
    event = Transcript(
        **ENVELOPE, kind=TranscriptKind.FINAL, utterance=0, text="hello", words=(word,), speech_ended_at=17
    )
    (frame,) = NativeDialect().event(event)
    message = json.loads(frame)
    assert message["type"] == "final"
    assert message["words"] == [{"word": "hello", "start_ms": 0, "end_ms": 300, "confidence": 0.9}]
    assert (message["turn"], message["event_id"], message["occurred_at"]) == (1, "e1", 1_700_000_000_000_000)
    assert not {"session_id", "tenant_id", "agent_id", "kind", "pcm"} & set(message)
    (frame,) = NativeDialect().event(Intent(**ENVELOPE, kind=IntentKind.DETECTED, intent="returns", confidence=0.8))
    assert json.loads(frame)["type"] == "intent"
    (frame,) = NativeDialect().event(SpeechChunk(**ENVELOPE, kind=SpeechChunkKind.END_OF_TURN))
    assert json.loads(frame)["type"] == "end_of_turn"


def test_audio_is_a_description_and_its_bytes() -> None:
    chunk = SpeechChunk(
        **ENVELOPE, kind=SpeechChunkKind.AUDIO, pcm=b"\1\0" * 320, sentence=2, sample_index=99, text="Hi."
    )
    description, pcm = NativeDialect().audio(chunk)
    assert pcm == b"\1\0" * 320
    assert json.loads(description) == {
        "type": "audio",
        "turn": 1,
        "sentence": 2,
        "sample_index": 99,
        "duration_ms": 20.0,
        "last_of_sentence": False,
        "event_id": "e1",
        "occurred_at": 1_700_000_000_000_000,
        "text": "Hi.",
    }


def test_the_rest_of_the_vocabulary() -> None:
    dialect = NativeDialect()
    frames = [
        *dialect.started(Started("s1", "shop", "r")),
        *dialect.clear(3, 640),
        *dialect.transfer("+1555"),
        *dialect.error("c", "m", "h"),
        *dialect.ended("hung_up"),
    ]
    assert [json.loads(frame) for frame in frames] == [
        {"type": "started", "session_id": "s1", "agent": "shop", "sample_rate_hz": 16000, "resume_token": "r"},
        {"type": "clear", "turn": 3, "heard_ms": 640},
        {"type": "transfer", "target": "+1555"},
        {"type": "error", "code": "c", "message": "m", "hint": "h"},
        {"type": "ended", "reason": "hung_up"},
    ]


RESUME = {"type": "resume", "resume_token": "t"}


def test_resume_says_what_arrived() -> None:
    message = RESUME | {
        "received": {"turn": 2, "sample_index": 38400},
        "heard": {"turn": 2, "heard_ms": 1900},
        "event_ids": ["a", "b"],
        "kept_from": 640,
    }
    (command,) = NativeDialect().receive_text(json.dumps(message))
    assert command == Resume("t", Received(2, 38400), Playout(2, 0, 1900), frozenset({"a", "b"}), 640)
    (command,) = NativeDialect().receive_text(json.dumps(RESUME | {"received": None}))
    assert command == Resume("t")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resume_token", 1),
        ("received", [1, 2]),
        ("received", {"turn": 1}),
        ("received", {"turn": 1, "sample_index": -1}),
        ("heard", {"turn": 1}),
        ("heard", 3),
        ("event_ids", "a"),
        ("event_ids", [1]),
        ("event_ids", ["a"] * 257),
        ("kept_from", 0.5),
    ],
)
def test_a_resume_that_cannot_be_used_names_the_field(name: str, value: Any) -> None:
    (bad,) = NativeDialect().receive_text(json.dumps(RESUME | {name: value}))
    assert isinstance(bad, Bad)
    assert (bad.code, name in bad.hint or name in bad.message) == ("invalid_field", True)


def test_a_key_may_carry_an_id() -> None:
    (command,) = NativeDialect().receive_text('{"type": "dtmf", "digit": "#", "id": "k7"}')
    assert command == Dtmf("#", "k7")


def test_what_the_gateway_says_of_a_call_that_goes_on() -> None:
    dialect = NativeDialect()
    (resumed,) = dialect.resumed(Resumed("s", "shop", "t", 96640))
    expected = {"type": "resumed", "session_id": "s", "agent": "shop", "sample_index": 96640, "resume_token": "t"}
    assert json.loads(resumed) == expected
    assert [json.loads(frame) for frame in dialect.acknowledged(96000)] == [
        {"type": "acknowledged", "sample_index": 96000}
    ]
    assert [json.loads(frame) for frame in dialect.going_away()] == [{"type": "going_away"}]

"""Media Streams as tables: what Twilio sends, and what it accepts."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.audio import mulaw_to_pcm
from api.dialects.dialect import Audio, Bad, Dtmf, HangUp, Playout, Start
from api.dialects.twilio import TwilioDialect
from schemas.events import SpeechChunk, SpeechChunkKind

ENVELOPE: dict[str, Any] = {
    "event_id": "e1",
    "session_id": "s1",
    "tenant_id": "t",
    "agent_id": "shop",
    "seq": 4,
    "occurred_at": 1_700_000_000_000_000,
}
START = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": "MZ1",
    "start": {
        "accountSid": "AC1",
        "streamSid": "MZ1",
        "callSid": "CA1",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"agent": "shop", "caller": "+1", "tier": "gold", "trunkline_token": "t"},
    },
}


def started() -> TwilioDialect:
    dialect = TwilioDialect()
    dialect.receive_text(json.dumps(START))
    return dialect


def media(payload: Any, track: str = "inbound") -> str:
    return json.dumps(
        {
            "event": "media",
            "sequenceNumber": "2",
            "streamSid": "MZ1",
            "media": {"track": track, "chunk": "1", "timestamp": "20", "payload": payload},
        }
    )


def chunk(turn: int, ms: int, **fields: Any) -> SpeechChunk:
    return SpeechChunk(**ENVELOPE, turn=turn, kind=SpeechChunkKind.AUDIO, pcm=b"\0\x10" * 16 * ms, **fields)


def test_start_names_the_call() -> None:
    (command,) = TwilioDialect().receive_text(json.dumps(START))
    assert command == Start(agent="shop", caller="+1", context={"tier": "gold"}, call_id="CA1", token="t")


def test_media_becomes_pcm_at_16_khz() -> None:
    dialect = started()
    (command,) = dialect.receive_text(media(base64.b64encode(b"\xff" * 160).decode()))
    assert command == Audio(b"\xff" * 160)
    assert dialect.pcm(command.data) == bytes(640)
    assert dialect.receive_text(media(base64.b64encode(b"\0" * 160).decode(), "outbound")) == ()
    assert dialect.receive_text(media(None, "outbound")) == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_json"),
        ("[]", "invalid_json"),
        ('{"event":"dance"}', "unknown_type"),
        ('{"event":"start"}', "invalid_field"),
        ('{"event":"start","start":{"streamSid":"M","mediaFormat":{"encoding":"audio/opus"}}}', "unsupported_media"),
        ('{"event":"media"}', "invalid_field"),
        ('{"event":"dtmf","dtmf":{"digit":"12"}}', "invalid_field"),
        (media(5), "invalid_field"),
        (media("%%%"), "invalid_field"),
        (media("é"), "invalid_field"),
        ('{"media":{"payload":"AAAA"}}', "unknown_type"),
        (media("A" * 24_000), "message_too_big"),
        ("x" * 40_000, "message_too_big"),
    ],
)
def test_refused(text: str, code: str) -> None:
    (bad,) = started().receive_text(text)
    assert isinstance(bad, Bad)
    assert bad.code == code


def test_the_small_messages() -> None:
    dialect = started()
    assert dialect.receive_text('{"event":"connected","protocol":"Call","version":"1.0.0"}') == ()
    assert dialect.receive_text('{"event":"dtmf","dtmf":{"track":"inbound_track","digit":"#"}}') == (Dtmf("#"),)
    assert dialect.receive_text('{"event":"stop","stop":{"callSid":"CA1"}}') == (HangUp(),)
    for name in ("", "mine", "1/2", "1/2/3", "1/2/x/0", "1/2/-3/0", 5, None, "²/1/1/0", "1/1/0/" + "9" * 40):
        assert dialect.receive_text(json.dumps({"event": "mark", "mark": {"name": name}})) == ()


def test_speech_leaves_in_messages_of_20_ms_with_a_mark_after_each_sentence() -> None:
    dialect = started()
    frames = [*dialect.audio(chunk(1, 50)), *dialect.audio(chunk(1, 35, last_of_sentence=True))]
    messages = [json.loads(frame) for frame in frames]
    assert [message["event"] for message in messages] == ["media"] * 5 + ["mark"]
    assert all(message["streamSid"] == "MZ1" for message in messages)
    payloads = [base64.b64decode(message["media"]["payload"]) for message in messages[:-1]]
    assert [len(payload) for payload in payloads] == [160] * 5
    assert payloads[-1].endswith(b"\xff" * 120)  # 85 ms: the last message is filled up with silence
    level = np.frombuffer(mulaw_to_pcm(payloads[1]), "<i2")
    assert np.all(abs(level - 0x1000) < 130)
    assert messages[-1]["mark"]["name"] == "1/0/85/0"
    assert dialect.receive_text(json.dumps({"event": "mark", "mark": {"name": "1/0/85/0"}})) == (Playout(1, 0, 85),)


def test_the_end_of_a_turn_sends_what_is_left() -> None:
    dialect = started()
    assert list(dialect.audio(chunk(1, 15))) == []
    (frame,) = dialect.event(SpeechChunk(**ENVELOPE, turn=1, kind=SpeechChunkKind.END_OF_TURN))
    assert len(base64.b64decode(json.loads(frame)["media"]["payload"])) == 160


def test_marks_that_a_clear_sends_back_say_nothing() -> None:
    dialect = started()
    dialect.audio(chunk(1, 45, last_of_sentence=True))
    dialect.audio(chunk(1, 5, sentence=1))
    assert [json.loads(frame) for frame in dialect.clear(1, 20)] == [{"event": "clear", "streamSid": "MZ1"}]
    assert dialect.receive_text('{"event":"mark","mark":{"name":"1/0/45/0"}}') == ()
    (first,) = dialect.audio(chunk(2, 20))
    assert json.loads(first)["event"] == "media"  # nothing of turn 1 is in front of it
    assert dialect.receive_text('{"event":"mark","mark":{"name":"2/0/20/1"}}') == (Playout(2, 0, 20),)


def test_what_goes_on_after_a_clear_is_marked_from_where_it_goes_on() -> None:
    dialect = started()
    dialect.audio(chunk(1, 60, last_of_sentence=True))
    dialect.clear(1, 40)
    *_, mark = [json.loads(frame) for frame in dialect.audio(chunk(1, 20, sample_index=640, last_of_sentence=True))]
    assert mark["mark"]["name"] == "1/0/60/1"
    assert dialect.receive_text(json.dumps({"event": "mark", "mark": {"name": "1/0/60/0"}})) == ()
    assert dialect.receive_text(json.dumps(mark)) == (Playout(1, 0, 60),)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_EVENTS = st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop"])


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert all(started().receive_text(text))


@given(_EVENTS, _JSON, st.dictionaries(st.sampled_from(["payload", "digit", "name", "streamSid", "track"]), _JSON))
def test_no_field_raises(event: str, whole: Any, parts: dict[str, Any]) -> None:
    for body in (whole, parts):
        for command in started().receive_text(json.dumps({"event": event, event: body})):
            assert command


@given(st.binary())
def test_binary_is_refused(data: bytes) -> None:
    (bad,) = started().receive_bytes(data)
    assert isinstance(bad, Bad)


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=10))
def test_any_audio_gives_twice_its_samples(pieces: list[bytes]) -> None:
    dialect = started()
    for piece in pieces:
        (command,) = dialect.receive_text(media(base64.b64encode(piece).decode()))
        assert isinstance(command, Audio)
        assert len(dialect.pcm(command.data)) == 4 * len(piece)

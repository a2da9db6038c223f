"""The gateway over real sockets and a real broker, with a peer of the log in the place of the stages."""

import asyncio
import base64
import dataclasses
import html
import itertools
import json
import re
import signal
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from twilio.request_validator import RequestValidator

from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunkKind,
    TranscriptKind,
)
from streams.consumer import session_records
from streams.settings import Settings
from tests.support.gateway import Caller, Gateway, Peer, running_gateway
from tests.support.kafka import TestBroker

TONE = b"\x10\x27" * 320  # 20 ms


def api(**fields: Any) -> dict[str, Any]:
    """Gateway settings for tests: any port, playback that nobody reports."""
    return {"port": 0, **fields}


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings(api=api())


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def peer(settings: Settings) -> AsyncIterator[Peer]:
    log_peer = Peer(settings)
    await log_peer.start()
    yield log_peer
    await log_peer.close()


@pytest.fixture
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with websockets.connect(f"{gateway.ws}/v1/calls") as socket:
        yield Caller(socket)


async def ended(peer: Peer, session_id: str) -> Session:
    """The session's last event."""
    event: Session = await peer.seen(
        lambda e: isinstance(e, Session) and e.kind is SessionKind.ENDED and e.session_id == session_id
    )
    return event


async def control(peer: Peer, session_id: str, kind: ControlKind) -> Control:
    """The session's first control event of that kind."""
    event: Control = await peer.seen(lambda e: isinstance(e, Control) and e.kind is kind and e.session_id == session_id)
    return event


async def test_a_call_becomes_events_and_events_reach_the_caller(caller: Caller, peer: Peer) -> None:
    answer = await caller.start(agent="shop", caller="+15550001", context={"tier": "gold"})
    assert answer["sample_rate_hz"] == 16000
    sid = caller.session_id
    started = await peer.seen(lambda e: isinstance(e, Session) and e.session_id == sid)
    assert (started.kind, started.channel, started.caller) == (SessionKind.STARTED, "websocket", "+15550001")
    assert started.context == {"tier": "gold"}

    for size in (640, 6, 3200, 1274):  # 160 ms in pieces of any length: frames of what has come by a beat
        await caller.socket.send(b"\x01\x02" * (size // 2))
    await peer.seen(
        lambda e: isinstance(e, AudioFrame) and e.session_id == sid and e.sample_index + len(e.pcm) // 2 > 140 * 16
    )
    frames = peer.of(sid, AudioFrame)
    ends = list(itertools.accumulate(len(f.pcm) // 2 for f in frames))
    assert [(f.seq, f.sample_index) for f in frames] == list(enumerate([0, *ends[:-1]]))
    assert all(20 * 32 <= len(f.pcm) <= 160 * 32 for f in frames)
    assert all(f.captured_at > 0 and f.sample_rate_hz == 16000 for f in frames)

    await peer.publish(peer.transcript(sid, TranscriptKind.FINAL, 0, 1, "where is my order"), times=2)
    messages = [await caller.next()]
    await peer.publish(peer.response(sid, ResponseKind.SENTENCE, 1, text="On its way."))
    messages.append(await caller.next())
    await peer.publish(peer.audio(sid, 1, 60, text="On its way.", last_of_sentence=True), times=2)
    await peer.publish(peer.end_of_turn(sid, 1))
    messages += [await caller.next() for _ in range(3)]  # what came twice from the log was dropped
    assert [m if isinstance(m, bytes) else m["type"] for m in messages] == [
        "final",
        "sentence",
        "audio",
        b"\x02\x00" * 960,
        "end_of_turn",
    ]
    assert messages[0]["text"] == "where is my order"
    assert messages[2] == messages[2] | {"turn": 1, "sentence": 0, "duration_ms": 60.0, "text": "On its way."}
    assert all("event_id" in m and "occurred_at" in m for m in messages if isinstance(m, dict))

    heard = await control(peer, sid, ControlKind.PLAYOUT)
    assert (heard.turn, heard.sentence, heard.heard_ms, heard.reason) == (1, 0, 60, "end_of_turn")
    await caller.say(type="dtmf", digit="#")
    assert (await control(peer, sid, ControlKind.DTMF)).digit == "#"
    await caller.say(type="hang_up")
    assert (await caller.heard("ended"))["reason"] == "hung_up"
    assert await caller.closed() == 1000
    assert (await ended(peer, sid)).reason == "hung_up"


async def test_barge_in_stops_that_turn_only(caller: Caller, peer: Peer) -> None:
    await caller.start()
    sid = caller.session_id
    await peer.publish(peer.audio(sid, 0, 5000))
    await caller.heard("audio")
    await peer.publish(peer.transcript(sid, TranscriptKind.SPEECH_STARTED, 0, 1))
    clear = await caller.heard("clear")  # before anyone knows what it is
    assert clear["turn"] == 0
    assert 0 <= clear["heard_ms"] < 5000
    await peer.publish(peer.transcript(sid, TranscriptKind.PARTIAL, 0, 1, "stop"))
    words = await caller.heard("partial")
    barge_in = await control(peer, sid, ControlKind.BARGE_IN)
    assert (barge_in.turn, barge_in.heard_ms) == (0, clear["heard_ms"])
    assert barge_in.causation_id == words["event_id"]

    await peer.publish(peer.audio(sid, 0, 40))
    await peer.publish(peer.transcript(sid, TranscriptKind.FINAL, 0, 1, "stop"))
    await peer.publish(peer.audio(sid, 1, 40, sentence=3))
    assert (await caller.heard("audio"))["turn"] == 1  # the rest of turn 0 is gone


async def test_a_cough_hushes_the_agent_and_all_of_the_turn_is_heard(caller: Caller, peer: Peer) -> None:
    await caller.start()
    sid = caller.session_id
    await peer.publish(peer.audio(sid, 0, 2000, last_of_sentence=True))
    await peer.publish(peer.end_of_turn(sid, 0))
    await caller.heard("end_of_turn")
    await peer.publish(peer.transcript(sid, TranscriptKind.SPEECH_STARTED, 0, 1))
    clear = await caller.heard("clear")
    await peer.publish(peer.transcript(sid, TranscriptKind.PARTIAL, 0, 1))  # it had no words
    rest = await caller.heard("audio")
    assert rest["sample_index"] == clear["heard_ms"] * 16
    assert len(await caller.next()) == 2 * (2000 * 16 - rest["sample_index"])
    await caller.heard("end_of_turn")
    heard = await control(peer, sid, ControlKind.PLAYOUT)
    assert (heard.turn, heard.heard_ms, heard.reason) == (0, 2000, "end_of_turn")
    assert not [event for event in peer.of(sid, Control) if event.kind is ControlKind.BARGE_IN]


async def test_speculative_audio_waits_for_its_revision(caller: Caller, peer: Peer) -> None:
    await caller.start()
    sid = caller.session_id
    await peer.publish(peer.audio(sid, 1, 40, revision=1, committed=False, sentence=1))
    await peer.publish(peer.audio(sid, 1, 40, revision=2, committed=False, sentence=2))
    final = peer.transcript(sid, TranscriptKind.FINAL, 0, 1, "yes")
    await asyncio.sleep(0.05)
    await peer.publish(dataclasses.replace(final, revision=2))
    first = await caller.next()
    assert first["type"] == "final"
    assert (await caller.heard("audio"))["sentence"] == 2


@pytest.mark.parametrize(("action", "reason"), [("hang_up", "completed"), ("transfer", "transferred")])
async def test_the_agents_action_waits_until_its_words_were_heard(
    caller: Caller, peer: Peer, action: str, reason: str
) -> None:
    await caller.start()
    sid = caller.session_id
    await peer.publish(peer.response(sid, ResponseKind.COMPLETED, 0, action=action, action_target="+15550099"))
    await peer.publish(peer.audio(sid, 0, 200, last_of_sentence=True))
    await peer.publish(peer.end_of_turn(sid, 0))
    if action == "transfer":
        assert (await caller.heard("transfer"))["target"] == "+15550099"
    assert (await caller.heard("ended"))["reason"] == reason
    assert (await ended(peer, sid)).reason == reason
    await control(peer, sid, ControlKind(action))
    assert [c.kind for c in peer.of(sid, Control)] == [ControlKind.PLAYOUT, ControlKind(action)]


BAD_INPUTS: list[tuple[str | bytes, str]] = [
    (b"\x00\x00", "not_started"),
    (b"\x00\x00\x00", "odd_length"),
    ("no json", "invalid_json"),
    ("[1]", "invalid_json"),
    ("[" * 5000, "invalid_json"),
    ("{}", "unknown_type"),
    ('{"type":"dance"}', "unknown_type"),
    ('{"type":"start","agent":"nobody"}', "unknown_agent"),
    ('{"type":"start","agent":7}', "invalid_field"),
    ('{"type":"start","sample_rate_hz":8000}', "unsupported_sample_rate"),
    ('{"type":"start","context":[1]}', "invalid_field"),
    ('{"type":"dtmf","digit":"5"}', "not_started"),
    (b"\x00" * 64_002, "message_too_big"),
    ("x" * 20_000, "message_too_big"),
]


async def test_bad_input_is_explained_and_the_call_goes_on(caller: Caller, peer: Peer) -> None:
    for sent, code in BAD_INPUTS:
        await caller.socket.send(sent)
        error = await caller.heard("error")
        assert error["code"] == code
        assert error["message"]
        assert error["hint"]
    await caller.start()
    await asyncio.sleep(1)  # errors are limited, too
    await caller.say(type="start")
    assert (await caller.heard("error"))["code"] == "already_started"
    await caller.say(type="dtmf", digit="55")
    assert (await caller.heard("error"))["code"] == "invalid_field"
    await caller.socket.send(TONE + TONE)
    await peer.seen(lambda e: isinstance(e, AudioFrame) and e.session_id == caller.session_id)


async def test_a_flood_of_texts_is_limited_and_the_call_goes_on(caller: Caller, peer: Peer) -> None:
    await caller.start()
    for _ in range(300):
        await caller.say(type="playout", turn=0, sentence=0, heard_ms=0)
    assert (await caller.heard("error"))["code"] == "rate_limited"
    await caller.socket.send(TONE + TONE)
    await peer.seen(lambda e: isinstance(e, AudioFrame) and e.session_id == caller.session_id)
    await asyncio.sleep(0.5)  # quiet enough to be listened to again
    await caller.say(type="hang_up")
    assert await caller.closed() == 1000


async def test_garbage_in_the_log_does_not_end_a_call(caller: Caller, peer: Peer) -> None:
    await caller.start()
    for value in (b"", b"garbage", b"\x00\x00\x00\x00\x63abc", b"\x00\x00\x00\x00\x01\xff"):
        await peer.publish_raw("voice.transcripts", caller.session_id, value)
    await peer.publish(peer.transcript(caller.session_id, TranscriptKind.FINAL, 0, 1, "still there"))
    assert (await caller.heard("final"))["text"] == "still there"


async def test_a_caller_who_closes_the_socket_in_order_has_hung_up(gateway: Gateway, peer: Peer) -> None:
    async with websockets.connect(f"{gateway.ws}/v1/calls") as socket:
        caller = Caller(socket)
        await caller.start()
    assert (await ended(peer, caller.session_id)).reason == "hung_up"


@pytest.mark.parametrize(("limit", "reason"), [("session_idle_s", "idle"), ("session_max_s", "too_long")])
async def test_silence_and_length_end_a_call(kafka: TestBroker, peer: Peer, limit: str, reason: str) -> None:
    async with (
        running_gateway(kafka.settings(api=api(**{limit: 0.3}))) as gateway,
        websockets.connect(f"{gateway.ws}/v1/calls") as socket,
    ):
        caller = Caller(socket)
        await caller.start()
        assert (await caller.heard("ended"))["reason"] == reason
        assert (await ended(peer, caller.session_id)).duration_ms >= 300


async def test_a_full_gateway_refuses_clearly(kafka: TestBroker) -> None:
    async with (
        running_gateway(kafka.settings(api=api(sessions_max=1))) as gateway,
        websockets.connect(f"{gateway.ws}/v1/calls") as first,
        httpx.AsyncClient(base_url=gateway.http) as http,
    ):
        await Caller(first).start()
        async with websockets.connect(f"{gateway.ws}/v1/calls") as second:
            late = Caller(second)
            await late.say(type="start")
            error = await late.heard("error")
            assert error["code"] == "overloaded"
            assert 2 <= error["retry_after_s"] <= 15
            assert await late.closed() == 1013
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"], answer.json()["reason"]) == (503, "overloaded", "sessions")
        assert 2 <= int(answer.headers["retry-after"]) <= 15
        twiml = await http.post("/v1/twilio/voice", data={"CallSid": "CA1"})
        assert '<Reject reason="busy"/>' in twiml.text


async def test_stopping_ends_calls_with_1012(kafka: TestBroker, peer: Peer) -> None:
    async with running_gateway(kafka.settings(api=api())) as gateway:
        socket = await websockets.connect(f"{gateway.ws}/v1/calls")
        caller = Caller(socket)
        await caller.start()
        gateway.server.handle_exit(signal.SIGINT, None)
        assert (await caller.heard("ended"))["reason"] == "shutdown"
        assert await caller.closed() == 1012
    assert (await ended(peer, caller.session_id)).reason == "shutdown"


async def test_a_key_is_demanded_of_requests_and_sockets(kafka: TestBroker) -> None:
    async with (
        running_gateway(kafka.settings(api=api(key="s3cret"))) as gateway,
        httpx.AsyncClient(base_url=gateway.http) as http,
    ):
        assert (await http.get("/healthz")).status_code == 200
        refused = await http.get("/v1/agents")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert (await http.get("/v1/agents", headers={"X-API-Key": "wrong"})).status_code == 401
        for headers in ({"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}):
            assert (await http.get("/v1/agents", headers=headers)).status_code == 200
        assert (await http.get("/registry/subjects", auth=("any", "s3cret"))).status_code == 200
        with pytest.raises(websockets.InvalidStatus) as error:
            await websockets.connect(f"{gateway.ws}/v1/calls")
        assert error.value.response.status_code == 401
        protocols = [websockets.Subprotocol("trunkline"), websockets.Subprotocol("key.s3cret")]
        async with websockets.connect(f"{gateway.ws}/v1/calls", subprotocols=protocols) as socket:
            assert socket.subprotocol == "trunkline"
            await Caller(socket).start()


async def test_sessions_over_rest(gateway: Gateway, caller: Caller, peer: Peer, settings: Settings) -> None:
    await caller.start()
    sid = caller.session_id
    await caller.socket.send(TONE + TONE)
    await peer.seen(lambda e: isinstance(e, AudioFrame) and e.session_id == sid)
    async with httpx.AsyncClient(base_url=gateway.http) as http:
        assert "shop" in [agent["id"] for agent in (await http.get("/v1/agents")).json()["agents"]]
        listed = (await http.get("/v1/sessions")).json()["sessions"]
        assert {"session_id": sid, "live": True} == {k: listed[0][k] for k in ("session_id", "live")}
        assert (await http.get("/readyz")).json()["log"] is True
        assert (await http.delete(f"/v1/sessions/{sid}")).json()["reason"] == "hung_up"
        assert (await caller.heard("ended"))["reason"] == "hung_up"
        await ended(peer, sid)
        events = (await http.get(f"/v1/sessions/{sid}/events")).json()["events"]
        assert [entry["type"] for entry in events] == [
            "trunkline.session.started",
            "trunkline.audio.in",
            "trunkline.session.ended",
        ]
        assert events[1]["event"]["pcm_bytes"] == 1280
        assert (await http.delete(f"/v1/sessions/{sid}")).status_code == 409
        unknown = await http.get("/v1/sessions/nobody/events")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_session")
        assert (await http.get("/nowhere")).json()["code"] == "not_found"
        metrics = (await http.get("/metrics")).text
        assert 'trunkline_api_sessions_ended_total{channel="websocket",reason="hung_up"} 1.0' in metrics
        assert 'trunkline_api_queue_depth{queue="outgoing",unit="bytes"} 0.0' in metrics
        assert sid not in metrics
        assert "/v1/sessions/{session_id}" in (await http.get("/openapi.json")).json()["paths"]


async def test_another_gateway_finds_and_ends_the_call(gateway: Gateway, caller: Caller, settings: Settings) -> None:
    await caller.start()
    settings = settings.model_copy(update={"worker": "1"})
    async with running_gateway(settings) as other, httpx.AsyncClient(base_url=other.http) as http:
        assert (await http.get(f"/v1/sessions/{caller.session_id}")).json()["live"] is True
        assert (await http.delete(f"/v1/sessions/{caller.session_id}")).status_code == 202
    assert (await caller.heard("ended"))["reason"] == "hung_up"


async def test_stock_avro_deserializer_reads_through_the_registry(
    gateway: Gateway, caller: Caller, peer: Peer, settings: Settings
) -> None:
    await caller.start(caller="+15550001")
    await peer.seen(lambda e: isinstance(e, Session) and e.session_id == caller.session_id)
    records = await session_records(settings, caller.session_id)

    def read() -> Any:
        deserializer = AvroDeserializer(SchemaRegistryClient({"url": f"{gateway.http}/registry"}))
        return deserializer(records[0].value, SerializationContext(records[0].topic, MessageField.VALUE))

    event = await asyncio.to_thread(read)
    assert (event["session_id"], event["kind"]) == (caller.session_id, "started")
    assert (event["caller"], len(event["sealed"]) > 28) == (None, True), "who calls is for those with keys"


class Telephone:
    """Speaks Media Streams as Twilio does: connected, start, media every 20 ms, and sends marks back when played."""

    def __init__(self, socket: websockets.ClientConnection, call_sid: str = "CA1") -> None:
        self._socket = socket
        self._call_sid = call_sid
        self._sequence = 0
        self.messages: list[dict[str, Any]] = []

    async def start(self, parameters: dict[str, str]) -> None:
        """What Twilio sends first."""
        await self._socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        start = {
            "accountSid": "AC1",
            "streamSid": "MZ1",
            "callSid": self._call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        }
        await self._send("start", start=start)

    async def media(self, count: int) -> None:
        """Silence from the caller, 20 ms each."""
        for number in range(count):
            payload = base64.b64encode(b"\xff" * 160).decode()
            media = {"track": "inbound", "chunk": str(number + 1), "timestamp": str(number * 20), "payload": payload}
            await self._send("media", media=media)

    async def until(self, event: str) -> dict[str, Any]:
        """The next message of that kind; the others are kept in `messages`."""
        async with asyncio.timeout(20):
            while True:
                message: dict[str, Any] = json.loads(await self._socket.recv())
                self.messages.append(message)
                if message["event"] == event:
                    return message

    async def mark(self, name: str) -> None:
        """A mark comes back."""
        await self._send("mark", mark={"name": name})

    async def stop(self) -> None:
        """The caller hung up."""
        await self._send("stop", stop={"accountSid": "AC1", "callSid": self._call_sid})

    async def _send(self, event: str, **body: Any) -> None:
        self._sequence += 1
        await self._socket.send(
            json.dumps({"event": event, "sequenceNumber": str(self._sequence), "streamSid": "MZ1", **body})
        )


async def test_a_telephone_call(kafka: TestBroker, peer: Peer) -> None:
    settings = kafka.settings(api=api(twilio_auth_token="t0ken", public_url="https://voice.example.com"))
    form = {"CallSid": "CA1", "From": "+15550001", "To": "+15550002"}
    url = "https://voice.example.com/v1/twilio/voice?agent=shop"
    async with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.http) as http:
            assert (await http.post("/v1/twilio/voice?agent=shop", data=form)).status_code == 403
            proof = {"X-Twilio-Signature": RequestValidator("t0ken").compute_signature(url, form)}
            twiml = await http.post("/v1/twilio/voice?agent=shop", data=form, headers=proof)
            parameters = _stream_parameters(twiml.text)
        assert parameters["agent"] == "shop"

        async with websockets.connect(f"{gateway.ws}/v1/twilio/media") as socket:
            await _converse(Telephone(socket), parameters, peer)
        async with websockets.connect(f"{gateway.ws}/v1/twilio/media") as socket:
            forger = Telephone(socket)
            await forger.start({**parameters, "trunkline_token": "guess"})
            assert await Caller(socket).closed() == 1008


def _stream_parameters(twiml: str) -> dict[str, str]:
    """The stream's parameters, from TwiML that Twilio's own library would write the same way."""
    from xml.etree import ElementTree

    from twilio.twiml.voice_response import Connect, Stream, VoiceResponse

    root = ElementTree.fromstring(twiml)
    stream = root.find("Connect/Stream")
    assert stream is not None
    parameters = {tag.attrib["name"]: tag.attrib["value"] for tag in stream.findall("Parameter")}
    action = root.find("Connect").attrib["action"]  # type: ignore[union-attr]
    assert action.startswith("https://voice.example.com/v1/twilio/after?session=")
    expected, connect = VoiceResponse(), Connect(action=action)
    reference = Stream(url="wss://voice.example.com/v1/twilio/media")
    for name, value in parameters.items():
        reference.parameter(name=name, value=value)
    expected.append(connect)
    connect.append(reference)
    assert ElementTree.canonicalize(twiml) == ElementTree.canonicalize(str(expected))
    return parameters


async def _converse(telephone: Telephone, parameters: dict[str, str], peer: Peer) -> None:
    await telephone.start(parameters)
    started = await peer.seen(lambda e: isinstance(e, Session) and e.channel == "twilio")
    sid = started.session_id
    assert started.caller == "+15550001"
    await telephone.media(5)
    frame = await peer.seen(
        lambda e: isinstance(e, AudioFrame) and e.session_id == sid and e.sample_index + len(e.pcm) // 2 == 5 * 320
    )
    assert len(frame.pcm) in (640, 1280, 1920, 2560, 3200)

    await peer.publish(peer.audio(sid, 0, 90, last_of_sentence=True, text="Hello."))
    mark = await telephone.until("mark")
    media = [m for m in telephone.messages if m["event"] == "media"]
    assert [len(base64.b64decode(m["media"]["payload"])) for m in media] == [160] * 5
    assert {m["streamSid"] for m in telephone.messages} == {"MZ1"}
    await telephone.mark(mark["mark"]["name"])
    heard = await control(peer, sid, ControlKind.PLAYOUT)
    assert (heard.turn, heard.heard_ms, heard.heard_text) == (0, 90, "Hello.")

    await peer.publish(peer.audio(sid, 0, 4000, sentence=1, sample_index=1440, last_of_sentence=True))
    mark = await telephone.until("mark")
    await peer.publish(peer.transcript(sid, TranscriptKind.SPEECH_STARTED, 0, 1))
    await telephone.until("clear")
    await telephone.mark(mark["mark"]["name"])  # sent back by the clear: not heard
    await peer.publish(peer.transcript(sid, TranscriptKind.PARTIAL, 0, 1, "Mm-hm."))
    again = await telephone.until("mark")
    assert again["mark"]["name"] != mark["mark"]["name"]
    assert again["mark"]["name"].startswith("0/1/4090/")
    await peer.publish(peer.transcript(sid, TranscriptKind.PARTIAL, 0, 1, "Mm-hm, but wait"))
    await telephone.until("clear")
    await telephone.mark(again["mark"]["name"])
    barge_in = await control(peer, sid, ControlKind.BARGE_IN)
    assert (barge_in.turn, barge_in.sentence) == (0, 1)
    assert 90 <= barge_in.heard_ms < 4000
    await telephone.stop()
    assert (await ended(peer, sid)).reason == "hung_up"
    assert [c.heard_ms for c in peer.of(sid, Control) if c.kind is ControlKind.PLAYOUT] == [90]


async def test_a_telephone_call_goes_on_with_another_stream(kafka: TestBroker, peer: Peer) -> None:
    settings = kafka.settings(api=api(twilio_auth_token="t0ken", public_url="https://voice.example.com"))
    form = {"CallSid": f"CA{uuid.uuid4().hex}", "From": "+15550001"}

    async def asked(http: httpx.AsyncClient, address: str) -> str:
        proof = RequestValidator("t0ken").compute_signature(f"https://voice.example.com{address}", form)
        answer = await http.post(address, data=form, headers={"X-Twilio-Signature": proof})
        assert answer.status_code == 200
        return answer.text

    async with (
        running_gateway(settings) as first,
        running_gateway(settings.model_copy(update={"worker": "1"})) as second,
        httpx.AsyncClient(base_url=first.http) as http,
        httpx.AsyncClient(base_url=second.http) as other,
    ):
        twiml = await asked(http, "/v1/twilio/voice?agent=shop")
        async with websockets.connect(f"{first.ws}/v1/twilio/media") as socket:
            telephone = Telephone(socket, form["CallSid"])
            await telephone.start(_stream_parameters(twiml))
            await telephone.media(4)
            sid = (await peer.seen(lambda e: isinstance(e, Session) and e.channel == "twilio")).session_id
            for number, text in enumerate(("Hello.", "This takes long.")):
                await peer.publish(peer.response(sid, ResponseKind.SENTENCE, 0, sentence=number, text=text))
            await peer.publish(peer.audio(sid, 0, 400, last_of_sentence=True))
            mark = await telephone.until("mark")
            await telephone.mark(mark["mark"]["name"])
            assert (await control(peer, sid, ControlKind.PLAYOUT)).heard_ms == 400
            await peer.publish(peer.audio(sid, 0, 4000, sentence=1, sample_index=6400, last_of_sentence=True))
            await telephone.until("mark")
            await telephone.media(2)
            socket.transport.abort()
        action = re.search(r'action="https://voice.example.com([^"]*)"', twiml)
        assert action is not None
        again = _stream_parameters(await asked(other, html.unescape(action[1])))
        assert again["trunkline_again"] == "1"
        async with websockets.connect(f"{second.ws}/v1/twilio/media") as socket:
            telephone = Telephone(socket, form["CallSid"])
            await telephone.start(again)
            mark = await telephone.until("mark")
            # The first sentence was heard, and of the second what played before the stream broke.
            assert mark["mark"]["name"] == "0/1/4400/0"
            payloads = [m for m in telephone.messages if m["event"] == "media"]
            assert 3000 <= 20 * len(payloads) <= 4000
            await telephone.media(2)
            await peer.seen(lambda e: isinstance(e, AudioFrame) and e.session_id == sid and e.sample_index == 1920)
            await telephone.stop()
            assert (await ended(peer, sid)).reason == "hung_up"
        assert "<Hangup/>" in await asked(http, html.unescape(action[1]))


async def test_text_instead_of_a_voice_is_shown(caller: Caller, peer: Peer) -> None:
    await caller.start()
    await peer.publish(peer.audio(caller.session_id, 0, 0, kind=SpeechChunkKind.TEXT, pcm=b"", text="Hello."))
    assert (await caller.heard("text"))["text"] == "Hello."

"""The whole platform as its user has it: `up`, calls by WebSocket and telephone, questions, garbage, `down`."""

import asyncio
import base64
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.serialization import MessageField, SerializationContext

from api.audio import Halver, pcm_to_mulaw
from api.client import CallResult, load_turns, place_call
from processors.clickhouse.rows import TABLE_OF_TOPIC
from schemas.events import (
    EVENTS,
    DeadLetter,
    Health,
    SpeechChunk,
    Transcript,
    TranscriptKind,
)
from streams.consumer import BEGINNING, END, LogReader, Record, read_range, session_records
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY
from streams.topics import CONVERSATION, TOPICS
from tests.support.calls import check_answered_once, events_of
from tests.support.platform import Platform, running_platform

SPEECH = REPOSITORY / "tests" / "data" / "speech"
SHORT, LONG = SPEECH / "librivox_0880.wav", SPEECH / "librivox_0920.wav"
COMPONENTS = ["broker", "stt", "intent", "llm", "tts", "clickhouse", "webhooks", "api", "erp"]
PATIENCE_S = 60.0


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    with running_platform() as running:
        yield running


async def call(platform: Platform, *files: Path) -> CallResult:
    return await place_call(platform.url, load_turns(files))


@pytest.fixture(scope="session")
def spoken(platform: Platform) -> CallResult:
    """A call of two human turns."""
    # In a thread, since the tests have a loop of their own in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, call(platform, SHORT, LONG)).result()


async def test_a_human_caller_is_answered_once_on_each_turn(platform: Platform, spoken: CallResult) -> None:
    # How well words are heard is measured elsewhere: here most of them tell that it was this caller.
    heard = set(re.findall(r"[a-z]+", spoken.turns[0].transcript.lower()))
    assert len(heard & {"he", "was", "not", "an", "ill", "disposed", "young", "man"}) >= 6
    assert len(spoken.reply) > 16_000
    check_answered_once(spoken, await events_of(platform, spoken.session_id))


def test_every_component_is_at_work(platform: Platform, spoken: CallResult) -> None:
    for _ in range(60):  # some start only once calls can be taken
        (status,) = platform.rows("status")
        if all(row["state"] == "ready" for row in status["components"]):
            break
    assert [row["name"] for row in status["components"]] == COMPONENTS
    for row in status["components"]:
        assert (row["state"], row["restarts"]) == ("ready", 0), row
        os.kill(row["pid"], 0)


async def whole(platform: Platform, topics: Sequence[str]) -> list[Record]:
    async with LogReader(platform.settings, "test.e2e") as reader:
        ranges = {partition: (BEGINNING, END) for topic in topics for partition in await reader.partitions(topic)}
    return [record async for record in read_range(platform.settings, ranges)]


async def test_the_commands_agree_with_the_log(platform: Platform, spoken: CallResult) -> None:
    # Processes speak of themselves on voice.health whenever they have something to say.
    names = [event.TOPIC for event in EVENTS if event is not Health]
    counts = Counter(record.topic for record in await whole(platform, names))
    rows = {row["topic"]: row for row in await asyncio.to_thread(platform.rows, "topics")}
    assert set(rows) == set(TOPICS)
    assert {name: rows[name]["records"] for name in names} == {name: counts[name] for name in names}
    assert {name for name in rows if rows[name]["partitions"] != platform.settings.kafka.partitions} == set()

    shown = await asyncio.to_thread(platform.rows, "show", spoken.session_id)
    events = await events_of(platform, spoken.session_id)
    assert Counter(row["event_id"] for row in shown) == Counter(event.event_id for event in events)
    listed = await asyncio.to_thread(platform.rows, "sessions")
    (own,) = [row for row in listed if row["session_id"] == spoken.session_id]
    assert (own["state"], own["agent"], own["reason"]) == ("ended", spoken.agent, "hung_up")
    assert {row["session_id"] for row in await asyncio.to_thread(platform.rows, "show", "last")} == {
        listed[-1]["session_id"]
    }
    for topic in CONVERSATION:
        expected = sum(topic == event.TOPIC for event in events)
        table = TABLE_OF_TOPIC[topic]
        await platform.counted(f"SELECT count() FROM {table} WHERE session_id = '{spoken.session_id}'", expected)
    turns = await asyncio.to_thread(
        platform.rows, "sql", f"SELECT turn, stt_ms, total_ms FROM turns WHERE session_id = '{spoken.session_id}'"
    )
    answered = {turn.turn for turn in spoken.turns}
    assert answered <= {row["turn"] for row in turns if row["stt_ms"] is not None and row["total_ms"] is not None}


@pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
async def test_a_stock_avro_consumer_reads_the_call(platform: Platform, spoken: CallResult) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    records = await session_records(platform.settings, spoken.session_id)

    def read() -> Counter[tuple[str, str]]:
        deserialize = AvroDeserializer(SchemaRegistryClient({"url": f"{platform.url}/registry"}))
        servers = platform.settings.kafka.bootstrap_servers
        consumer = Consumer({"bootstrap.servers": servers, "group.id": str(uuid.uuid4())})
        found: Counter[tuple[str, str]] = Counter()
        for topic, partition in {(record.topic, record.partition) for record in records}:
            places = [record.offset for record in records if (record.topic, record.partition) == (topic, partition)]
            consumer.assign([TopicPartition(topic, partition, min(places))])
            while places and (message := consumer.poll(20)) is not None:
                assert message.error() is None
                if message.offset() in places:
                    places.remove(message.offset() or 0)
                    value: Any = deserialize(message.value(), SerializationContext(topic, MessageField.VALUE))
                    found[topic, value["event_id"]] += 1
            assert not places
        consumer.close()
        return found

    events = await events_of(platform, spoken.session_id)
    assert await asyncio.to_thread(read) == Counter((event.TOPIC, event.event_id) for event in events)


async def test_four_calls_at_once_are_all_answered(platform: Platform) -> None:
    results = await asyncio.gather(*(call(platform, SHORT) for _ in range(4)))
    assert len({result.session_id for result in results}) == 4
    for result in results:
        check_answered_once(result, await events_of(platform, result.session_id))


async def test_garbage_on_every_topic_leaves_a_call_unharmed(platform: Platform) -> None:
    calling = asyncio.create_task(call(platform, SHORT))
    written = await scatter_garbage(platform, calling)
    result = await calling
    check_answered_once(result, await events_of(platform, result.session_id))

    codec = codec_for(platform.settings)
    letters: Counter[tuple[str, int, int]] = Counter()
    values = {}
    async with asyncio.timeout(PATIENCE_S):
        while set(letters) < set(written):
            letters.clear()
            known = set()
            for record in await whole(platform, [DeadLetter.TOPIC]):
                try:
                    letter = codec.decode(record.topic, record.value)
                except ValueError:
                    continue
                assert isinstance(letter, DeadLetter)
                place = (letter.source_topic, letter.source_partition, letter.source_offset)
                if letter.event_id not in known:
                    known.add(letter.event_id)
                    letters[place] += 1
                    values[place] = letter.record_value
    assert letters == Counter(written.keys())
    assert values == written
    (status,) = await asyncio.to_thread(platform.rows, "status")
    assert {row["state"] for row in status["components"]} == {"ready"}
    assert {row["restarts"] for row in status["components"]} == {0}


async def scatter_garbage(platform: Platform, calling: "asyncio.Task[CallResult]") -> dict[tuple[str, int, int], bytes]:
    """Writes records that are no events to all topics while the call goes on; returns them by place."""
    written: dict[tuple[str, int, int], bytes] = {}
    async with LogProducer(platform.settings, "test.e2e") as producer:
        while not calling.done():
            for event in EVENTS:
                value = os.urandom(24) if len(written) % 2 else b"\0\0\0\0\1" + os.urandom(4)
                key = None if len(written) % 3 else str(uuid.uuid4()).encode()
                place = await producer.publish_raw(event.TOPIC, key, value)
                written[place.topic, place.partition, place.offset] = value
            await asyncio.sleep(0.2)
    return written


async def test_a_telephone_call_is_answered(platform: Platform) -> None:
    (turn,) = load_turns([SHORT])
    silence = np.zeros(16_000, np.int16)
    speech = pcm_to_mulaw(Halver().process(np.concatenate([turn.pcm, silence, silence]).astype("<i2").tobytes()))
    url = platform.url.replace("http", "ws") + "/v1/twilio/media"
    replies: list[dict[str, Any]] = []
    async with websockets.connect(url) as socket, asyncio.timeout(PATIENCE_S):
        await telephone_start(socket)
        speaking = asyncio.create_task(telephone_speak(socket, speech))
        # Each sentence ends with a mark, which is sent back as played; its name begins with the turn.
        while not any(reply["event"] == "mark" and reply["mark"]["name"].startswith("1/") for reply in replies):
            message = json.loads(await socket.recv())
            replies.append(message)
            if message["event"] == "mark":
                await socket.send(json.dumps({"event": "mark", "streamSid": "MZe2e", "mark": message["mark"]}))
        await speaking
        await socket.send(json.dumps({"event": "stop", "streamSid": "MZe2e", "stop": {"callSid": "CAe2e"}}))
    media = [reply for reply in replies if reply["event"] == "media"]
    assert media
    assert all(len(base64.b64decode(reply["media"]["payload"])) == 160 for reply in media)
    listed = await asyncio.to_thread(platform.rows, "sessions")
    (own,) = [row for row in listed if row["channel"] == "twilio"]
    events = await events_of(platform, own["session_id"])
    assert any(isinstance(e, Transcript) and e.kind is TranscriptKind.FINAL for e in events)
    assert any(isinstance(e, SpeechChunk) and e.turn == 1 and e.pcm for e in events)


async def telephone_start(socket: websockets.ClientConnection) -> None:
    await socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
    start = {
        "accountSid": "ACe2e",
        "streamSid": "MZe2e",
        "callSid": "CAe2e",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {},
    }
    await socket.send(json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": "MZe2e", "start": start}))


async def telephone_speak(socket: websockets.ClientConnection, speech: bytes) -> None:
    """20 ms at a time, in real time, as Twilio does."""
    for number in range(len(speech) // 160):
        payload = base64.b64encode(speech[160 * number : 160 * (number + 1)]).decode()
        media = {"track": "inbound", "chunk": str(number + 1), "timestamp": str(number * 20), "payload": payload}
        await socket.send(
            json.dumps({"event": "media", "sequenceNumber": str(number + 2), "streamSid": "MZe2e", "media": media})
        )
        await asyncio.sleep(0.02)

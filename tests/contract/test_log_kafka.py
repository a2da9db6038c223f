"""The log's clients against a real broker: what is published is there, in order, for us and for anybody's consumer."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, Transcript
from streams.client import LogError, Partition
from streams.codec import default_codec, parse_traceparent
from streams.consumer import BEGINNING, END, LogReader, Record, read_range, session_records
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.registry import MEDIA_TYPE, codec_for, respond
from streams.settings import KafkaSettings, Settings
from streams.topics import CONVERSATION, TOPICS
from tests.support.kafka import TestBroker, running_broker


def frame(session_id: str, seq: int) -> AudioFrame:
    now_us = time.time_ns() // 1000
    return AudioFrame(
        event_id=str(uuid.uuid4()),
        session_id=session_id,
        tenant_id="demo",
        agent_id="shop",
        turn=0,
        seq=seq,
        occurred_at=now_us,
        pcm=bytes(640),
        sample_index=320 * seq,
        captured_at=now_us,
    )


async def take(reader: LogReader, count: int) -> list[Record]:
    records: list[Record] = []
    async for record in reader:
        records.append(record)
        if len(records) == count:
            break
    return records


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings()


async def test_an_event_is_where_its_future_says(settings: Settings) -> None:
    session_id = str(uuid.uuid4())
    async with LogProducer(settings, "test") as producer:
        sent = frame(session_id, 0)
        position = await producer.publish(sent)
    number = partition_of(session_id, settings.kafka.partitions)
    assert (position.topic, position.partition) == ("voice.audio.in", number)
    ranges = {Partition("voice.audio.in", number): (position.offset, position.offset + 1)}
    (record,) = [record async for record in read_range(settings, ranges)]
    assert record.key == session_id.encode()
    assert codec_for(settings).decode_keyed(record.topic, record.key, record.value) == sent
    headers = dict(record.headers)
    assert headers["ce_id"] == sent.event_id.encode()
    assert parse_traceparent(headers["traceparent"]) is not None
    assert abs(record.timestamp_ms - sent.occurred_at / 1000) < 60_000


async def test_the_order_of_calls_is_the_order_of_offsets(settings: Settings) -> None:
    sessions = [str(uuid.uuid4()) for _ in range(5)]
    async with LogProducer(settings, "test") as producer:
        futures = [producer.publish(frame(sessions[n % 5], n // 5)) for n in range(500)]
        await producer.flush()
        assert all(future.done() for future in futures)
    for session_id in sessions:
        records = await session_records(settings, session_id, ["voice.audio.in"])
        assert [codec_for(settings).decode(r.topic, r.value).seq for r in records] == list(range(100))


async def test_a_burst_larger_than_a_topics_limit_is_written(settings: Settings) -> None:
    size = TOPICS["voice.audio.in"].record_bytes_max // 20
    async with LogProducer(settings, "test") as producer:
        futures = [producer.publish_raw("voice.audio.in", b"burst", bytes(size)) for _ in range(200)]
        await producer.flush()
    offsets = [future.result().offset for future in futures]
    assert offsets == list(range(offsets[0], offsets[0] + 200))


async def test_partitions_are_chosen_as_the_jvm_does(settings: Settings) -> None:
    async with LogProducer(settings, "test") as producer:
        for session_id in [str(uuid.uuid4()) for _ in range(50)]:
            position = await producer.publish(frame(session_id, 0))
            assert position.partition == partition_of(session_id, settings.kafka.partitions)


async def test_raw_bytes_and_tombstones_go_as_they_are(settings: Settings, new_topic: Any) -> None:
    topic = new_topic()
    async with LogProducer(settings, "test") as producer:
        await producer.publish_raw(topic, b"\xff\x00", b"", [("why", None), ("who", b"\x00")])
        await producer.publish_raw(topic, None, None)
    first, second = [record async for record in read_range(settings, {Partition(topic, 0): (BEGINNING, END)})]
    assert (first.key, first.value, first.headers) == (b"\xff\x00", b"", (("why", None), ("who", b"\x00")))
    assert (second.key, second.value, second.headers) == (None, None, ())


async def test_what_cannot_be_written_fails_its_future_alone(settings: Settings) -> None:
    async with LogProducer(settings, "test") as producer:
        good = producer.publish(frame(str(uuid.uuid4()), 0))
        oversize = producer.publish_raw("voice.audio.in", b"k", bytes(TOPICS["voice.audio.in"].record_bytes_max + 1000))
        huge = producer.publish_raw("voice.audio.in", b"k", bytes(64 * 1024 * 1024))
        with pytest.raises(LogError, match=r"voice\.audio\.in: not written: .*too large"):
            await oversize
        with pytest.raises(LogError, match=r"voice\.audio\.in: not written: .*too large"):
            await huge
        assert (await good).offset >= 0
        assert (await producer.publish(frame(str(uuid.uuid4()), 1))).offset >= 0
        failing = producer.publish_raw("voice.unheard", b"k", b"v")
        with pytest.raises(LogError, match=r"voice\.unheard: not written"):
            await producer.flush()
        assert isinstance(failing.exception(), LogError)


async def test_a_broker_that_is_away_fails_the_future() -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    producer = LogProducer(settings, "test", timeout_s=0.5, queue_records_max=3)
    futures = [producer.publish(frame("s", seq)) for seq in range(5)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(outcome, LogError) for outcome in outcomes)
    assert "queue is full" in str(outcomes[4])
    late = producer.publish(frame("s", 6))
    await producer.close(timeout_s=0)
    with pytest.raises(LogError, match="closed"):
        await late


async def test_partitions_come_and_go_while_reading(settings: Settings, new_topic: Any) -> None:
    topic = new_topic(partitions=3)
    keys = [next(str(n) for n in range(99) if partition_of(str(n), 3) == wanted).encode() for wanted in range(3)]
    async with LogProducer(settings, "test") as producer, LogReader(settings, "test") as reader:
        assert await reader.partitions(topic) == tuple(Partition(topic, number) for number in range(3))
        for round_number in (b"a", b"b"):
            for key in keys:
                await producer.publish_raw(topic, key, round_number)
        await reader.add({Partition(topic, 0): BEGINNING})
        assert [(r.partition, r.offset, r.value) for r in await take(reader, 2)] == [(0, 0, b"a"), (0, 1, b"b")]
        await reader.add({Partition(topic, 1): 1, Partition(topic, 2): END})
        assert [(r.partition, r.offset, r.value) for r in await take(reader, 1)] == [(1, 1, b"b")]
        await reader.remove([Partition(topic, 0)])
        for key in keys:
            await producer.publish_raw(topic, key, b"c")
        assert {(r.partition, r.value) for r in await take(reader, 2)} == {(1, b"c"), (2, b"c")}
        await reader.add({Partition(topic, 1): 0, Partition(topic, 0): 2})
        records = await take(reader, 4)
        assert [r.value for r in records if r.partition == 1] == [b"a", b"b", b"c"]
        assert [r.value for r in records if r.partition == 0] == [b"c"]


async def test_offsets_can_be_asked_for(settings: Settings, new_topic: Any) -> None:
    topic = new_topic(partitions=2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    key = next(str(n) for n in range(99) if partition_of(str(n), 2) == 0).encode()
    async with LogProducer(settings, "test") as producer, LogReader(settings, "test") as reader:
        for value in (b"a", b"b", b"c"):
            await producer.publish_raw(topic, key, value)
        assert await reader.end_offsets([first, second]) == {first: 3, second: 0}
        assert await reader.begin_offsets([first, second]) == {first: 0, second: 0}
        records = [record async for record in read_range(settings, {first: (BEGINNING, END)})]
        at = records[1].timestamp_ms
        expected = next(record.offset for record in records if record.timestamp_ms >= at)
        assert await reader.offsets_at([first, second], at) == {first: expected, second: 0}
        assert await reader.offsets_at([first], at + 3_600_000) == {first: 3}
        assert await reader.end_offsets([]) == {}


async def test_what_is_written_while_a_time_is_looked_up_lies_after_it(
    settings: Settings, new_topic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time after everything there is stands for the end; a record written between any two questions is after it."""
    topic = new_topic()
    partition = Partition(topic, 0)
    writer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    async with LogReader(settings, "test") as reader:
        ask = reader._offsets_at

        def ask_and_write(*arguments: Any) -> dict[Partition, int]:
            found = ask(*arguments)
            writer.produce(topic, b"meanwhile")
            writer.flush()
            return found

        monkeypatch.setattr(reader, "_offsets_at", ask_and_write)
        for at_ms in (time.time_ns() // 1_000_000, time.time_ns() // 1_000_000 + 3_600_000):
            before = await reader.end_offsets([partition])
            assert (await reader.offsets_at([partition], at_ms))[partition] <= before[partition] + 1


async def test_a_group_commits_without_joining(settings: Settings, new_topic: Any) -> None:
    topic, group = new_topic(), f"group-{uuid.uuid4()}"
    partition = Partition(topic, 0)
    async with LogReader(settings, "test", group=group) as reader:
        assert await reader.committed([partition]) == {partition: None}
        await reader.commit({partition: 7})
    async with LogReader(settings, "test", group=group) as reader:
        assert await reader.committed([partition]) == {partition: 7}


async def test_a_topic_that_is_not_there_is_named(settings: Settings) -> None:
    async with LogReader(settings, "test") as reader:
        with pytest.raises(LogError, match=r"voice\.unheard"):
            await reader.partitions("voice.unheard")
        with pytest.raises(LogError, match=r"voice\.unheard-0"):
            await reader.add({Partition("voice.unheard", 0): 0})


async def test_a_closed_reader_ends_its_iteration(settings: Settings) -> None:
    reader = LogReader(settings, "test")
    await reader.add({Partition("voice.control", 0): END})
    task = asyncio.create_task(take(reader, 1000))
    await asyncio.sleep(0)
    await reader.close()
    assert isinstance(await task, list)
    with pytest.raises(LogError, match="closed"):
        await reader.end_offsets([Partition("voice.control", 0)])


async def test_a_full_buffer_pauses_and_loses_nothing(settings: Settings, new_topic: Any) -> None:
    topic = new_topic()
    async with LogProducer(settings, "test") as producer:
        for number in range(3000):
            producer.publish_raw(topic, b"k", b"%d" % number)
        await producer.flush()
    async with LogReader(settings, "test", buffer_records_max=100) as reader:
        await reader.add({Partition(topic, 0): 0})
        values: list[int] = []
        async for batch in reader.batches():
            assert len(batch) <= 100
            values += [int(record.value or b"") for record in batch]
            if len(values) == 3000:
                break
            await asyncio.sleep(0.001)
    assert values == list(range(3000))


async def test_ranges_end_where_the_log_does(settings: Settings, new_topic: Any) -> None:
    topic = new_topic(partitions=2)
    key = next(str(n) for n in range(99) if partition_of(str(n), 2) == 0).encode()
    async with LogProducer(settings, "test") as producer:
        for number in range(10):
            await producer.publish_raw(topic, key, b"%d" % number)

    async def read(start: int, end: int) -> list[int]:
        ranges = {Partition(topic, 0): (start, end), Partition(topic, 1): (BEGINNING, END)}
        return [record.offset async for record in read_range(settings, ranges)]

    assert await read(2, 5) == [2, 3, 4]
    assert await read(8, 100) == [8, 9]
    assert await read(BEGINNING, END) == list(range(10))
    assert await read(END, END) == []
    assert await read(7, 7) == []


async def test_a_session_is_collected_from_all_topics(settings: Settings) -> None:
    session_id = str(uuid.uuid4())
    events = [of_session(event, session_id) for cls in EVENTS for event in json_form.examples(cls)]
    events = [event for event in events if event.TOPIC in CONVERSATION]
    async with LogProducer(settings, "test") as producer:
        for event in sorted(events, key=lambda event: event.TOPIC != "voice.sessions"):
            producer.publish(event)
            producer.publish(of_session(event, str(uuid.uuid4())))
        await producer.flush()
    records = await session_records(settings, session_id)
    assert sorted(record.topic for record in records) == sorted(event.TOPIC for event in events)
    assert [record.timestamp_ms for record in records] == sorted(record.timestamp_ms for record in records)
    assert await session_records(settings, str(uuid.uuid4())) == []


def of_session(event: Event, session_id: str) -> Event:
    return json_form.from_json(type(event), json_form.to_json(event) | {"session_id": session_id})


def of_new_session(event: Event) -> Event:
    ids = {"session_id": str(uuid.uuid4()), "event_id": str(uuid.uuid4())}
    return json_form.from_json(type(event), json_form.to_json(event) | ids)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[TestBroker]:
    """A broker of one's own, to be killed."""
    with running_broker(tmp_path, provisioned=True) as broker:
        yield broker


async def test_reading_and_writing_go_on_after_the_broker_was_killed(mortal: TestBroker) -> None:
    settings, session_id = mortal.settings(), str(uuid.uuid4())
    partition = Partition("voice.audio.in", partition_of(session_id, settings.kafka.partitions))
    async with LogProducer(settings, "test") as producer, LogReader(settings, "test") as reader:
        await reader.add({partition: END})
        await producer.publish(frame(session_id, 0))
        await take(reader, 1)
        await asyncio.to_thread(mortal.kill)
        futures = [producer.publish(frame(session_id, seq)) for seq in range(1, 20)]
        await asyncio.to_thread(mortal.start)
        await asyncio.gather(*futures)
        records = await take(reader, 19)
    assert [codec_for(settings).decode(record.topic, record.value).seq for record in records] == list(range(1, 20))


# A consumer of somebody else's.


@pytest.fixture(scope="module")
def registry_url() -> Iterator[str]:
    """The registry's REST interface on a real HTTP server."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = respond(self.command, url.path, dict(parse_qsl(url.query)), body)
            data = json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", MEDIA_TYPE)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
async def test_an_unmodified_avro_deserializer_reads_every_topic(settings: Settings, registry_url: str) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    session_id = str(uuid.uuid4())
    sent = {event.event_id: event for cls in EVENTS for event in map(of_new_session, json_form.examples(cls))}
    async with LogProducer(settings, "test") as producer:
        positions = await asyncio.gather(*(producer.publish(event) for event in sent.values()))
    starts: dict[tuple[str, int], int] = {}
    for position in positions:
        starts[position[:2]] = min(position.offset, starts.get(position[:2], position.offset))
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": session_id})
    consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry_url}))
    while sent:
        message = await asyncio.to_thread(consumer.poll, 20)
        assert message is not None
        assert message.error() is None
        context = SerializationContext(message.topic() or "", MessageField.VALUE)
        value: Any = deserialize(message.value(), context)
        event = sent.pop(value["event_id"], None)
        if event is not None:
            assert (value["session_id"], message.topic()) == (event.session_id, event.TOPIC)
            assert round(value["occurred_at"].timestamp() * 1e6) == event.occurred_at
            assert set(value) - {"sealed"} == set(event.to_record())
    consumer.close()


@pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
def test_an_unmodified_registry_client_finds_subjects_and_versions(registry_url: str) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    client = SchemaRegistryClient({"url": registry_url})
    assert set(client.get_subjects()) == {f"{event.TOPIC}-value" for event in EVENTS}
    latest = client.get_latest_version("voice.transcripts-value")
    assert latest.version is not None
    assert latest.schema_id is not None
    assert client.get_version("voice.transcripts-value", latest.version).schema_id == latest.schema_id
    assert client.get_schema(latest.schema_id).schema_str == latest.schema.schema_str
    assert client.lookup_schema("voice.transcripts-value", latest.schema).schema_id == latest.schema_id
    assert client.register_schema("voice.transcripts-value", latest.schema) == latest.schema_id
    with pytest.raises(SchemaRegistryError) as caught:
        client.get_latest_version("voice.unheard-value")
    assert (caught.value.http_status_code, caught.value.error_code) == (404, 40401)


@pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
async def test_what_an_unmodified_avro_serializer_writes_is_read(settings: Settings, registry_url: str) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": registry_url})
    schema = client.get_latest_version("voice.transcripts-value").schema
    serialize = AvroSerializer(client, schema, conf={"auto.register.schemas": False, "use.latest.version": True})
    example = json_form.examples(Transcript)[-1]
    value = serialize(
        example.to_record() | {"sealed": b""}, SerializationContext("voice.transcripts", MessageField.VALUE)
    )
    assert value == default_codec().encode(example)

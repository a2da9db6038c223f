"""The topics as a product: stock clients in three languages, and CloudEvents' own library, read them."""

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Consumer, TopicPartition

from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, Access, Checkpoint, Customer, Health, Refusal
from streams.codec import CONTENT_TYPE, default_codec
from streams.jars import client_class_path
from streams.java import find_java
from streams.producer import LogProducer
from streams.settings import REPOSITORY, Settings
from tests.support import node
from tests.support.gateway import running_gateway
from tests.support.kafka import TestBroker, running_broker

EXAMPLES = REPOSITORY / "docs" / "examples"
PATIENCE_S = 120.0
LINES_MAX = 39
# Events of the platform, not of calls: the consumers leave their topics alone.
BESIDE = (Access, Checkpoint, Customer, Health, Refusal)


def events_of(session_id: str) -> list[Event]:
    """The example events of every topic that the consumers read, as a session's, with some of them repeated."""
    examples = [example for event in EVENTS if event not in BESIDE for example in json_form.examples(event)]
    events = [
        replace(example, session_id=session_id, event_id=str(uuid.uuid4()), seq=seq)
        for seq, example in enumerate(examples)
    ]
    return [*events, *events[::3]]


async def publish(settings: Settings, events: list[Event]) -> None:
    async with LogProducer(settings, "test.consumers") as producer:
        await asyncio.gather(*(producer.publish(event) for event in events))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A broker of one's own: a consumer of thirty lines is no match for what other tests write."""
    with running_broker(tmp_path_factory.mktemp("consumers"), provisioned=True) as broker:
        yield broker


def in_python(folder: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "consumer.py")]


def in_node(folder: Path) -> list[str]:
    return node.command(EXAMPLES / "consumer.mjs", folder)


def in_java(folder: Path) -> list[str]:
    runtime = find_java(Settings())
    if "jdk.compiler" not in subprocess.run([runtime.path, "--list-modules"], capture_output=True, text=True).stdout:
        pytest.skip("no Java compiler: install a JDK")
    classes = os.pathsep.join(map(str, client_class_path(Settings())))
    return [str(runtime.path), "-cp", classes, str(EXAMPLES / "Consumer.java")]


@pytest.mark.parametrize("command", [in_python, in_node, in_java])
async def test_a_consumer_reads_every_event_once(
    clean: TestBroker, tmp_path: Path, command: Callable[[Path], list[str]]
) -> None:
    started = command(tmp_path)
    session_id = str(uuid.uuid4())
    events = events_of(session_id)
    await publish(clean.settings(), events)
    expected = {event.event_id: event for event in events}
    async with running_gateway(clean.settings(api={"port": 0})) as gateway:
        arguments = [*started, clean.bootstrap_servers, f"{gateway.http}/registry", f"test-{uuid.uuid4()}"]
        lines = await asyncio.to_thread(read_lines, arguments, tmp_path / "out", session_id, len(expected))
    assert len(lines) == len(expected), "each event once"
    for line in lines:
        topic, partition, offset, text = line.split(" ", 3)
        read = json.loads(text)
        event = expected.pop(read["event_id"])
        assert topic == event.TOPIC
        assert int(partition) >= 0
        assert int(offset) >= 0
        compare(event, read)
    assert not expected


def read_lines(arguments: list[str], out: Path, session_id: str, count: int) -> list[str]:
    """Runs the consumer until it has printed so many of the session's events, and returns those lines."""
    with out.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            found = [line for line in out.read_text("utf-8").splitlines() if session_id in line]
            if len(found) >= count:
                return found
            assert process.poll() is None, out.read_text("utf-8")
            assert time.monotonic() < deadline_s, out.read_text("utf-8")[-2000:]
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def compare(event: Event, read: dict[str, Any]) -> None:
    """The fields that people compute with are the same in every language; times and bytes have forms of their own.

    What is personal is sealed, and reads as empty without the call's key.
    """
    for name, value in json_form.to_json(event).items():
        if name in event.PII:
            assert not read.get(name), f"{event.NAME}.{name}"
            continue
        if isinstance(value, bool) or value is None or name.endswith("_at") or isinstance(getattr(event, name), bytes):
            continue
        if isinstance(value, float):
            (single,) = struct.unpack("<f", struct.pack("<f", value))
            assert float(read.get(name, 0.0)) == pytest.approx(single, rel=1e-6)
        elif isinstance(value, str | int):
            assert read.get(name, "" if isinstance(value, str) else 0) == value, f"{event.NAME}.{name}"
    for name in event.PARTS:
        assert name in event.PII or len(read.get(name, [])) == len(getattr(event, name))


@pytest.mark.parametrize("name", ["consumer.py", "consumer.mjs", "Consumer.java"])
def test_a_consumer_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= LINES_MAX


# CloudEvents.


class AvroFormat:
    """How a consumer tells CloudEvents' library to read the platform's content type."""

    def read_data(self, body: bytes, datacontenttype: str | None) -> dict[str, Any]:
        assert datacontenttype == CONTENT_TYPE
        return {"value": body}


async def test_cloudevents_own_library_reads_the_headers(kafka: TestBroker) -> None:
    session_id = str(uuid.uuid4())
    for event in events_of(session_id)[: len(EVENTS) * 2]:
        async with LogProducer(kafka.settings(), "test.consumers") as producer:
            place = await producer.publish(event)
        record = await asyncio.to_thread(read_one, kafka, place.topic, place.partition, place.offset)
        given = KafkaMessage(dict(record.headers()), record.key(), record.value())
        read = from_kafka_event(given, AvroFormat())  # type: ignore[arg-type]
        assert isinstance(read, CloudEvent)
        assert (read.get_id(), read.get_type(), read.get_subject()) == (event.event_id, event.ce_type, session_id)
        assert read.get_source() == f"/trunkline/{event.tenant_id}/{event.TOPIC}"
        assert read.get_specversion() == "1.0"
        time_at = read.get_time()
        assert time_at is not None
        assert round(time_at.timestamp() * 1_000_000) == event.occurred_at
        assert read.get_datacontenttype() == CONTENT_TYPE
        assert read.get_extension("partitionkey") == session_id
        data = read.get_data()
        assert isinstance(data, dict)
        assert default_codec().decode(event.TOPIC, data["value"]).event_id == event.event_id


def read_one(broker: TestBroker, topic: str, partition: int, offset: int) -> Any:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "unused"})
    consumer.assign([TopicPartition(topic, partition, offset)])
    try:
        (record,) = consumer.consume(1, timeout=60)
        return record
    finally:
        consumer.close()

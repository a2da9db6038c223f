"""The embedded broker: a real Kafka process is started, killed and started again."""

import socket
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streams import broker
from streams.broker import BrokerError
from streams.settings import Settings
from tests.support.kafka import TestBroker, running_broker


def produce(test_broker: TestBroker, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": test_broker.bootstrap_servers, "acks": "all", "linger.ms": 0})
    for value in values:
        producer.produce(topic, value, key=b"session", partition=0)
    assert producer.flush(30) == 0


def consume(test_broker: TestBroker, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": test_broker.bootstrap_servers, "group.id": "unused"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() for message in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def test_killed_and_restarted_it_has_everything_acknowledged(tmp_path: Path) -> None:
    values = [b"%d" % number for number in range(500)]
    with running_broker(tmp_path) as test_broker:
        topic = test_broker.create_topic()
        produce(test_broker, topic, values)
        test_broker.kill()
        test_broker.start()
        assert consume(test_broker, topic, 500) == values
        produce(test_broker, topic, [b"after"])
        test_broker.stop()
        test_broker.start()
        assert consume(test_broker, topic, 501) == [*values, b"after"]


def test_a_cluster_id_that_begins_like_an_option_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0xF8 is a hyphen in URL-safe base64: one random cluster id in 64 begins so."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xf8" + bytes(range(15))))
    broker.prepare(Settings(data_dir=tmp_path), 0)
    assert "cluster.id=-AAB" in next(tmp_path.rglob("meta.properties")).read_text()


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            broker.prepare(Settings(data_dir=tmp_path), port)


def test_a_data_directory_in_use_names_its_owner(kafka: TestBroker) -> None:
    with pytest.raises(BrokerError, match=rf"in use by another broker \(process {kafka.pid}\)"):
        broker.prepare(Settings(data_dir=kafka.data_dir))


async def test_waiting_for_a_broker_that_stopped_fails_at_once() -> None:
    with pytest.raises(BrokerError, match="stopped while it was starting"):
        await broker.wait_ready("127.0.0.1:1", timeout_s=3600, alive=lambda: False)


def test_topics_are_not_made_by_mistake(kafka: TestBroker) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "allow.auto.create.topics": True})
    asked = admin.list_topics("voice.transcript", timeout=10)
    assert "UNKNOWN_TOPIC_OR_PART" in str(asked.topics["voice.transcript"].error)
    assert "voice.transcript" not in admin.list_topics(timeout=10).topics

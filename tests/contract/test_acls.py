"""The rights that docs/examples/acls.sh gives, on a broker that asks for a password and refuses what nobody allowed."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas import json_form
from schemas.events import Response
from streams import broker
from streams.jars import client_class_path
from streams.java import find_java
from streams.producer import LogProducer
from streams.provision import ensure_topics
from streams.settings import REPOSITORY, KafkaSettings, Settings

PATIENCE_S = 120.0
USERS = ("admin", "crm", "erp", "bi")
READERS = {
    "crm": {"sessions", "transcripts", "intents", "responses"},
    "erp": {"intents", "responses"},
    "bi": {"sessions", "transcripts", "intents", "responses", "control", "health", "deliveries", "customers"},
}
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
GUARDED = f"""
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config={_LOGIN} username="admin" password="admin" \
{" ".join(f'user_{user}="{user}"' for user in USERS)};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


def client(servers: str, user: str) -> dict[str, str | int | float | bool]:
    return {
        "bootstrap.servers": servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": user,
    }


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with the platform's topics, where acls.sh was run with Kafka's own command."""
    folder = tmp_path_factory.mktemp("acls")
    command = broker.prepare(Settings(data_dir=folder))
    properties = command.directory / "server.properties"
    # All listeners but the controller's, where this broker alone is.
    properties.write_text(re.sub(r"(?<!CONTROLLER:)\bPLAINTEXT\b", "SASL_PLAINTEXT", properties.read_text()) + GUARDED)
    bound = [sys.executable, "-S", "-E", str(REPOSITORY / "api" / "launch.py"), str(os.getpid()), *command.arguments]
    process = subprocess.Popen(bound, env=dict(command.environment))
    try:
        await_answer(command.bootstrap_servers, process)
        kafka = KafkaSettings(
            bootstrap_servers=command.bootstrap_servers,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="admin",
            sasl_password="admin",
        )
        settings = Settings(data_dir=folder, kafka=kafka)
        ensure_topics(settings)
        give_rights(folder, command.bootstrap_servers)
        asyncio.run(write(settings))
        yield command.bootstrap_servers
    finally:
        process.kill()
        process.wait()


def await_answer(servers: str, process: "subprocess.Popen[bytes]") -> None:
    admin = AdminClient({**client(servers, "admin"), "log_level": "0"})
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, "the broker ended"
        try:
            admin.list_topics(timeout=2)
        except KafkaException:
            assert time.monotonic() < deadline_s
        else:
            return


def give_rights(folder: Path, servers: str) -> None:
    """Runs acls.sh as it is; the command that Kafka's distribution has is made from its jars."""
    classes = os.pathsep.join(map(str, client_class_path(Settings())))
    words = [str(find_java(Settings()).path), "-cp", classes, "org.apache.kafka.tools.AclCommand"]
    (folder / "kafka-acls.sh").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / "kafka-acls.sh").chmod(0o755)
    login = f'sasl.jaas.config={_LOGIN} username="admin" password="admin";\n'
    (folder / "admin.properties").write_text(f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n{login}")
    done = subprocess.run(
        [REPOSITORY / "docs" / "examples" / "acls.sh", servers, folder / "admin.properties"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def write(settings: Settings) -> None:
    async with LogProducer(settings, "test.acls") as producer:
        await producer.publish(json_form.examples(Response)[0])


def read(servers: str, user: str, topic: str, group: str) -> bytes | None:
    """A record's value, or None where there is none; raises KafkaException where it may not be read."""
    consumer = Consumer({**client(servers, user), "group.id": group, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        record = None
        deadline_s = time.monotonic() + (PATIENCE_S if topic == Response.TOPIC else 20.0)
        while record is None and time.monotonic() < deadline_s:
            record = consumer.poll(1.0)
        if record is not None and record.error():
            raise KafkaException(record.error())
        return record.value() if record is not None else None
    finally:
        consumer.close()


@pytest.mark.parametrize("user", sorted(READERS))
def test_a_reader_reads_with_a_group_of_its_own_alone(servers: str, user: str) -> None:
    assert read(servers, user, Response.TOPIC, f"{user}.first")
    with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
        read(servers, user, Response.TOPIC, "trunkline.llm")


@pytest.mark.parametrize("user", sorted(READERS))
def test_a_reader_sees_its_topics_and_no_other(servers: str, user: str) -> None:
    seen = set(AdminClient(client(servers, user)).list_topics(timeout=30).topics)
    assert seen == {f"voice.{topic}" for topic in READERS[user]}
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        read(servers, user, "voice.audio.in", f"{user}.first")


@pytest.mark.parametrize("user", sorted(READERS))
def test_a_reader_writes_nothing(servers: str, user: str) -> None:
    failures: list[str] = []
    producer = Producer({**client(servers, user), "message.timeout.ms": "60000"})
    for topic in (Response.TOPIC, "voice.audio.in"):
        producer.produce(
            topic, b"x", b"x", on_delivery=lambda error, _: failures.append(error.name() if error else "written")
        )
    assert producer.flush(PATIENCE_S) == 0
    assert failures == ["TOPIC_AUTHORIZATION_FAILED"] * 2
    admin = AdminClient(client(servers, user))
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.create_topics([NewTopic("voice.mine", 1, 1)])["voice.mine"].result()

"""Consumers on other machines open sealed fields with the keys that the API gives them, until the call is erased."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas import json_form
from schemas.event import Event
from schemas.events import AudioFrame, Intent, Session, SessionKind, SpeechChunk, Transcript
from streams.consumer import session_records
from streams.jars import client_class_path
from streams.java import find_java
from streams.producer import LogProducer
from streams.registry import codec_for, keyring_for
from streams.settings import REPOSITORY, Settings
from streams.topics import CLEAR
from tests.support import node
from tests.support.gateway import Gateway, running_gateway
from tests.support.kafka import TestBroker
from tests.support.sink import SinkProcess

EXAMPLES = REPOSITORY / "docs" / "examples"
API_KEY = "an API key of the tests"
TEXT = "a sentence that nobody else says here"

Reader = Callable[[Gateway, list[bytes], Path], list[dict[str, Any]]]


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings(api={"port": 0, "key": API_KEY})


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with running_gateway(settings) as running:
        yield running


def events_of(session_id: str) -> list[Event]:
    """Events with words, with parts, with sound."""
    found: list[Event] = []
    for kind in (Transcript, Intent, AudioFrame, SpeechChunk):
        example: Any = next(e for e in json_form.examples(kind) if all(getattr(e, name) for name in kind.PII))
        fields = {"text": TEXT} if "text" in kind.PII else {}
        found.append(replace(example, session_id=session_id, event_id=str(uuid.uuid4()), **fields))
    return found


def in_python(gateway: Gateway, records: list[bytes], folder: Path) -> list[dict[str, Any]]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from opener import Opener  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))
    client = SchemaRegistryClient({"url": f"{gateway.http}/registry", "basic.auth.user.info": f"any:{API_KEY}"})
    decode, opener = AvroDeserializer(client), Opener(gateway.http, API_KEY)
    found = []
    for record in records:
        schema = client.get_schema(int.from_bytes(record[1:5], "big")).schema_str
        event = decode(record, SerializationContext("any", MessageField.VALUE))
        found.append(opener.open(event, json.loads(schema or "")))
    return found


def in_node(gateway: Gateway, records: list[bytes], folder: Path) -> list[dict[str, Any]]:
    shutil.copy(EXAMPLES / "opener.mjs", folder)
    given = [record.hex() for record in records]
    return lines(node.output(node.PROGRAMS / "opened.mjs", folder, gateway.http, API_KEY, *given))


def in_java(gateway: Gateway, records: list[bytes], folder: Path) -> list[dict[str, Any]]:
    runtime = find_java(Settings())
    if "jdk.compiler" not in subprocess.run([runtime.path, "--list-modules"], capture_output=True, text=True).stdout:
        pytest.skip("no Java compiler: install a JDK")
    classes = os.pathsep.join(map(str, client_class_path(Settings())))
    sources = [str(EXAMPLES / "Opener.java"), str(REPOSITORY / "tests" / "java" / "Opened.java")]
    compiler = [str(runtime.path), "-m", "jdk.compiler/com.sun.tools.javac.Main", "-cp", classes, "-d", str(folder)]
    subprocess.run([*compiler, *sources], check=True, timeout=300)
    command = [str(runtime.path), "-cp", os.pathsep.join([classes, str(folder)]), "Opened", gateway.http, API_KEY]
    done = subprocess.run(
        [*command, *(record.hex() for record in records)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return lines(done.stdout)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
@pytest.mark.parametrize("read", [in_python, in_node, in_java])
async def test_a_consumer_opens_what_is_sealed(
    gateway: Gateway, settings: Settings, tmp_path: Path, read: Reader
) -> None:
    session_id = str(uuid.uuid4())
    events = events_of(session_id)
    records = [codec_for(settings).encode(event) for event in events]
    assert not any(TEXT.encode() in record for record in records)
    for event, found in zip(events, await asyncio.to_thread(read, gateway, records, tmp_path), strict=True):
        assert found["event_id"] == event.event_id
        assert found.get("text", "") == ("" if isinstance(event, AudioFrame) else TEXT)
        if isinstance(event, Transcript):
            assert [word["word"] for word in found["words"]] == [word.word for word in event.words]
        if isinstance(event, Intent):
            assert [entity["value"] for entity in found["entities"]] == [entity.value for entity in event.entities]
        if isinstance(event, AudioFrame | SpeechChunk):
            assert sound(found["pcm"]) == event.pcm
    keyring_for(settings).destroy(session_id, "demo")
    for found in await asyncio.to_thread(read, gateway, records, tmp_path):
        assert not found.get("text")
        assert not sound(found.get("pcm", b""))


def sound(value: Any) -> bytes:
    """Bytes as each language prints them: Node as a list of numbers, Java as the characters of Latin-1."""
    if isinstance(value, dict):
        return bytes(value["data"])
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


@pytest.mark.parametrize("name", ["opener.py", "opener.mjs", "Opener.java"])
def test_a_helper_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60


def files_with(folder: Path, secret: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


async def test_keys_are_given_to_those_who_may_have_them(gateway: Gateway, settings: Settings) -> None:
    session_id = str(uuid.uuid4())
    codec_for(settings).encode(events_of(session_id)[0])
    url = f"{gateway.http}/v1/sessions/{session_id}/keys"
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 401
        answer = await client.get(url, headers={"x-api-key": API_KEY})
        assert answer.status_code == 200
        assert set(answer.json()["keys"]) == {"words", "audio"}
        assert answer.headers["cache-control"] == "no-store"
        keyring_for(settings).destroy(session_id, "demo", ["audio"])
        answer = await client.get(url, headers={"x-api-key": API_KEY})
        assert set(answer.json()["keys"]) == {"words"}
        keyring_for(settings).destroy(session_id, "demo")
        answer = await client.get(url, headers={"x-api-key": API_KEY})
        assert (answer.status_code, answer.json()["code"]) == (410, "erased")
        other = url.replace(session_id, str(uuid.uuid4()))
        answer = await client.get(other, headers={"x-api-key": API_KEY})
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_session")


async def test_a_call_is_erased_over_rest(
    gateway: Gateway, settings: Settings, kafka: TestBroker, tmp_path: Path
) -> None:
    session_id = str(uuid.uuid4())
    started, ended = (
        replace(
            json_form.examples(Session)[0],
            event_id=str(uuid.uuid4()),
            session_id=session_id,
            kind=kind,
            caller="+43 660 1234567",
        )
        for kind in (SessionKind.STARTED, SessionKind.ENDED)
    )
    said = events_of(session_id)[0]
    sink = SinkProcess(tmp_path, kafka.bootstrap_servers)
    url = f"{gateway.http}/v1/sessions/{session_id}/erase"
    headers = {"x-api-key": API_KEY}
    async with httpx.AsyncClient(timeout=180, headers=headers) as client, LogProducer(settings, "test") as producer:
        answer = await client.post(url)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_session")
        await producer.publish(started)
        await producer.publish(said)
        answer = await client.post(url)
        assert (answer.status_code, answer.json()["code"]) == (409, "session_live")
        answer = await client.post(url, json={"reason": 7})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
        await producer.publish(ended)
        try:
            await asyncio.to_thread(sink.start)
            where = f"WHERE session_id = '{session_id}'"
            await asyncio.to_thread(sink.wait_for, f"SELECT count() FROM sessions {where} AND caller != ''", 2)
            await asyncio.to_thread(sink.wait_for, f"SELECT count() FROM transcripts {where} AND text = '{TEXT}'", 1)
            answer = await client.post(url, json={"reason": "asked for"})
            assert answer.status_code == 200, answer.text
            made = answer.json()["certificate"]
            assert made["stores"]["clickhouse"]["rows"] == {"controls": 1, "sessions": 2, "transcripts": 1}
            assert sink.number(f"SELECT count() FROM sessions {where} AND caller != ''") == 0
            assert sink.number(f"SELECT count() FROM transcripts {where} AND text != ''") == 0
            sink.wait_for(f"SELECT count() FROM controls {where} AND kind = 'erased'", 2)
            sink.kill()
            assert not files_with(tmp_path, TEXT.encode())
        finally:
            sink.kill()


async def test_a_tenant_may_have_its_words_in_the_clear(
    gateway: Gateway, settings: Settings, kafka: TestBroker, tmp_path: Path
) -> None:
    (tmp_path / "open.yaml").write_text("tenants: [open]\nclear_topic: true\n", encoding="utf-8")
    session_id, other_id = str(uuid.uuid4()), str(uuid.uuid4())
    session = json_form.examples(Session)[0]
    said = replace(events_of(session_id)[0], tenant_id="open", text="my card is 4111 1111 1111 1111")  # type: ignore[call-arg]
    ended = replace(
        session, event_id=str(uuid.uuid4()), session_id=session_id, tenant_id="open", kind=SessionKind.ENDED
    )
    sink = SinkProcess(tmp_path, kafka.bootstrap_servers, TRUNKLINE_PRIVACY__POLICIES_DIR=str(tmp_path))
    async with LogProducer(settings, "test") as producer:
        for event in (said, events_of(other_id)[0], ended):
            await producer.publish(event)
    try:
        await asyncio.to_thread(sink.start)
        for wanted in (session_id, other_id):
            query = f"SELECT count() FROM transcripts WHERE session_id = '{wanted}'"
            await asyncio.to_thread(sink.wait_for, query, 1)
        query = f"SELECT count() FROM sessions WHERE session_id = '{session_id}'"
        await asyncio.to_thread(sink.wait_for, query, 1)
        records = await session_records(settings, session_id, [CLEAR])
        texts = [json.loads(record.value or b"")["data"]["event"].get("text", "") for record in records]
        assert sorted(texts) == ["", "my card is **** **** **** ****"]
        assert not await session_records(settings, other_id, [CLEAR])
        url = f"{gateway.http}/v1/sessions/{session_id}/erase"
        async with httpx.AsyncClient(timeout=180, headers={"x-api-key": API_KEY}) as client:
            answer = await client.post(url)
        assert answer.json()["certificate"]["elsewhere"][CLEAR]["records"] >= 2
    finally:
        sink.kill()

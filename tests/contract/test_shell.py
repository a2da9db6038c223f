"""A stage as it runs: `python -m processors.worker tts` on a real broker with its real voice, killed in the middle."""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import json_form
from schemas.event import Event
from schemas.events import (
    Control,
    DeadLetter,
    Health,
    HealthKind,
    Intent,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
)
from streams import ready
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, read_range
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from streams.topics import state_topic
from tests.support.engines import HostProcess, running_host, settings_in
from tests.support.kafka import TestBroker
from tests.support.process import OwnProcess

PATIENCE_S = 90.0
WORDS = ("One moment please.", "Your order is on its way.", "It should reach you on Monday.")


class Worker(OwnProcess):
    """The tts stage's process."""

    patience_s = PATIENCE_S

    def __init__(self, folder: Path, bootstrap_servers: str, **environment: str) -> None:
        self.settings = Settings(data_dir=folder)
        self._environment = {
            **os.environ,
            "TRUNKLINE_DATA_DIR": str(folder),
            "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "worker.log"

    def start(self) -> None:
        """Returns when it has its partitions."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "processors.worker", "tts"],
                cwd=REPOSITORY,
                env=self._environment,
                stdout=out,
                stderr=out,
            )
        while (facts := ready.read(self.settings, "tts")) is None or facts["pid"] != self._process.pid:
            if self._process.poll() is not None:
                raise RuntimeError(f"the worker ended: {self.log.read_text()}")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(settings_in(tmp_path_factory.mktemp("tts")), "tts") as host:
        yield host


@pytest.fixture
def worker(voice: HostProcess, kafka: TestBroker) -> Iterator[Worker]:
    process = Worker(voice.settings.data_dir, kafka.bootstrap_servers)
    yield process
    process.kill()


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings()


def turn(session_id: str, number: int, words: tuple[str, ...] = WORDS) -> list[Response]:
    """What the llm stage writes for a turn: its sentences and that they were all."""

    def response(seq: int, kind: ResponseKind, sentence: int, text: str = "") -> Response:
        return Response(
            event_id=str(uuid.uuid4()),
            session_id=session_id,
            tenant_id="demo",
            agent_id="shop",
            turn=number,
            seq=seq,
            occurred_at=time.time_ns() // 1000,
            kind=kind,
            sentence=sentence,
            text=text,
        )

    first = number * (len(words) + 1)
    said = [response(first + at, ResponseKind.SENTENCE, at, text) for at, text in enumerate(words)]
    return [*said, response(first + len(words), ResponseKind.COMPLETED, len(words))]


async def whole(settings: Settings, event: type[Event]) -> list[Event]:
    """All events on the topic in the order of their partitions; other tests' garbage is passed over."""
    codec = codec_for(settings)
    async with LogReader(settings, "test.shell") as reader:
        ranges = dict.fromkeys(await reader.partitions(event.TOPIC), (BEGINNING, END))
    found = []
    async for record in read_range(settings, ranges):
        try:
            found.append(codec.decode(record.topic, record.value))
        except ValueError:
            continue
    return found


async def until(settings: Settings, event: type[Event], wanted: Callable[[list[Event]], bool]) -> list[Event]:
    """Waits until what is on the topic fits."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await whole(settings, event)
            if wanted(found):
                return found
            await asyncio.sleep(0.1)


def ended_turns(events: list[Event], sessions: set[str]) -> int:
    return len(
        {
            (event.session_id, event.turn)
            for event in events
            if isinstance(event, SpeechChunk)
            and event.kind is SpeechChunkKind.END_OF_TURN
            and event.session_id in sessions
        }
    )


def check_spoken(events: list[Event], turns: list[list[Response]]) -> None:
    """Every sentence is there once and whole, in order, and the turn's end behind it."""
    chunks: dict[str, dict[str, SpeechChunk]] = defaultdict(dict)
    for event in events:
        if isinstance(event, SpeechChunk):
            chunks[event.session_id].setdefault(event.event_id, event)
    for responses in turns:
        own = [chunk for chunk in chunks[responses[0].session_id].values() if chunk.turn == responses[0].turn]
        assert own[-1].kind is SpeechChunkKind.END_OF_TURN
        assert sum(chunk.kind is SpeechChunkKind.END_OF_TURN for chunk in own) == 1
        audio = own[:-1]
        assert [chunk.sentence for chunk in audio] == sorted(chunk.sentence for chunk in audio)
        next_sample = 0
        for chunk in audio:
            assert (chunk.kind, chunk.sample_index) == (SpeechChunkKind.AUDIO, next_sample)
            next_sample += len(chunk.pcm) // 2
        assert own[-1].sample_index == next_sample
        for sentence in responses[:-1]:
            spoken = [chunk for chunk in audio if chunk.causation_id == sentence.event_id]
            assert [chunk.text for chunk in spoken if chunk.text] == [sentence.text]
            assert [chunk.last_of_sentence for chunk in spoken] == [False] * (len(spoken) - 1) + [True]
            # Half a second of speech and more, whatever voice it is.
            assert sum(len(chunk.pcm) for chunk in spoken) > 16_000


async def committed_everything(settings: Settings, topic: str, group: str = "trunkline.tts") -> None:
    """Waits until the group has committed the topic's ends."""
    async with LogReader(settings, "test.shell.group", group) as reader, asyncio.timeout(PATIENCE_S):
        partitions = await reader.partitions(topic)
        ends = await reader.end_offsets(partitions)
        while True:
            committed = await reader.committed(partitions)
            if all((committed[partition] or 0) >= end for partition, end in ends.items()):
                return
            await asyncio.sleep(0.2)


def says_how_busy(event: Event) -> bool:
    """Whether a worker of the stage measured what its calls take."""
    if not isinstance(event, Health) or event.kind is not HealthKind.LOAD_MEASURED:
        return False
    return event.component == "tts" and event.calls > 0 and event.utilisation > 0


async def test_sentences_are_spoken_in_order_and_then_committed(worker: Worker, settings: Settings) -> None:
    sessions = [str(uuid.uuid4()) for _ in range(4)]
    rounds = [[turn(session_id, number) for session_id in sessions] for number in range(2)]
    turns = [responses for together in rounds for responses in together]
    await asyncio.to_thread(worker.start)
    async with LogProducer(settings, "test.shell") as producer:
        for together in rounds:
            # Sentence about, as calls that go on at the same time.
            for responses in zip(*together, strict=True):
                await asyncio.gather(*(producer.publish(response) for response in responses))
    found = await until(settings, SpeechChunk, lambda events: ended_turns(events, set(sessions)) == len(turns))
    check_spoken(found, turns)
    ids = [event.event_id for event in found if event.session_id in sessions]
    assert len(ids) == len(set(ids))
    await committed_everything(settings, Response.TOPIC)
    # How busy it is, it says while it has calls: the gateways reckon with it.
    await until(settings, Health, lambda events: any(says_how_busy(event) for event in events))
    assert await asyncio.to_thread(worker.stop) == 0


async def test_a_worker_killed_at_work_says_everything_once(worker: Worker, settings: Settings) -> None:
    sessions = [str(uuid.uuid4()) for _ in range(3)]
    turns = [turn(session_id, number) for number in range(3) for session_id in sessions]
    async with LogProducer(settings, "test.shell") as producer:
        for responses in turns:
            for response in responses:
                await producer.publish(response)
    for kill_after in (1, 8, 20):
        await asyncio.to_thread(worker.start)
        await until(
            settings,
            SpeechChunk,
            lambda events, least=kill_after: sum(event.session_id in sessions for event in events) >= least,  # type: ignore[misc]
        )
        worker.kill()
    await asyncio.to_thread(worker.start)
    found = await until(settings, SpeechChunk, lambda events: ended_turns(events, set(sessions)) == len(turns))
    check_spoken(found, turns)
    await committed_everything(settings, Response.TOPIC)


async def test_bad_records_are_dead_letters_and_the_next_is_spoken(worker: Worker, settings: Settings) -> None:
    codec = codec_for(settings)
    session_id = str(uuid.uuid4())
    good = turn(session_id, 0, WORDS[:1])
    key = session_id.encode()
    value = codec.encode(good[0])
    foreign = codec.encode(replace(json_form.examples(Intent)[0], session_id=session_id))
    bad: list[tuple[bytes | None, bytes | None, str]] = [
        (key, b"garbage", "not_framed"),
        (key, b"\0\xff\xff\xff\xff" + value[5:], "unknown_schema"),
        (key, foreign, "wrong_schema_for_topic"),
        (key, value[:-3], "truncated"),
        (key, value + b"x", "invalid_field"),
        (b"somebody else", value, "wrong_key"),
        (None, value, "wrong_key"),
        (key, b"", "empty"),
    ]
    await asyncio.to_thread(worker.start)
    async with LogProducer(settings, "test.shell") as producer:
        places = [await producer.publish_raw(Response.TOPIC, key, value, [("x", b"1")]) for key, value, _ in bad]
        # Topics that this stage reads and does not guard.
        await producer.publish_raw(Session.TOPIC, key, b"not mine")
        await producer.publish_raw(Control.TOPIC, key, b"not mine")
        for response in good:
            await producer.publish(response)
    found = await until(settings, SpeechChunk, lambda events: ended_turns(events, {session_id}) == 1)
    check_spoken(found, [good])
    for topic in (Response.TOPIC, Session.TOPIC, Control.TOPIC):
        await committed_everything(settings, topic)
    letters = [letter for letter in await whole(settings, DeadLetter) if isinstance(letter, DeadLetter)]
    for (record_key, record_value, reason), place in zip(bad, places, strict=True):
        own = [
            letter
            for letter in letters
            if (letter.source_topic, letter.source_partition, letter.source_offset) == place
        ]
        assert len(own) == 1, reason
        assert (own[0].stage, own[0].reason) == ("tts", reason)
        assert (own[0].record_key, own[0].record_value) == (record_key, record_value)
        assert own[0].record_headers == {"x": b"1"}
    mine = {Partition(letter.source_topic, 0).topic for letter in letters if letter.stage == "tts"}
    assert mine == {Response.TOPIC}


async def test_a_record_in_a_partition_that_is_not_its_keys_is_refused(worker: Worker, settings: Settings) -> None:
    """As written by a producer with another partitioner; where it lies, nobody would keep its session's order."""
    from confluent_kafka import Producer

    session_id = str(uuid.uuid4())
    good = turn(session_id, 0, WORDS[:1])
    elsewhere = (partition_of(session_id, settings.kafka.partitions) + 1) % settings.kafka.partitions
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    value = codec_for(settings).encode(good[0])
    producer.produce(Response.TOPIC, value, session_id.encode(), partition=elsewhere)
    producer.flush()
    await asyncio.to_thread(worker.start)
    letters = await until(
        settings,
        DeadLetter,
        lambda events: any(isinstance(e, DeadLetter) and e.record_value == value for e in events),
    )
    own = [e for e in letters if isinstance(e, DeadLetter) and e.record_value == value]
    assert [(letter.reason, letter.source_partition) for letter in own] == [("wrong_key", elsewhere)]
    assert not any(event.session_id == session_id for event in await whole(settings, SpeechChunk))


async def test_what_comes_after_the_end_of_a_call_is_dropped(worker: Worker, settings: Settings) -> None:
    session_id = str(uuid.uuid4())
    first, late = turn(session_id, 0, WORDS[:1]), turn(session_id, 1, WORDS[:1])
    end = replace(
        json_form.examples(Session)[0], event_id=str(uuid.uuid4()), session_id=session_id, kind=SessionKind.ENDED
    )
    await asyncio.to_thread(worker.start)
    async with LogProducer(settings, "test.shell") as producer:
        for response in first:
            await producer.publish(response)
        await until(settings, SpeechChunk, lambda events: ended_turns(events, {session_id}) == 1)
        await producer.publish(end)
        await committed_everything(settings, Session.TOPIC)
        for response in late:
            await producer.publish(response)
    await committed_everything(settings, Response.TOPIC)
    assert ended_turns(await whole(settings, SpeechChunk), {session_id}) == 1


async def snapshots_of(settings: Settings, session_id: str) -> dict[bytes, bytes | None]:
    """What is left of the session's snapshots, by key; None where one was deleted."""
    where = Partition(state_topic("tts"), partition_of(session_id, settings.kafka.partitions))
    records = [record async for record in read_range(settings, {where: (BEGINNING, END)})]
    return {record.key: record.value for record in records if record.key and record.key.startswith(session_id.encode())}


async def test_a_session_that_nobody_ends_is_let_go_and_may_go_on(
    voice: HostProcess, kafka: TestBroker, settings: Settings
) -> None:
    session_id = str(uuid.uuid4())
    short = {"SESSION_KEPT_S": "0.5", "API__SESSION_IDLE_S": "0.5", "API__RESUME_GRACE_S": "0"}
    environment = {f"TRUNKLINE_{name}": value for name, value in short.items()}
    worker = Worker(voice.settings.data_dir, kafka.bootstrap_servers, **environment)
    first, second = turn(session_id, 0, WORDS[:1]), turn(session_id, 1, WORDS[:1])
    try:
        await asyncio.to_thread(worker.start)
        async with LogProducer(settings, "test.shell") as producer:
            await asyncio.gather(*(producer.publish(response) for response in first))
            async with asyncio.timeout(PATIENCE_S):
                while set((await snapshots_of(settings, session_id)).values()) != {None}:  # noqa: ASYNC110 - another process writes
                    await asyncio.sleep(0.2)
            await asyncio.gather(*(producer.publish(response) for response in second))
        spoken = await until(settings, SpeechChunk, lambda events: ended_turns(events, {session_id}) == 2)
        check_spoken(spoken, [first, second])
        await committed_everything(settings, Response.TOPIC)
        assert await asyncio.to_thread(worker.stop) == 0
    finally:
        worker.kill()

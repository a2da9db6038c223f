"""What bites where Kafka, Faust and dying processes meet; each test fails when the protection against it is taken out.

docs/adr/0006-stage-shell-hazards.md lists all hazards, with the tests of those that are tried elsewhere.
"""

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from faust.types import TP

from processors.pipeline import STAGES
from processors.recovery import Recovered, Snapshots, recover
from processors.session import SEEN_MAX, Seen, Snapshot
from schemas import json_form
from schemas.events import Intent, Transcript
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, read_range
from streams.faust_app import StageApp, create_app, run
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from streams.topics import state_topic
from tests.support.kafka import TestBroker, running_broker, running_cluster

LIMIT_S = 60.0


async def eventually(true: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110  it happens in other threads and processes
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A broker with nobody else's workers in the stages' groups."""
    with running_broker(tmp_path_factory.mktemp("hazards"), provisioned=True) as broker:
        yield broker


# Workers of a stage whose state counts.


class Counting:
    """A process of `tests.support.counting_worker`."""

    def __init__(self, broker: TestBroker, name: str, folder: Path) -> None:
        self._command = [sys.executable, "-u", "-m", "tests.support.counting_worker", broker.bootstrap_servers, name]
        self._file = folder / f"{name}-{uuid.uuid4().hex}"
        self.log = folder / f"{self._file.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and does not wait."""
        self._file.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen([*self._command, str(self._file)], cwd=REPOSITORY, stdout=out, stderr=out)

    async def ready(self) -> None:
        """Returns when it has partitions."""
        await eventually(self._file.exists)

    def send(self, number: signal.Signals) -> None:
        """Sends it the signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Waits until it ends, and returns the exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, LIMIT_S)

    def clean_up(self) -> None:
        """Ends it whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def workers(own: TestBroker, tmp_path: Path) -> Iterator[Callable[[str], Counting]]:
    """Makes workers by name; they end with the test."""
    made: list[Counting] = []

    def make(name: str) -> Counting:
        made.append(Counting(own, name, tmp_path))
        return made[-1]

    yield make
    for worker in made:
        worker.clean_up()


class Calls:
    """Calls whose transcripts are written one after the other."""

    def __init__(self, settings: Settings, calls: int) -> None:
        self.settings = settings
        self.sessions = [str(uuid.uuid4()) for _ in range(calls)]
        self.written: dict[str, list[str]] = defaultdict(list)
        self._example = json_form.examples(Transcript)[0]

    async def write(self, producer: LogProducer, count: int, pause_s: float = 0.0) -> None:
        """Writes so many transcripts, each for the next call."""
        sent = []
        for number in range(count):
            session_id = self.sessions[number % len(self.sessions)]
            event = replace(
                self._example,
                event_id=str(uuid.uuid4()),
                session_id=session_id,
                occurred_at=time.time_ns() // 1000,
                causation_id=None,
            )
            self.written[session_id].append(event.event_id)
            sent.append(producer.publish(event))
            if pause_s:
                await asyncio.sleep(pause_s)
        await asyncio.gather(*sent)

    async def numbers(self) -> dict[str, dict[str, str]]:
        """What the stage said to each transcript: the first event with an id is the truth."""
        numbers: dict[str, dict[str, str]] = defaultdict(dict)
        seen: set[str] = set()
        codec = codec_for(self.settings)
        where = {Partition(Intent.TOPIC, partition_of(session, 8)): (BEGINNING, END) for session in self.sessions}
        async for record in read_range(self.settings, where):
            event = codec.decode(record.topic, record.value)
            assert isinstance(event, Intent)
            if event.session_id in self.written and event.event_id not in seen and event.causation_id is not None:
                seen.add(event.event_id)
                assert event.causation_id not in numbers[event.session_id]
                numbers[event.session_id][event.causation_id] = event.intent
        return numbers

    async def all_counted(self) -> None:
        """Waits until every transcript has its answer, and checks that none was skipped or counted twice."""
        total = sum(map(len, self.written.values()))
        async with asyncio.timeout(LIMIT_S):
            while True:
                found = await self.numbers()
                if sum(map(len, found.values())) >= total:
                    break
                await asyncio.sleep(0.2)
        for session_id, written in self.written.items():
            said = [found[session_id][event_id] for event_id in written]
            assert said == [str(number + 1) for number in range(len(written))]


async def committed(settings: Settings) -> dict[Partition, int]:
    """What is missing until the group has committed everything, by partition."""
    async with LogReader(settings, "test.hazards", STAGES["intent"].group) as reader:
        partitions = await reader.partitions(Transcript.TOPIC)
        ends, done = await reader.end_offsets(partitions), await reader.committed(partitions)
    return {partition: end - (done[partition] or 0) for partition, end in ends.items() if end != (done[partition] or 0)}


async def test_a_rebalance_under_load_skips_nothing_and_counts_nothing_twice(
    own: TestBroker, workers: Callable[[str], Counting]
) -> None:
    """A second worker joins, the first is killed and comes back: with a Faust table 75 of 4,400 events were skipped."""
    first, second = workers("0"), workers("1")
    calls = Calls(own.settings(), 40)
    first.start()
    await first.ready()
    async with LogProducer(own.settings(), "test.hazards") as producer:
        writing = asyncio.create_task(calls.write(producer, 4400, pause_s=0.002))
        await asyncio.sleep(2)
        second.start()
        await second.ready()
        await asyncio.sleep(1)
        first.send(signal.SIGKILL)
        await first.ended()
        await asyncio.sleep(1.5)
        first.start()
        await first.ready()
        await writing
    await calls.all_counted()


async def test_a_worker_that_wakes_up_after_it_was_replaced_does_no_harm(
    own: TestBroker, workers: Callable[[str], Counting]
) -> None:
    """It was stopped with work in hand; another took its partitions; awake, it repeats by id and joins again."""
    sleeper, other = workers("0"), workers("1")
    calls = Calls(own.settings(), 20)
    sleeper.start()
    await sleeper.ready()
    async with LogProducer(own.settings(), "test.hazards") as producer:
        await calls.write(producer, 200)
        await asyncio.sleep(0.05)
        sleeper.send(signal.SIGSTOP)
        other.start()
        await other.ready()
        await calls.write(producer, 200)
        await calls.all_counted()
        sleeper.send(signal.SIGCONT)
        await calls.write(producer, 400, pause_s=0.005)
        await calls.all_counted()
        other.send(signal.SIGKILL)
        await other.ended()
        # The one that slept is a member again, and knows the calls as the other left them.
        await calls.write(producer, 200)
        await calls.all_counted()


async def test_of_two_processes_with_one_name_one_ends(own: TestBroker, workers: Callable[[str], Counting]) -> None:
    """Whichever joined first is fenced, and must not stay as if it owned anything: a supervisor would not see it."""
    sleeper, successor = workers("0"), workers("0")
    calls = Calls(own.settings(), 10)
    sleeper.start()
    await sleeper.ready()
    async with LogProducer(own.settings(), "test.hazards") as producer:
        await calls.write(producer, 50)
        sleeper.send(signal.SIGSTOP)
        successor.start()
        await successor.ready()
        await calls.write(producer, 50)
        sleeper.send(signal.SIGCONT)
        both = [asyncio.create_task(worker.ended()) for worker in (sleeper, successor)]
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() != 0 for task in done] == [True]
        ended = (sleeper, successor)[both.index(next(iter(done)))]
        assert b"fenced" in ended.log.read_bytes()
        await calls.write(producer, 50)
        await calls.all_counted()
        for worker in (sleeper, successor):
            worker.clean_up()
        await asyncio.gather(*both)


async def test_a_worker_that_is_asked_to_stop_leaves_nothing_to_repeat(
    own: TestBroker, workers: Callable[[str], Counting]
) -> None:
    """Its snapshots are written at once, not when their time comes, so that the next owner begins where it ended."""
    worker = workers("0")
    calls = Calls(own.settings(), 30)
    worker.start()
    await worker.ready()
    async with LogProducer(own.settings(), "test.hazards") as producer:
        for _ in range(5):
            await calls.write(producer, 60)
            await calls.all_counted()
            worker.send(signal.SIGTERM)
            assert await worker.ended() == 0
            assert await committed(own.settings()) == {}
            worker.start()
            await worker.ready()
        await calls.write(producer, 60)
    await calls.all_counted()


# Snapshots of two lives of a worker.


def snapshot(state: bytes, offset: int) -> bytes:
    return msgspec.msgpack.encode(Snapshot(state, {Transcript.TOPIC: offset}, offset, b""))


async def found_of(settings: Settings, number: int) -> Recovered:
    nothing = {Partition(event.TOPIC, number): None for event in STAGES["intent"].consumes}
    async with LogReader(settings, "test.hazards", note_ends=True) as reader:
        return (await recover(reader, STAGES["intent"], codec_for(settings), nothing))[number]


async def test_a_late_snapshot_of_a_former_owner_does_not_count(own: TestBroker) -> None:
    session_id = str(uuid.uuid4())
    settings, number = own.settings(), partition_of(session_id, 8)
    async with LogProducer(settings, "test.hazards") as producer:
        former, owner = Snapshots(producer, "intent", "former"), Snapshots(producer, "intent", "owner")
        await former.write(session_id, number, snapshot(b"1", 10))
        owner.inherit(number, (await found_of(settings, number)).keys)
        await owner.write(session_id, number, snapshot(b"2", 20))
        (key,) = (await found_of(settings, number)).keys[session_id]
        assert key.endswith(b".owner")
        await former.write(session_id, number, snapshot(b"late", 11))
        found = await found_of(settings, number)
        assert msgspec.msgpack.decode(found.restored.snapshots[session_id], type=Snapshot).state == b"2"
        assert len(found.keys[session_id]) == 2
        owner.inherit(number, found.keys)
        await owner.write(session_id, number, None)
        found = await found_of(settings, number)
        assert session_id not in found.restored.snapshots
        assert session_id not in found.keys


async def test_garbage_among_the_snapshots_is_passed_over(own: TestBroker) -> None:
    session_id = str(uuid.uuid4())
    settings, number = own.settings(), partition_of(session_id, 8)
    topic = state_topic("intent")
    async with LogProducer(settings, "test.hazards") as producer:
        await Snapshots(producer, "intent", "life").write(session_id, number, snapshot(b"good", 1))
        for key, value in ((session_id.encode(), b"garbage"), (b"\xff\xfe", b"\x94"), (None, b""), (b"", b"\x00")):
            await producer.publish_raw(topic, key or b"\x00", value, partition=number)
        found = await found_of(settings, number)
        assert msgspec.msgpack.decode(found.restored.snapshots[session_id], type=Snapshot).state == b"good"
        for key in (session_id.encode(), b"\xff\xfe", b"\x00", b""):
            await producer.publish_raw(topic, key, None, partition=number)


def test_the_ids_kept_in_a_snapshot_are_bounded() -> None:
    seen = Seen()
    ids = [str(uuid.uuid4()) for _ in range(3 * SEEN_MAX)]
    assert all(seen.add(event_id) for event_id in ids)
    again = Seen(seen.digests(without=ids[-1:]))
    assert len(seen.digests(without=())) <= 8 * SEEN_MAX
    assert not any(again.add(event_id) for event_id in ids[-SEEN_MAX + 1 : -1])
    assert again.add(ids[-1])


# Brokers that go away.


@asynccontextmanager
async def stage(settings: Settings, group: str, topic: str, handle: Callable[[Any], None]) -> AsyncIterator[StageApp]:
    """An application that calls `handle` with each record and acknowledges it; fails when the application did."""
    app = create_app(settings, group, [topic])

    async def shell(stream: Any) -> None:
        async for event in stream.noack().events():
            handle(event)
            event.ack()

    app.read_with(shell)
    stopping = asyncio.Event()
    running = asyncio.create_task(run(app, stopping))
    try:
        yield app
        assert not running.done(), "the application ended by itself"
    finally:
        stopping.set()
        await asyncio.wait_for(running, LIMIT_S)


class Witness:
    """Writes numbers to a partition and reads them back twice: as a stage does and as the gateway and the sink do."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = "voice.control"
        self.group = f"test.{uuid.uuid4()}"
        self.assignments = 0
        self.acknowledged: list[int] = []
        self.by_stage: list[int] = []
        self.by_reader: list[int] = []
        self.ready = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Works until `stop`."""
        async with (
            LogProducer(self.settings, "test.hazards") as producer,
            LogReader(self.settings, "test.hazards") as reader,
            stage(self.settings, self.group, self.topic, lambda event: self._note(event, self.by_stage)) as app,
        ):
            where = Partition(self.topic, 0)
            await reader.add({where: BEGINNING})
            await app.ready.wait()
            reading = asyncio.create_task(self._read(reader))
            sent = []
            number = 0
            while not self._stopped.is_set():
                future = producer.publish_raw(self.topic, b"k", str(number).encode(), partition=0)
                future.add_done_callback(lambda done, number=number: self._acknowledged(done, number))  # type: ignore[misc]
                sent.append(future)
                number += 1
                if len(self.by_stage) > 20 and len(self.by_reader) > 20:
                    self.ready.set()
                await asyncio.sleep(0.005)
            await asyncio.gather(*sent)
            await eventually(lambda: len(set(self.by_stage)) >= number and len(self.by_reader) >= number)
            reading.cancel()
            assert self.acknowledged == list(range(number))
            assert self.by_reader == list(range(number))
            # Each number for the first time, in order; what was not committed before a failure may come again.
            assert list(dict.fromkeys(self.by_stage)) == list(range(number))
            self.assignments = app.consumer_generation_id

    def stop(self) -> None:
        """Ends the writing."""
        self._stopped.set()

    def _note(self, event: Any, numbers: list[int]) -> None:
        if event.message.partition == 0:
            numbers.append(int(event.value))

    def _acknowledged(self, done: "asyncio.Future[Any]", number: int) -> None:
        if not done.cancelled() and done.exception() is None:
            self.acknowledged.append(number)

    async def _read(self, reader: LogReader) -> None:
        async for record in reader:
            self.by_reader.append(int(record.value or b""))


async def test_one_broker_killed_and_restarted_stops_nobody(tmp_path: Path) -> None:
    with_broker = running_broker(tmp_path, provisioned=True)
    broker = await asyncio.to_thread(with_broker.__enter__)
    try:
        witness = Witness(broker.settings())
        running = asyncio.create_task(witness.run())
        for _ in range(2):
            await witness.ready.wait()
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(3)
            await asyncio.to_thread(broker.start)
            before = len(witness.by_stage), len(witness.by_reader)
            await eventually(
                lambda before=before: len(witness.by_stage) > before[0] and len(witness.by_reader) > before[1]  # type: ignore[misc]
            )
        witness.stop()
        await asyncio.wait_for(running, LIMIT_S)
    finally:
        await asyncio.to_thread(with_broker.__exit__, None, None, None)


async def test_a_leader_killed_loses_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    with_cluster = running_cluster(tmp_path)
    cluster = await asyncio.to_thread(with_cluster.__enter__)
    try:
        witness = Witness(cluster.settings())
        running = asyncio.create_task(witness.run())
        await asyncio.wait_for(witness.ready.wait(), LIMIT_S)
        leader = cluster.leader(witness.topic, 0)
        await asyncio.to_thread(cluster.kill_broker, leader)
        await eventually(lambda: cluster.leader(witness.topic, 0) not in (leader, -1))
        before = len(witness.by_stage), len(witness.by_reader)
        await eventually(lambda: len(witness.by_stage) > before[0] and len(witness.by_reader) > before[1])
        witness.stop()
        await asyncio.wait_for(running, LIMIT_S)
    finally:
        await asyncio.to_thread(with_cluster.__exit__, None, None, None)


async def test_a_group_outlasts_the_death_of_its_coordinator(tmp_path: Path) -> None:
    """Workers that were given up meanwhile would all read back at once, with their callers waiting."""
    with_cluster = running_cluster(tmp_path)
    cluster = await asyncio.to_thread(with_cluster.__enter__)
    try:
        witness = Witness(cluster.settings())
        running = asyncio.create_task(witness.run())
        await asyncio.wait_for(witness.ready.wait(), LIMIT_S)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

        def coordinator() -> int:
            """-1 while nobody is."""
            try:
                return int(admin.describe_consumer_groups([witness.group])[witness.group].result().coordinator.id)
            except KafkaException:
                return -1

        dead = await asyncio.to_thread(coordinator)
        await asyncio.to_thread(cluster.kill_broker, dead)
        await eventually(lambda: cluster.leader(witness.topic, 0) not in (dead, -1))
        async with asyncio.timeout(LIMIT_S):
            while await asyncio.to_thread(coordinator) in (dead, -1):  # noqa: ASYNC110  it happens in other processes
                await asyncio.sleep(0.1)
        before = len(witness.by_stage)
        await eventually(lambda: len(witness.by_stage) > before)
        witness.stop()
        await asyncio.wait_for(running, LIMIT_S)
        assert witness.assignments == 1
    finally:
        await asyncio.to_thread(with_cluster.__exit__, None, None, None)


# The transport's ledger, after a jump.


async def test_after_a_seek_records_count_anew(kafka: TestBroker, new_topic: Callable[..., str]) -> None:
    """Acknowledgements of records from before the jump must not move the commit past what is delivered again."""
    topic, group = new_topic(), f"test.{uuid.uuid4()}"
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(10):
        producer.produce(topic, str(number).encode(), partition=0)
    producer.flush()
    events: list[Any] = []
    app = create_app(kafka.settings(), group, [topic])

    async def shell(stream: Any) -> None:
        async for event in stream.noack().events():
            events.append(event)

    app.read_with(shell)
    stopping = asyncio.Event()
    running = asyncio.create_task(run(app, stopping))
    await eventually(lambda: len(events) == 10)
    await app.consumer.seek(TP(topic, 0), 4)
    await eventually(lambda: len(events) == 16)
    assert [event.message.offset for event in events[10:]] == [4, 5, 6, 7, 8, 9]
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group})

    async def commits() -> int:
        await app.consumer.commit()
        return (await asyncio.to_thread(reader.committed, [TopicPartition(topic, 0)], 30))[0].offset

    for event in events[11:]:
        event.ack()
    assert await commits() == 4
    events[10].ack()
    assert await commits() == 10
    reader.close()
    stopping.set()
    await asyncio.wait_for(running, LIMIT_S)

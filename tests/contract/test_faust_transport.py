"""The Faust transport on a real broker: order, commits, partitions coming and going, full buffers."""

import asyncio
import ctypes
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.client import Partition
from streams.faust_app import StageApp, create_app, run
from streams.faust_transport import Committed, Confirm
from streams.settings import REPOSITORY
from tests.support.kafka import TestBroker

LIMIT_S = 30.0

Handle = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def stage(
    kafka: TestBroker, group: str, topics: list[str], handle: Handle, **options: Any
) -> AsyncIterator[StageApp]:
    """An application whose agent awaits `handle(event)` for each record; it acknowledges nothing by itself."""
    app = create_app(kafka.settings(), group, topics, **options)

    async def shell(stream: Any) -> None:
        async for event in stream.noack().events():
            await handle(event)

    app.read_with(shell)
    stopping = asyncio.Event()
    running = asyncio.create_task(run(app, stopping))
    try:
        yield app
    finally:
        stopping.set()
        await asyncio.wait_for(running, LIMIT_S)


async def eventually(true: Callable[[], Any]) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110  it happens in other threads and processes
            await asyncio.sleep(0.01)


async def settled(read: Callable[[], int]) -> int:
    """The number, once it has not changed for a while."""
    last, unchanged = read(), 0
    async with asyncio.timeout(LIMIT_S):
        while unchanged < 20:
            await asyncio.sleep(0.05)
            unchanged = unchanged + 1 if read() == last else 0
            last = read()
    return last


def write(kafka: TestBroker, topic: str, count: int, partition: int = 0, first: int = 0) -> None:
    """Writes records whose values are their numbers."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 1})
    for number in range(first, first + count):
        producer.produce(topic, str(number).encode(), b"key", partition)
    assert producer.flush(LIMIT_S) == 0


def committed(kafka: TestBroker, group: str, topic: str, partition: int = 0) -> int:
    """What the group has committed; negative where nothing."""
    reader = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group})
    try:
        return reader.committed([TopicPartition(topic, partition)], timeout=LIMIT_S)[0].offset
    finally:
        reader.close()


class Listener:
    """Notes what it is told; `prepare` and `finish` are awaited inside."""

    def __init__(self) -> None:
        self.assignments: list[dict[Partition, Committed]] = []
        self.gone: list[set[Partition]] = []
        self.prepare: Callable[[Mapping[Partition, Committed]], Awaitable[None]] | None = None
        self.finish: Callable[[], Awaitable[None]] | None = None

    async def assigned(self, partitions: Mapping[Partition, Committed], confirm: Confirm) -> None:
        if self.prepare is not None:
            await self.prepare(partitions)
        await confirm()
        self.assignments.append(dict(partitions))

    async def revoked(self, partitions: set[Partition]) -> None:
        if self.finish is not None:
            await self.finish()
        self.gone.append(partitions)

    async def lost(self, partitions: set[Partition]) -> None:
        self.gone.append(partitions)


@pytest.fixture
def group() -> str:
    return f"test.{uuid.uuid4()}"


async def test_records_of_a_partition_come_in_order_with_their_parts(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        write(kafka, topic, 300, partition)
    seen: dict[int, list[int]] = defaultdict(list)

    async def handle(event: Any) -> None:
        assert event.key == b"key"
        assert event.message.offset == int(event.value)
        seen[event.message.partition].append(event.message.offset)
        event.ack()

    async with stage(kafka, group, [topic], handle) as app:
        await eventually(lambda: len(seen[0]) + len(seen[1]) == 600)
        assert app.consumer.records_open == 0
    assert seen == {0: list(range(300)), 1: list(range(300))}
    assert (committed(kafka, group, topic, 0), committed(kafka, group, topic, 1)) == (300, 300)


async def test_nothing_behind_an_open_record_is_committed(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic()
    write(kafka, topic, 10)
    events: list[Any] = []

    async def keep(event: Any) -> None:
        events.append(event)

    async with stage(kafka, group, [topic], keep) as app:
        await eventually(lambda: len(events) == 10)
        for event in reversed(events[1:]):
            event.ack()
        assert not await app.consumer.commit()
        events[0].ack()
        assert await app.consumer.commit()
        write(kafka, topic, 5, first=10)
        await eventually(lambda: len(events) == 15)
        for event in (events[10], events[12], events[14]):
            event.ack()
    assert committed(kafka, group, topic) == 11

    async def repeat(event: Any) -> None:
        again.append(event.message.offset)

    again: list[int] = []
    async with stage(kafka, group, [topic], repeat):
        await eventually(lambda: len(again) == 4)
    assert again == [11, 12, 13, 14]


async def test_offsets_without_records_hold_no_commit_up(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": group, "log_level": 0})
    producer.init_transactions()
    for number in range(4):
        producer.begin_transaction()
        producer.produce(topic, str(number).encode(), partition=0)
        producer.commit_transaction()
    events: list[Any] = []

    async def keep(event: Any) -> None:
        events.append(event)

    async with stage(kafka, group, [topic], keep) as app:
        await eventually(lambda: len(events) == 4)
        assert [event.message.offset for event in events] == [0, 2, 4, 6]
        for event in events[:3]:
            event.ack()
        assert await app.consumer.commit()
    assert committed(kafka, group, topic) == 6


@pytest.mark.parametrize("acknowledging", [False, True])
async def test_a_handler_that_raises_stops_the_worker_and_keeps_its_record(
    kafka: TestBroker, new_topic: Callable[..., str], group: str, acknowledging: bool
) -> None:
    topic = new_topic()
    write(kafka, topic, 5)
    app = create_app(kafka.settings(), group, [topic])

    async def shell(stream: Any) -> None:
        async for event in (stream if acknowledging else stream.noack()).events():
            if event.message.offset == 2:
                raise RuntimeError("a bug")
            if not acknowledging:
                event.ack()

    app.read_with(shell)
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(run(app, asyncio.Event()), LIMIT_S)
    assert committed(kafka, group, topic) == 2


async def test_a_new_owner_is_told_what_was_committed(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic(partitions=2)
    write(kafka, topic, 3, partition=1)

    async def handle(event: Any) -> None:
        if event.message.offset < 2:
            event.ack()
        seen.append(event)

    seen: list[Any] = []
    first, second = Listener(), Listener()
    async with stage(kafka, group, [topic], handle, listener=first):
        await eventually(lambda: len(seen) == 3)
    async with stage(kafka, group, [topic], handle, listener=second) as app:
        await asyncio.sleep(0)
        await eventually(lambda: len(second.assignments) == 2 and app.ready.is_set())
    assert [*first.assignments] == [{Partition(topic, 0): Committed(None)}, {Partition(topic, 1): Committed(None)}]
    # Confirming an assignment commits where it begins.
    assert [*second.assignments] == [{Partition(topic, 0): Committed(0)}, {Partition(topic, 1): Committed(2)}]


async def test_a_partition_delivers_once_it_is_prepared_and_others_do_not_wait(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        write(kafka, topic, 200, partition)
    prepared = asyncio.Event()
    seen: dict[int, list[int]] = defaultdict(list)
    listener = Listener()

    async def prepare(partitions: Mapping[Partition, Committed]) -> None:
        if Partition(topic, 0) in partitions:
            await prepared.wait()

    async def handle(event: Any) -> None:
        seen[event.message.partition].append(event.message.offset)
        event.ack()

    listener.prepare = prepare
    async with stage(kafka, group, [topic], handle, listener=listener, buffer_records_max=16) as app:
        await eventually(lambda: len(seen[1]) == 200 and app.consumer.partitions_paused == 1)
        assert not seen[0]
        assert not app.ready.is_set()
        prepared.set()
        await eventually(lambda: len(seen[0]) == 200)
        assert app.ready.is_set()
    assert seen[0] == seen[1] == list(range(200))


async def test_what_is_finished_while_partitions_are_given_up_is_committed_and_later_is_not(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic()
    write(kafka, topic, 6)
    events: list[Any] = []
    listener = Listener()

    async def keep(event: Any) -> None:
        events.append(event)

    async def finish() -> None:
        for event in events[:4]:
            event.ack()

    listener.finish = finish
    async with stage(kafka, group, [topic], keep, listener=listener):
        await eventually(lambda: len(events) == 6)
    assert listener.gone == [{Partition(topic, 0)}]
    assert [event.ack() for event in events[4:]] == [False, False]
    assert committed(kafka, group, topic) == 4


async def test_giving_up_has_a_time_limit(kafka: TestBroker, new_topic: Callable[..., str], group: str) -> None:
    topic = new_topic()
    listener = Listener()

    async def handle(event: Any) -> None:
        event.ack()

    async def never() -> None:
        await asyncio.Event().wait()

    listener.finish = never
    async with stage(kafka, group, [topic], handle, listener=listener, revoke_limit_s=0.2) as app:
        await eventually(lambda: listener.assignments and app.ready.is_set())
    assert not listener.gone


async def test_a_full_buffer_pauses_and_nothing_is_lost_or_reordered(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        write(kafka, topic, 500, partition)
    gate = asyncio.Event()
    seen: dict[int, list[int]] = defaultdict(list)

    async def handle(event: Any) -> None:
        await gate.wait()
        await asyncio.sleep(0)
        seen[event.message.partition].append(event.message.offset)
        event.ack()

    async with stage(kafka, group, [topic], handle, buffer_records_max=8) as app:
        await eventually(lambda: app.consumer.partitions_paused == 2)
        assert app.consumer.records_open <= 9  # the buffer and the one in hand
        held = await settled(lambda: app.consumer.records_held)  # what was under way at the pause still comes
        write(kafka, topic, 500, first=500)
        await asyncio.sleep(0.3)
        assert app.consumer.records_held == held
        gate.set()
        await eventually(lambda: len(seen[0]) == 1000 and len(seen[1]) == 500)
        assert app.consumer.partitions_paused == 0
    assert seen == {0: list(range(1000)), 1: list(range(500))}


async def test_a_call_that_holds_the_interpreter_past_the_session_timeout_keeps_the_partitions(
    kafka: TestBroker, new_topic: Callable[..., str], group: str
) -> None:
    topic = new_topic()
    listener = Listener()
    seen: list[int] = []

    async def handle(event: Any) -> None:
        if not seen:
            ctypes.PyDLL(None).usleep(3_000_000)  # unlike CDLL, this keeps the interpreter's lock
        seen.append(event.message.offset)
        event.ack()

    async with stage(kafka, group, [topic], handle, listener=listener) as app:
        await eventually(lambda: listener.assignments and app.ready.is_set())
        write(kafka, topic, 20)
        await eventually(lambda: len(seen) == 20)
        assert await app.consumer.commit()
    assert seen == list(range(20))
    assert (len(listener.assignments), len(listener.gone)) == (1, 1)
    assert committed(kafka, group, topic) == 20


async def test_what_faust_sends_itself_arrives(kafka: TestBroker, new_topic: Callable[..., str], group: str) -> None:
    topic = new_topic()
    seen: list[tuple[bytes, bytes, Any]] = []

    async def handle(event: Any) -> None:
        seen.append((event.key, event.value, event.headers))
        event.ack()

    async with stage(kafka, group, [topic], handle) as app:
        sent = await app.records.send(key=b"k", value=b"v", headers={"traceparent": b"00-1"})
        assert (await sent).topic == topic
        await eventually(lambda: seen)
    assert seen == [(b"k", b"v", {"traceparent": b"00-1"})]


class Worker:
    """A worker process and its notes."""

    def __init__(self, kafka: TestBroker, group: str, instance: str, topics: list[str], file: Path) -> None:
        self.file = file
        self._arguments = (kafka.bootstrap_servers, group, instance, ",".join(topics), str(file))
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.stage_worker", *self._arguments, cwd=REPOSITORY, env=dict(os.environ)
        )

    async def end(self, how: str) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            getattr(self.process, how)()
        await asyncio.wait_for(self.process.wait(), LIMIT_S)

    def _notes(self) -> list[list[str]]:
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        return [line.split() for line in lines if line.endswith("\n")]

    def did(self) -> list[tuple[str, ...]]:
        """Topic, partition and offset of the records it did, in order."""
        return [tuple(note[1:]) for note in self._notes() if note[0] == "did"]

    def owned(self) -> set[tuple[str, ...]]:
        """Topic and partition of what it owns, by its own notes."""
        owned: set[tuple[str, ...]] = set()
        for kind, *partition in self._notes():
            if kind == "started":
                owned.clear()
            elif kind == "assigned":
                owned.add(tuple(partition))
            elif kind == "revoked":
                owned.discard(tuple(partition))
        return owned


async def test_workers_killed_under_load_lose_nothing_and_hold_equal_numbers(
    kafka: TestBroker, new_topic: Callable[..., str], group: str, tmp_path: Path
) -> None:
    """One worker is killed and replaced by the other; it comes back under its name and is killed again at once."""
    topics = [new_topic(partitions=3), new_topic(partitions=3)]
    workers = [Worker(kafka, group, f"w{number}", topics, tmp_path / f"w{number}") for number in (0, 1)]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 0})
    written: set[tuple[str, ...]] = set()
    stopped = asyncio.Event()

    async def load() -> None:
        number = 0
        while not stopped.is_set():
            topic, partition, offset = topics[number % 2], number // 2 % 3, number // 6
            producer.produce(topic, b"x", partition=partition)
            producer.poll(0)
            written.add((topic, str(partition), str(offset)))
            number += 1
            await asyncio.sleep(0.004)

    def shared() -> bool:
        return all(worker.owned() for worker in workers) and sum(len(worker.owned()) for worker in workers) == 6

    def done() -> set[tuple[str, ...]]:
        return {note for worker in workers for note in worker.did()}

    loading = asyncio.create_task(load())
    try:
        for worker in workers:
            await worker.start()
        await eventually(lambda: shared() and len(done()) > 100)
        await workers[0].end("kill")
        await eventually(lambda: len(workers[1].owned()) == 6)
        await workers[0].start()
        await eventually(shared)
        for worker in workers:
            numbers = [{number for name, number in worker.owned() if name == topic} for topic in topics]
            assert numbers[0] == numbers[1]
        before = len(workers[0].did())
        await eventually(lambda: len(workers[0].did()) > before + 20)
        await workers[0].end("kill")
        await workers[0].start()
        await eventually(lambda: workers[0].did()[before + 21 :])
    finally:
        stopped.set()
        await loading
        producer.flush()
        try:
            await eventually(lambda: written <= done())
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.returncode is None:
                    await worker.end("terminate")
    assert written == done()

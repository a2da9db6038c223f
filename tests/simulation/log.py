"""Kafka in simulated time: ordered partitions, acknowledged producers, readers that are woken, committed offsets.

Records hold events as they are, without Avro: encoding has tests of its own. A record's time is its producer's, or the
broker's where the topic is configured so.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.event import Event
from streams.consumer import BEGINNING, END, Record
from streams.keys import Partition as Partition
from streams.keys import partition_of
from streams.settings import Settings
from streams.topics import TOPICS, state_topic
from tests.simulation.world import EPOCH_US, Process, World

_STAMPED_BY_BROKER = frozenset(
    name for name, topic in TOPICS.items() if topic.config(Settings()).get("message.timestamp.type") == "LogAppendTime"
)


class Stored(bytes):
    """An event in the place of a record's bytes."""

    event: Event


def stored(event: Event) -> Stored:
    """The value of the event's record."""
    value = Stored()
    value.event = event
    return value


@dataclass(frozen=True, slots=True)
class Weather:
    """How the log behaves, in shares and milliseconds."""

    delay_ms_max: float = 4.0
    late_share: float = 0.0
    late_ms_max: float = 0.0
    duplicate_share: float = 0.0


@dataclass(slots=True, eq=False)
class Subscription:
    """A reader's interest in a partition: `wake` is called in its process when there may be something new."""

    process: Process
    wake: Callable[[Partition], None]
    pending: set[Partition] = field(default_factory=set)


class SimulatedLog:
    """The broker; it never fails, only delays."""

    def __init__(self, world: World, partitions: int, weather: Weather) -> None:
        self.world = world
        self.partitions = partitions
        self.weather = weather
        self.stormy = False
        self.records: dict[Partition, list[Record]] = defaultdict(list)
        self.committed: dict[tuple[str, Partition], int] = {}
        self._subscribed: dict[Partition, list[Subscription]] = defaultdict(list)

    def delay_s(self) -> float:
        """How long something takes to get to the broker or back."""
        weather, chance = self.weather, self.world.random
        if self.stormy and chance.random() < weather.late_share:
            return chance.uniform(0, weather.late_ms_max) / 1000
        return chance.uniform(0.1, weather.delay_ms_max) / 1000

    def append(self, partition: Partition, key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """The record is in the log; who reads the partition will hear of it."""
        records = self.records[partition]
        if partition.topic in _STAMPED_BY_BROKER:
            timestamp_ms = (EPOCH_US + round(self.world.now_s * 1e6)) // 1000
        event = value.event if isinstance(value, Stored) else None
        again = self.stormy and event is not None and self.world.random.random() < self.weather.duplicate_share
        for _ in range(1 + again):
            records.append(Record(*partition, len(records), key, value, (), timestamp_ms))
        what = f"{event.event_id} {event.seq} {event.ce_type} {event.turn}" if event is not None else value
        self.world.note(f"{partition.topic}/{partition.partition}", len(records) - 1, key.decode(), what)
        for subscription in self._subscribed[partition]:
            self.announce(subscription, partition)

    def announce(self, subscription: Subscription, partition: Partition) -> None:
        """Wakes a reader, a moment later, once for all that has come until then."""
        if partition not in subscription.pending:
            subscription.pending.add(partition)
            self.world.send(subscription.process, self.delay_s(), self._wake, subscription, partition)

    def _wake(self, subscription: Subscription, partition: Partition) -> None:
        subscription.pending.discard(partition)
        subscription.wake(partition)

    def subscribe(self, subscription: Subscription, partition: Partition) -> None:
        """From now on the reader hears of new records, and of those that are there."""
        if subscription not in self._subscribed[partition]:
            self._subscribed[partition].append(subscription)
        self.announce(subscription, partition)

    def unsubscribe(self, subscription: Subscription, partition: Partition) -> None:
        """The reader is not interested any more."""
        if subscription in self._subscribed[partition]:
            self._subscribed[partition].remove(subscription)

    # What tests look at.

    def events(self, kind: type[Event]) -> list[Any]:
        """The topic's events by partition and offset, repeats included."""
        return [
            event_of(record)
            for number in range(self.partitions)
            for record in self.records[Partition(kind.TOPIC, number)]
        ]

    def truth(self, kind: type[Event], session_id: str) -> list[Any]:
        """The session's events as readers see them: the first event with an id is the truth."""
        where = Partition(kind.TOPIC, partition_of(session_id, self.partitions))
        first: dict[str, Any] = {}
        for record in self.records[where]:
            event = event_of(record)
            if event.session_id == session_id:
                first.setdefault(event.event_id, event)
        return list(first.values())

    def snapshots(self, stage: str) -> dict[str, bytes]:
        """What compaction would leave of the stage's state topic."""
        left: dict[str, bytes | None] = {}
        for number in range(self.partitions):
            for record in self.records[Partition(state_topic(stage), number)]:
                left[(record.key or b"").decode()] = record.value
        return {key: value for key, value in left.items() if value is not None}


def event_of(record: Record) -> Event:
    """The event of a record of an event topic."""
    assert isinstance(record.value, Stored)
    return record.value.event


class Producer:
    """One process's connection for writing; it is what a `Runner` and a `Call` publish with.

    Order is kept for each partition. What was under way when its process was killed is in the log up to some point
    and missing from there; what was under way when it was frozen may come when it goes on.
    """

    def __init__(self, log: SimulatedLog, process: Process) -> None:
        self._log = log
        self._process = process
        self._last_s: dict[Partition, float] = {}
        self._cut_s: dict[Partition, float] = {}
        self._queued: dict[Partition, deque[tuple[Any, ...]]] = defaultdict(deque)
        self._stuck: dict[Partition, int] = {}

    def publish(self, event: Event) -> "asyncio.Future[Any]":
        """See `runner.Log`."""
        where = Partition(event.TOPIC, partition_of(event.session_id, self._log.partitions))
        return self._send(where, event.session_id.encode(), stored(event))

    def publish_raw(self, topic: str, key: bytes, value: bytes | None, partition: int) -> "asyncio.Future[Any]":
        """See `LogProducer`."""
        return self._send(Partition(topic, partition), key, value)

    def _send(self, where: Partition, key: bytes, value: bytes | None) -> "asyncio.Future[Any]":
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queued[where].append((key, value, self._process.now_us() // 1000, sent))
        self._send_next(where)
        return sent

    def _send_next(self, where: Partition) -> None:
        at_s = max(self._last_s.get(where, 0.0), self._log.world.now_s + self._log.delay_s())
        self._last_s[where] = at_s
        self._log.world.after(at_s - self._log.world.now_s, self._arrived, where)

    def _arrived(self, where: Partition) -> None:
        if self._process.frozen and (where in self._stuck or self._log.world.random.random() < 0.5):
            if not self._stuck:
                self._process.when_thawed(self._unstick)
            self._stuck[where] = self._stuck.get(where, 0) + 1
            return
        key, value, timestamp_ms, sent = self._queued[where].popleft()
        if not self._process.alive:
            if self._log.world.now_s <= self._reaches(where):
                self._log.append(where, key, value, timestamp_ms)
            return
        self._log.append(where, key, value, timestamp_ms)
        self._log.world.send(self._process, self._log.delay_s(), _acknowledge, sent)

    def _reaches(self, where: Partition) -> float:
        """Up to when what a killed process had sent still arrives."""
        if where not in self._cut_s:
            chance = self._log.world.random
            self._cut_s[where] = self._log.world.now_s + chance.choice((-1.0, 0.0, chance.uniform(0, 0.01)))
        return self._cut_s[where]

    def _unstick(self) -> None:
        stuck, self._stuck = self._stuck, {}
        for where, count in stuck.items():
            for _ in range(count):
                self._send_next(where)


def _acknowledge(sent: "asyncio.Future[Any]") -> None:
    if not sent.done():
        sent.set_result(None)


@dataclass(frozen=True, slots=True)
class Connection:
    """What recovery is given in place of settings: the way to the simulated log."""

    log: SimulatedLog


class Decoded:
    """In place of a codec: the simulated log holds events, not bytes."""

    def decode(self, topic: str, value: Any) -> Event:
        """See `Codec`."""
        assert isinstance(value, Stored)
        return value.event

    def seal_state(self, session_id: str, stage: str, data: bytes) -> bytes:
        """See `Codec`; nothing is sealed here."""
        return data

    def open_state(self, session_id: str, stage: str, data: bytes) -> bytes:
        """See `Codec`."""
        return data


class Reader:
    """As `LogReader`, as far as recovery uses it; every question takes a moment."""

    def __init__(self, settings: Connection, name: str, note_ends: bool = False) -> None:
        self._log = settings.log

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *details: object) -> None:
        return None

    async def connect(self) -> None:
        """See `LogReader`."""
        await asyncio.sleep(self._log.delay_s())

    async def close(self) -> None:
        """See `LogReader`."""

    async def begin_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See `LogReader`."""
        await asyncio.sleep(self._log.delay_s())
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See `LogReader`."""
        await asyncio.sleep(self._log.delay_s())
        return {partition: len(self._log.records[partition]) for partition in partitions}

    async def offsets_at(self, partitions: Iterable[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """See `LogReader`: as Kafka does, the first record stamped at or after that time."""
        await asyncio.sleep(self._log.delay_s())
        return {partition: self._first_at(self._log.records[partition], timestamp_ms) for partition in partitions}

    def _first_at(self, records: list[Record], timestamp_ms: int) -> int:
        return next((record.offset for record in records if record.timestamp_ms >= timestamp_ms), len(records))

    async def read_to(self, ranges: Mapping[Partition, tuple[int, int]]) -> AsyncIterator[Record]:
        """See `LogReader`."""
        for partition, (start, end) in ranges.items():
            await asyncio.sleep(self._log.delay_s())
            records = self._log.records[partition]
            first = 0 if start == BEGINNING else start
            for record in records[first : len(records) if end == END else end]:
                yield record

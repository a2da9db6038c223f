"""Reading the log without a consumer group's rebalances: the reader says which partitions it reads, from where.

Every call of a confluent consumer happens in one thread (a thread inside poll blocks the calls of others); what the
reader asks of it goes through a queue of commands.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from streams import metrics
from streams.client import Closing, LogError, Partition, client_config
from streams.keys import partition_of
from streams.settings import Settings
from streams.topics import CONVERSATION

BEGINNING = OFFSET_BEGINNING
END = OFFSET_END

# The thread wakes at once for a record, and this often for commands.
_POLL_S = 0.05
# Whoever reads to the ends of partitions gives commands in between, and waits for them.
_POLL_TO_END_S = 0.005
_FETCH_WAIT_TO_END_MS = 10
FETCHED_KBYTES_MAX = 8192
_BATCH_RECORDS = 500
# A broker answers a waiting fetch as soon as a record comes, so this delays none; it bounds how long a partition just
# added waits for the fetch under way. At 5 ms an idle reader cost a tenth of a core, most of it the broker's.
_FETCH_WAIT_MS = 500
# A reader in bulk is answered five times a second, or for so many bytes, but not for each record.
_FETCH_BULK_WAIT_MS = 200
_FETCH_BULK_BYTES = 1_000_000
_QUERY_S = 10.0
_LEADER_S = 30.0
# Records are stamped by the machines that write them.
_CLOCK_SKEW_MS = 5000

_LEADERLESS = {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._DESTROY_BROKER,
    KafkaError._TIMED_OUT,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}

ResultT = TypeVar("ResultT")


class Record(NamedTuple):
    """A record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class LogReader(Closing):
    """Reads chosen partitions, in offset order within each; for one event loop.

    At most `buffer_records_max` records wait in memory (and a few MiB in librdkafka); beyond, fetching pauses.
    With a `group`, offsets can be committed under its name, without joining it. With `note_ends`, `ended` holds the
    partitions of which everything written so far has been read. `in_bulk` lets records wait for company at the broker,
    100 ms at most, which costs the broker and the reader less.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        group: str | None = None,
        buffer_records_max: int = 2000,
        note_ends: bool = False,
        in_bulk: bool = False,
    ) -> None:
        base = client_config(settings, name) | {"group.id": group or f"{name}.reader"}
        # Queries go over a connection of their own: a broker answers one connection's requests in order, and a fetch
        # that waits for records would make them wait too.
        self._queries = Consumer(base | {"enable.auto.commit": False})
        self._consumer = Consumer(
            base
            | {
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": _fetch_wait_ms(note_ends, in_bulk),
                "fetch.min.bytes": _FETCH_BULK_BYTES if in_bulk else 1,
                "fetch.queue.backoff.ms": 2,
                "queued.max.messages.kbytes": FETCHED_KBYTES_MAX,
                "enable.partition.eof": note_ends,
            }
        )
        self._poll_s = _POLL_TO_END_S if note_ends else _POLL_S
        self._has_met = False
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[Record] = deque()
        self._buffer_records_max = buffer_records_max
        # Counted by the thread and by the loop; the difference is what waits, on its way to the buffer or in it.
        self._delivered = 0
        self._waiting = metrics.waiting.labels(name)
        self._taken = 0
        self._arrived = asyncio.Event()
        self._error: LogError | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._assigned: set[Partition] = set()
        self.ended: set[Partition] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-reader", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether no more is read before some of what waits is taken."""
        return len(self._buffer) >= self._buffer_records_max

    async def connect(self) -> None:
        """Connects now, so that the first partitions come without that delay; returns when the cluster has answered."""
        await self._call(self._connect)

    async def add(self, starts: Mapping[Partition, int]) -> None:
        """Also reads these partitions, from the given offsets; BEGINNING and END are resolved now.

        A partition that is already read moves to the offset. Raises LogError where one does not exist.
        """
        await self._call(lambda: self._add(dict(starts)))

    async def remove(self, partitions: Iterable[Partition]) -> None:
        """Stops reading these; records of theirs that were not yet iterated over are dropped."""
        gone = set(partitions)
        await self._call(lambda: self._remove(gone))

    async def partitions(self, topic: str) -> tuple[Partition, ...]:
        """The topic's partitions; raises LogError where it does not exist."""
        return await self._call(lambda: self._partitions(topic))

    async def begin_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that is still kept."""
        wanted = tuple(partitions)
        return await self._call(lambda: self._offsets_at(wanted, BEGINNING))

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset that the next record will have."""
        wanted = tuple(partitions)
        return await self._call(lambda: self._offsets_at(wanted, END))

    async def offsets_at(self, partitions: Iterable[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """The offset of the first record stamped at or after that time; the end offset where there is none.

        What is written meanwhile lies at or after it.
        """
        wanted = tuple(partitions)
        return await self._call(lambda: self._offsets_since(wanted, timestamp_ms))

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commits, for the group, the offsets of the next records to read."""
        pairs = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        await self._call(lambda: self._queries.commit(offsets=pairs, asynchronous=False))

    async def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int | None]:
        """What the group has committed, None where nothing."""
        pairs = [TopicPartition(*partition) for partition in partitions]
        found = await self._call(lambda: self._queries.committed(pairs, timeout=_QUERY_S))
        return {Partition(pair.topic, pair.partition): pair.offset if pair.offset >= 0 else None for pair in found}

    def __aiter__(self) -> AsyncIterator[Record]:
        """Records as they come, until the reader is closed; raises LogError when reading is impossible.

        One iteration at a time.
        """
        return self._records()

    async def _records(self) -> AsyncIterator[Record]:
        while self._buffer or await self.more():
            while self._buffer:
                self._taken += 1
                yield self._buffer.popleft()

    async def batches(self) -> AsyncIterator[list[Record]]:
        """As iteration, but everything that waits at once, never an empty list."""
        while self._buffer or await self.more():
            if batch := self.take():
                yield batch

    def take(self) -> list[Record]:
        """Everything that waits, perhaps nothing."""
        batch = list(self._buffer)
        self._buffer.clear()
        self._taken += len(batch)
        self._waiting.set(self._delivered - self._taken)
        return batch

    async def more(self) -> bool:
        """Returns when there may be something to take or a partition has ended; False when the reader is closed."""
        if self._buffer:
            return True
        if self._error is not None:
            raise self._error
        if self._closing:
            return False
        self._arrived.clear()
        await self._arrived.wait()
        return True

    async def read_to(self, ranges: Mapping[Partition, tuple[int, int]]) -> AsyncIterator[Record]:
        """Records from the first offset up to, not including, the second, of each partition; BEGINNING and END work.

        For a reader with `note_ends` that reads nothing else meanwhile; one range after another may be read.
        """
        starts, ends = await self._resolved(ranges)
        left = {partition for partition in ranges if starts[partition] < ends[partition]}
        if left:
            await self.add({partition: starts[partition] for partition in left})
        while left:
            for record in self.take():
                partition = Partition(record.topic, record.partition)
                if partition not in left:
                    continue
                if record.offset < ends[partition]:
                    yield record
                if record.offset >= ends[partition] - 1:
                    left.discard(partition)
            # The last offsets of a compacted partition may hold no record.
            left -= self.ended
            if left:
                await self.more()
        await self.remove(ranges)

    async def _resolved(
        self, ranges: Mapping[Partition, tuple[int, int]]
    ) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """The ranges' starts and ends within what the log holds, so that nobody waits for what is gone."""
        first, last = await self.begin_offsets(ranges), await self.end_offsets(ranges)
        starts, ends = {}, {}
        for partition, (start, end) in ranges.items():
            starts[partition] = last[partition] if start == END else max(start, first[partition])
            ends[partition] = last[partition] if end == END else min(end, last[partition])
        return starts, ends

    async def close(self) -> None:
        """Stops the thread and leaves the cluster."""
        if self._closing:
            return
        self._closing = True
        self._commands.put(lambda: None)
        await asyncio.to_thread(self._thread.join)
        self._arrived.set()

    def _call(self, work: Callable[[], ResultT]) -> Awaitable[ResultT]:
        """Runs the work in the thread; a KafkaException comes back as LogError."""
        future: asyncio.Future[ResultT] = self._loop.create_future()
        if self._closing:
            raise LogError("the reader is closed")

        def settle(result: ResultT | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def command() -> None:
            try:
                outcome: tuple[ResultT | None, Exception | None] = (work(), None)
            except KafkaException as error:
                outcome = (None, LogError(error.args[0].str()))
            except Exception as error:
                outcome = (None, error)
            self._to_loop(settle, *outcome)

        self._commands.put(command)
        return future

    # In the thread.

    def _run(self) -> None:
        while not self._closing:
            room = self._buffer_records_max - (self._delivered - self._taken)
            self._serve_commands(wait=room <= 0 or not self._assigned)
            if room > 0 and self._assigned:
                self._read(room)
        while not self._commands.empty():
            self._commands.get_nowait()()
        self._consumer.close()
        self._queries.close()

    def _serve_commands(self, wait: bool) -> None:
        """Runs the commands that wait; with `wait`, sleeps until there is one or it is time to look again."""
        try:
            command = (
                self._commands.get(timeout=_POLL_S if self._assigned else None) if wait else self._commands.get_nowait()
            )
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            pass

    def _read(self, room: int) -> None:
        first = self._consumer.poll(self._poll_s)
        if first is None:
            return
        messages = [first, *self._consumer.consume(min(_BATCH_RECORDS, room - 1), 0)] if room > 1 else [first]
        records = []
        ended = set()
        for message in messages:
            error = message.error()
            if error is None:
                records.append(_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(Partition(message.topic() or "", _number(message.partition())))
            else:
                self._failed(error, message)
        self._delivered += len(records)
        self._waiting.set(self._delivered - self._taken)
        self._to_loop(self._deliver, records, ended)

    def _failed(self, error: KafkaError, message: Message) -> None:
        """A partition's error; librdkafka retries those that can pass."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            return
        self._to_loop(self._stop, LogError(f"{message.topic()}-{message.partition()}: not read: {error.str()}"))

    def _add(self, starts: dict[Partition, int]) -> None:
        # librdkafka takes half a second to resolve a logical offset by itself, and longer to find nothing there.
        first = self._offsets_at(tuple(starts), BEGINNING)
        last = self._offsets_at([partition for partition, start in starts.items() if start == END], END)
        for partition, start in starts.items():
            starts[partition] = first[partition] if start == BEGINNING else last.get(partition, start)
        pairs = [TopicPartition(*partition, start) for partition, start in starts.items()]
        if not self._assigned:
            # Connects and learns the leaders now; an assignment alone would take up to a second over it.
            self._consumer.list_topics(timeout=_QUERY_S)
        self._remove(set(starts))
        self._consumer.incremental_assign(pairs)
        self._assigned.update(starts)

    def _remove(self, partitions: set[Partition]) -> None:
        gone = partitions & self._assigned
        if gone:
            self._consumer.incremental_unassign([TopicPartition(*partition) for partition in gone])
            self._assigned -= gone
            self._to_loop(self._forget, gone)

    def _connect(self) -> None:
        for client in (self._queries, self._consumer):
            client.list_topics(timeout=_QUERY_S)

    def _partitions(self, topic: str) -> tuple[Partition, ...]:
        metadata = self._queries.list_topics(topic, timeout=_QUERY_S).topics[topic]
        if metadata.error is not None:
            raise LogError(f"{topic}: {metadata.error.str()}")
        return tuple(Partition(topic, number) for number in sorted(metadata.partitions))

    def _offsets_at(self, partitions: Sequence[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """Waits for leaders: a topic just made, or a broker just lost, has none for a moment.

        Negative where no record has that time or a later one.
        """
        found: dict[Partition, int] = {}
        deadline = time.monotonic() + _LEADER_S
        while left := [partition for partition in partitions if partition not in found]:
            # BEGINNING and END are -2 and -1, which mean the same in Kafka's ListOffsets.
            asked = [TopicPartition(*partition, timestamp_ms) for partition in left]
            try:
                if not self._has_met:
                    # A client that knows no broker yet may sleep 0.7 s over its first query; this waits for one.
                    self._queries.list_topics(asked[0].topic, timeout=_QUERY_S)
                    self._has_met = True
                for pair in self._queries.offsets_for_times(asked, timeout=_QUERY_S):
                    if pair.error is not None:
                        raise KafkaException(pair.error)
                    found[Partition(pair.topic, pair.partition)] = pair.offset
            except KafkaException as error:
                if error.args[0].code() not in _LEADERLESS or self._closing or time.monotonic() > deadline:
                    raise LogError(f"{_listed(left)}: {error.args[0].str()}") from None
                time.sleep(_POLL_S)
        return found

    def _offsets_since(self, partitions: Sequence[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """Asks for the ends first: asked for last, they would lie behind what came in between."""
        ends = self._offsets_at(partitions, END)
        found = self._offsets_at(partitions, timestamp_ms)
        return {
            partition: min(end, found[partition]) if found[partition] >= 0 else end for partition, end in ends.items()
        }

    def _to_loop(self, callback: Callable[..., Any], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)

    # In the event loop.

    def _deliver(self, records: list[Record], ended: set[Partition]) -> None:
        self._buffer.extend(records)
        self.ended |= ended
        self._arrived.set()

    def _forget(self, gone: set[Partition]) -> None:
        """Drops what was read of these; comes after everything read of them and before anything read anew."""
        kept = [record for record in self._buffer if (record.topic, record.partition) not in gone]
        self._taken += len(self._buffer) - len(kept)
        self._buffer.clear()
        self._buffer.extend(kept)
        self.ended -= gone

    def _stop(self, error: LogError) -> None:
        self._error = error
        self._arrived.set()


def _record(message: Message) -> Record:
    headers = cast(Sequence[tuple[str, bytes | None]], message.headers() or ())
    return Record(
        message.topic() or "",
        _number(message.partition()),
        _number(message.offset()),
        message.key(),
        message.value(),
        tuple(headers),
        message.timestamp()[1],
    )


def _fetch_wait_ms(note_ends: bool, in_bulk: bool) -> int:
    """The end of a partition is noted only when a fetch has waited for more in vain."""
    if note_ends:
        return _FETCH_WAIT_TO_END_MS
    return _FETCH_BULK_WAIT_MS if in_bulk else _FETCH_WAIT_MS


def _listed(partitions: Iterable[Partition]) -> str:
    return ", ".join(f"{partition.topic}-{partition.partition}" for partition in partitions)


def _number(value: int | None) -> int:
    return -1 if value is None else value


async def read_range(
    settings: Settings, ranges: Mapping[Partition, tuple[int, int]], name: str = "trunkline.range"
) -> AsyncIterator[Record]:
    """Records from the first offset up to, not including, the second, of each partition; BEGINNING and END work."""
    async with LogReader(settings, name, note_ends=True) as reader:
        async for record in reader.read_to(ranges):
            yield record


async def session_records(
    settings: Settings, session_id: str, topics: Sequence[str] = CONVERSATION, name: str = "trunkline.session"
) -> list[Record]:
    """Every record of the session that is on those topics now, by time, then topic and offset; empty when unknown.

    Reads the session's one partition of each topic from the time of its first record on voice.sessions, or from the
    beginning where retention has taken that.
    """
    key = session_id.encode()
    number = partition_of(session_id, settings.kafka.partitions)
    sessions = Partition("voice.sessions", number)
    found = [record async for record in read_range(settings, {sessions: (BEGINNING, END)}, name) if record.key == key]
    others = [Partition(topic, number) for topic in topics if topic != sessions.topic]
    if others:
        starts = dict.fromkeys(others, BEGINNING)
        if found:
            async with LogReader(settings, name) as reader:
                starts = await reader.offsets_at(others, found[0].timestamp_ms - _CLOCK_SKEW_MS)
        ranges = {partition: (start, END) for partition, start in starts.items()}
        records = [record async for record in read_range(settings, ranges, name) if record.key == key]
        found = [*(found if sessions.topic in topics else ()), *records]
    return sorted(found, key=lambda record: (record.timestamp_ms, record.topic, record.offset))

"""What a new owner of partitions reads back before the first record: snapshots, and what was already emitted.

State is a fold of the log and a snapshot only a cache of it. What a stage had emitted for records that it is about to
redo lies in the same partition of its own output topic; those events are the truth, and are adopted.

All partitions of an assignment are read together, through one reader. What is read does not grow with the length of
calls: snapshots are small and compacted away soon, outputs are read from the oldest record on that is redone.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from time import monotonic

import msgspec
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from processors.pipeline import Stage
from processors.runner import Restored
from processors.session import Snapshot, read_snapshot
from schemas.event import Event
from streams.client import LogError, Partition
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, END, LogReader, Record
from streams.keyring import AlteredError
from streams.producer import LogProducer
from streams.settings import Settings
from streams.topics import state_topic

log = structlog.get_logger(__name__)

# An event is stamped by the machine that wrote it, so the clocks of two machines come into play.
CLOCK_SKEW_MS = 2000
# Partitions are assigned within a moment of each other; connections cost more than this.
TOGETHER_S = 0.01
# Brokers fail over within seconds; a log that is away for longer is the supervisor's business.
PATIENCE_S = 30.0


@dataclass(slots=True)
class Recovered:
    """What is known of a partition number; `keys` are those under which the snapshots lie, by session."""

    restored: Restored
    keys: Mapping[str, tuple[bytes, ...]]
    records_read: int
    bytes_read: int


class Snapshots:
    """One worker's snapshots in the log.

    Whoever takes a partition over writes under keys of its own, numbered higher than all that it found, and of several
    snapshots the highest number counts. Offsets could not tell: a straggler may be ahead in one topic and behind in
    another. So a worker that was stopped, lost its partitions, and wakes up with a snapshot to write, overwrites and
    deletes none of its successor's, not even where that is itself.
    """

    def __init__(self, producer: LogProducer, stage: str, life: str) -> None:
        """`life` is different for each process that ever runs the stage."""
        self._producer = producer
        self._topic = state_topic(stage)
        self._life = life
        self._takeovers: dict[int, int] = {}
        self._others: dict[str, tuple[int, tuple[bytes, ...]]] = {}

    def inherit(self, partition: int, keys: Mapping[str, tuple[bytes, ...]]) -> None:
        """Takes the partition over; earlier owners' keys go when this one has written a snapshot of its own."""
        self._takeovers[partition] = 1 + max((takeover_of(key) for found in keys.values() for key in found), default=0)
        for session_id, found in keys.items():
            self._others[session_id] = (partition, found)

    def forget(self, partition: int) -> None:
        """The partition is somebody else's."""
        self._others = {session_id: pair for session_id, pair in self._others.items() if pair[0] != partition}

    def write(self, session_id: str, partition: int, snapshot: bytes | None) -> Awaitable[object]:
        """Replaces the session's snapshot; None deletes it. The result resolves when the broker has all of it."""
        own = self._producer.publish_raw(self._topic, self._key(session_id, partition), snapshot, partition=partition)
        _, others = self._others.pop(session_id, (partition, ()))
        # Behind the new one in the same partition: there is never a moment without any.
        gone = [self._producer.publish_raw(self._topic, key, None, partition=partition) for key in others]
        return asyncio.gather(own, *gone) if gone else own

    def _key(self, session_id: str, partition: int) -> bytes:
        return f"{session_id}/{self._takeovers.get(partition, 0)}.{self._life}".encode()


def _session_of(key: bytes) -> str:
    return key.decode(errors="replace").partition("/")[0]


def takeover_of(key: bytes) -> int:
    """Which takeover of its partition the snapshot under that key comes from; 0 where the key does not say."""
    number = key.decode(errors="replace").rpartition("/")[2].partition(".")[0]
    return int(number) if number.isdecimal() else 0


class Recovery:
    """Reads back partitions; those that are asked for together are read together, by one reader that is kept."""

    def __init__(self, settings: Settings, stage: Stage, codec: Codec) -> None:
        self._settings = settings
        self._stage = stage
        self._codec = codec
        self._asked: dict[Partition, int | None] = {}
        self._batch: asyncio.Task[dict[int, Recovered]] | None = None
        self._reader: LogReader | None = None
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Connects, so that the first partitions need not wait for that."""
        if self._reader is None:
            self._reader = LogReader(self._settings, f"{self._stage.group}.recovery", note_ends=True)
            await self._reader.connect()

    async def close(self) -> None:
        """Lets go of the connections."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def of(self, committed: Mapping[Partition, int | None]) -> Recovered:
        """What is known of one partition number; `committed` has each topic's offset, None where there is none yet."""
        self._asked |= committed
        if self._batch is None:
            self._batch = asyncio.get_running_loop().create_task(self._read())
        recovered = await asyncio.shield(self._batch)
        return recovered[next(iter(committed)).partition]

    async def _read(self) -> dict[int, Recovered]:
        await asyncio.sleep(TOGETHER_S)
        committed, self._asked, self._batch = self._asked, {}, None
        async with self._one_at_a_time:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(LogError),
                wait=wait_exponential_jitter(multiplier=0.05, max=1.0),
                stop=stop_after_delay(PATIENCE_S),
                reraise=True,
            ):
                with attempt:
                    return await self._read_once(committed)
        raise AssertionError("the last attempt returns or raises")

    async def _read_once(self, committed: Mapping[Partition, int | None]) -> dict[int, Recovered]:
        """One attempt; what a broker that is dying or a leader that moves makes of it is no reason to give up."""
        try:
            await self.open()
            assert self._reader is not None
            return await recover(self._reader, self._stage, self._codec, committed)
        except LogError as error:
            # A reader that failed once is of no more use.
            log.warning("read_back_failed", stage=self._stage.name, error=str(error)[-200:])
            await self.close()
            raise


async def recover(
    reader: LogReader, stage: Stage, codec: Codec, committed: Mapping[Partition, int | None]
) -> dict[int, Recovered]:
    """What is known of each partition number that occurs in `committed` (None: nothing committed yet).

    `reader` notes ends, and reads nothing else meanwhile.
    """
    started_s = monotonic()
    reading = _Reading(reader, stage, codec, committed)
    await reading.snapshots_and_backlog()
    await reading.outputs()
    found = {number: reading.recovered(number) for number in reading.numbers}
    log.info(
        "read_back",
        stage=stage.name,
        partitions=len(found),
        records=sum(one.records_read for one in found.values()),
        bytes=sum(one.bytes_read for one in found.values()),
        ms=round((monotonic() - started_s) * 1000),
    )
    return found


class _Reading:
    """One reading back, of all partitions together."""

    def __init__(
        self, reader: LogReader, stage: Stage, codec: Codec, committed: Mapping[Partition, int | None]
    ) -> None:
        self._reader = reader
        self._codec = codec
        self._committed = committed
        self._stage = stage.name
        self._states = state_topic(stage.name)
        self._outputs = stage.produces.TOPIC
        self.numbers = sorted({partition.partition for partition in committed})
        self._snapshots: dict[int, dict[bytes, tuple[Snapshot, bytes]]] = {number: {} for number in self.numbers}
        self._oldest_ms: dict[int, int] = {}
        self._recorded: dict[int, list[Event]] = {number: [] for number in self.numbers}
        self._records_read = dict.fromkeys(self.numbers, 0)
        self._bytes_read = dict.fromkeys(self.numbers, 0)

    async def snapshots_and_backlog(self) -> None:
        """Reads the snapshots, and when the oldest record of each partition number was written that is redone."""
        first = await self._reader.begin_offsets(self._committed)
        last = await self._reader.end_offsets(self._committed)
        ranges = {Partition(self._states, number): (BEGINNING, END) for number in self.numbers}
        for partition, offset in self._committed.items():
            start = max(first[partition], offset or 0)
            if start < last[partition]:
                ranges[partition] = (start, start + 1)
        async for record in self._reader.read_to(ranges):
            self._count(record)
            if record.topic == self._states:
                self._snapshot(record)
            else:
                known_ms = self._oldest_ms.get(record.partition, record.timestamp_ms)
                self._oldest_ms[record.partition] = min(record.timestamp_ms, known_ms)

    def _snapshot(self, record: Record) -> None:
        found = self._snapshots[record.partition]
        key = record.key or b""
        found.pop(key, None)
        if record.value is None:
            return
        try:
            data = self._codec.open_state(_session_of(key), self._stage, record.value)
            if data is not None:
                found[key] = read_snapshot(data), data
        except (msgspec.DecodeError, UnicodeDecodeError, AlteredError):
            log.warning("foreign_snapshot_skipped", topic=record.topic, offset=record.offset)

    async def outputs(self) -> None:
        """Reads what was emitted since those records."""
        ranges: dict[Partition, tuple[int, int]] = {}
        for number, timestamp_ms in self._oldest_ms.items():
            where = [Partition(self._outputs, number)]
            for partition, start in (await self._reader.offsets_at(where, timestamp_ms - CLOCK_SKEW_MS)).items():
                ranges[partition] = (start, END)
        async for record in self._reader.read_to(ranges):
            self._count(record)
            try:
                self._recorded[record.partition].append(self._codec.decode(record.topic, record.value))
            except CodecError as error:
                log.warning("foreign_output_skipped", topic=record.topic, offset=record.offset, reason=error.reason)

    def recovered(self, number: int) -> Recovered:
        """What was found for the partition number: of several snapshots of a session the latest owner's."""
        keys: dict[str, tuple[bytes, ...]] = {}
        best: dict[str, tuple[tuple[int, tuple[bool, int]], bytes]] = {}
        for key, (snapshot, data) in self._snapshots[number].items():
            session_id = _session_of(key)
            keys[session_id] = (*keys.get(session_id, ()), key)
            rank = takeover_of(key), snapshot.progress
            if session_id not in best or rank >= best[session_id][0]:
                best[session_id] = rank, data
        snapshots = {session_id: data for session_id, (_, data) in best.items()}
        restored = Restored(snapshots, self._recorded[number])
        return Recovered(restored, keys, self._records_read[number], self._bytes_read[number])

    def _count(self, record: Record) -> None:
        self._records_read[record.partition] += 1
        self._bytes_read[record.partition] += len(record.value or b"")

"""The events of calls as the log has them, for many subscriptions at once, and for the CRM.

Events of a session lie in several topics, in one partition number of each; they are put in the order of the broker's
stamps, within a topic that of offsets. What is new is read once and kept for a while (`Tail`); who is further behind
reads the log for itself (`Backlog`), and so holds up nobody and needs no memory.
"""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from processors.webhooks.subscriptions import TOPICS, Start
from schemas.event import Event
from streams.client import LogError, Partition
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, LogReader, Record
from streams.settings import Settings

log = structlog.get_logger(__name__)

NAME = "trunkline.webhooks"
RECENT_MAX = 5000
RECENT_BYTES_MAX = 16 * 1024 * 1024
CHUNK_RECORDS = 100
READERS_MAX = 2
_RETRY_S = 1.0
# A cut that is not reached in that time is not waited for: the last offsets below it may hold no record.
_CUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and the event in it."""

    record: Record
    event: Event

    @property
    def partition(self) -> Partition:
        """Where it lies."""
        return Partition(self.record.topic, self.record.partition)

    @property
    def size_bytes(self) -> int:
        """How much the record holds."""
        return len(self.record.value or b"")


Positions = dict[Partition, int]


class Tail:
    """The newest events of those topics; `starts` are the offsets from which on none is missing."""

    def __init__(
        self, settings: Settings, codec: Codec, clock: Clock, topics: Sequence[str] = TOPICS, name: str = NAME
    ) -> None:
        self._topics = topics
        self._name = name
        self._settings = settings
        self._codec = codec
        self._clock = clock
        self._recent: deque[Entry] = deque()
        self._recent_bytes = 0
        self._grown = asyncio.Event()
        self._read: Positions = {}
        self.first = 0
        self.starts: Positions = {}
        self.ends: Positions = {}

    def covers(self, positions: Mapping[Partition, int]) -> bool:
        """Whether who is at these positions finds all that follows here."""
        return bool(self.starts) and all(
            positions.get(partition, BEGINNING) >= start for partition, start in self.starts.items()
        )

    async def after(self, number: int) -> list[Entry]:
        """The entries from that number on (`first` is the oldest one's), after a wait where there are none.

        Empty where reading began anew meanwhile: look at `covers` again.
        """
        if number >= self.first + len(self._recent):
            await self.grown()
        return list(islice(self._recent, max(0, number - self.first), None))

    async def grown(self) -> None:
        """Returns when there is something new, or reading has begun anew."""
        self._grown.clear()
        await self._grown.wait()

    async def run(self) -> None:
        """Reads for ever; a reader that fails is replaced, and what was missed meanwhile is the backlog's."""
        while True:
            try:
                async with LogReader(self._settings, f"{self._name}.tail", in_bulk=True) as reader:
                    await self._follow(reader)
            except LogError as error:
                log.warning("reading the log failed, trying again", error=str(error))
            await self._clock.sleep(_RETRY_S)

    async def _follow(self, reader: LogReader) -> None:
        partitions = [partition for topic in self._topics for partition in await reader.partitions(topic)]
        ends = await reader.end_offsets(partitions)
        await reader.add(ends)
        self.first += len(self._recent)
        self._recent.clear()
        self._recent_bytes = 0
        self._read, self.starts, self.ends = dict(ends), dict(ends), dict(ends)
        self._grown.set()
        held: list[Record] = []
        while await reader.more():
            self._take(reader, held)
            # Whatever is stamped earlier than these was written before, so it lies below the ends as they are now.
            cut = await reader.end_offsets(partitions)
            await self._read_to(reader, cut, held)
            below = [record for record in held if record.offset < cut[Partition(record.topic, record.partition)]]
            held = [record for record in held if record.offset >= cut[Partition(record.topic, record.partition)]]
            self._append(sorted(below, key=_order), cut)

    def _take(self, reader: LogReader, held: list[Record]) -> None:
        for record in reader.take():
            self._read[Partition(record.topic, record.partition)] = record.offset + 1
            held.append(record)

    async def _read_to(self, reader: LogReader, cut: Mapping[Partition, int], held: list[Record]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                while any(self._read[partition] < end for partition, end in cut.items()) and await reader.more():
                    self._take(reader, held)

    def _append(self, records: Iterable[Record], cut: Mapping[Partition, int]) -> None:
        for entry in _entries(self._codec, records):
            self._recent.append(entry)
            self._recent_bytes += entry.size_bytes
        while len(self._recent) > RECENT_MAX or self._recent_bytes > RECENT_BYTES_MAX:
            oldest = self._recent.popleft()
            self._recent_bytes -= oldest.size_bytes
            self.first += 1
            self.starts[oldest.partition] = oldest.record.offset + 1
        self.ends = dict(cut)
        self._grown.set()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries in order, and where their reader is once it has dealt with all of them."""

    entries: list[Entry]
    after: Positions


class Backlog:
    """Reads what lies between a position and the tail, a piece at a time."""

    def __init__(self, settings: Settings, codec: Codec, name: str = NAME) -> None:
        self._settings = settings
        self._codec = codec
        self._name = name
        self._turns = asyncio.Semaphore(READERS_MAX)

    async def read(self, positions: Mapping[Partition, int], ends: Mapping[Partition, int]) -> Chunk:
        """The next piece below the ends; raises LogError."""
        async with self._turns, self._reader() as reader:
            first = await reader.begin_offsets(ends)
            # What retention has taken is passed over.
            starts = {partition: max(positions.get(partition, BEGINNING), first[partition]) for partition in ends}
            ranges = {
                partition: (start, min(start + CHUNK_RECORDS, ends[partition]))
                for partition, start in starts.items()
                if start < ends[partition]
            }
            records = [record async for record in reader.read_to(ranges)]
        whole, after = _whole(records, ranges, ends)
        return Chunk(_entries(self._codec, whole), {**starts, **after})

    async def at(self, places: Iterable[Partition], offsets: Mapping[Partition, Iterable[int]]) -> list[Entry]:
        """The entries at those offsets, as far as the log still has them, in no order; raises LogError."""
        found: list[Record] = []
        runs = {partition: _runs(sorted(offsets[partition])) for partition in places}
        async with self._turns, self._reader() as reader:
            while any(runs.values()):
                ranges = {partition: left.pop() for partition, left in runs.items() if left}
                found += [record async for record in reader.read_to(ranges)]
        wanted = {partition: set(numbers) for partition, numbers in offsets.items()}
        kept = [record for record in found if record.offset in wanted[Partition(record.topic, record.partition)]]
        return _entries(self._codec, kept)

    async def positions_of(self, start: Start, now: Mapping[Partition, int]) -> Positions:
        """Where a start is: that time in all partitions, or, with `now` in the others, that offset in one."""
        async with self._reader() as reader:
            partitions = [partition for topic in TOPICS for partition in await reader.partitions(topic)]
            if not start.topic:
                return await reader.offsets_at(partitions, start.time_us // 1000)
            found = {**await reader.end_offsets(partitions), **now}
        return {**found, Partition(start.topic, start.partition): start.offset}

    def _reader(self) -> LogReader:
        return LogReader(self._settings, f"{self._name}.backlog", note_ends=True)


def _whole(
    records: Iterable[Record], ranges: Mapping[Partition, tuple[int, int]], ends: Mapping[Partition, int]
) -> tuple[list[Record], Positions]:
    """Those records of which nothing earlier can be missing, in order, and the positions after them.

    Where a topic's piece ends before its end, what other topics of its partition number have later has to wait.
    """
    found: dict[Partition, list[Record]] = {partition: [] for partition in ranges}
    for record in records:
        found[Partition(record.topic, record.partition)].append(record)
    horizon: dict[int, int] = {}
    for partition, own in found.items():
        if ranges[partition][1] < ends[partition] and own:
            horizon[partition.partition] = min(
                horizon.get(partition.partition, own[-1].timestamp_ms), own[-1].timestamp_ms
            )
    whole: list[Record] = []
    after: Positions = {}
    for partition, own in found.items():
        until_ms = horizon.get(partition.partition)
        ready = [record for record in own if until_ms is None or record.timestamp_ms <= until_ms]
        whole += ready
        after[partition] = ranges[partition][1] if len(ready) == len(own) else own[len(ready)].offset
    return sorted(whole, key=_order), after


def _order(record: Record) -> tuple[int, int, int, int]:
    return record.partition, record.timestamp_ms, TOPICS.index(record.topic), record.offset


def _runs(offsets: list[int]) -> list[tuple[int, int]]:
    """Ranges that hold the offsets, each worth reading as a whole."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset - runs[-1][1] < CHUNK_RECORDS:
            runs[-1] = (runs[-1][0], offset + 1)
        else:
            runs.append((offset, offset + 1))
    return runs


def _entries(codec: Codec, records: Iterable[Record]) -> list[Entry]:
    """What can be read; the rest is in the dead letters, by those who guard its topic."""
    entries = []
    for record in records:
        with contextlib.suppress(CodecError):
            entries.append(Entry(record, codec.decode_keyed(record.topic, record.key, record.value)))
    return entries


def by_topic(positions: Mapping[Partition, int]) -> dict[str, list[int]]:
    """The positions as progress keeps them."""
    found: dict[str, list[int]] = defaultdict(list)
    for partition in sorted(positions):
        found[partition.topic].append(positions[partition])
    return dict(found)


def positions_in(progress: Mapping[str, list[int]]) -> Positions:
    """The inverse of `by_topic`."""
    return {Partition(topic, number): offset for topic, own in progress.items() for number, offset in enumerate(own)}

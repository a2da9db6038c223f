"""What a new owner of partitions reads back before the first record: snapshots, and what was already emitted.

State is a fold of the log and a snapshot only a cache of it. What a stage had emitted for records that it is about to
redo lies in the same partition of its own output topic; those events are the truth, and are adopted.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping

import structlog

from processors.pipeline import Stage
from processors.runner import Restored
from schemas.event import Event
from streams.client import Partition
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, END, LogReader, read_range
from streams.settings import Settings
from streams.topics import state_topic

log = structlog.get_logger(__name__)

# An event is stamped by the machine that wrote it, so the clocks of two machines come into play.
CLOCK_SKEW_MS = 5000
# Partitions are assigned within a moment of each other; connections cost more than this.
TOGETHER_S = 0.01


class Recovery:
    """Reads back partitions; those that are asked for together are read together."""

    def __init__(self, settings: Settings, stage: Stage, codec: Codec) -> None:
        self._settings = settings
        self._stage = stage
        self._codec = codec
        self._asked: dict[Partition, int | None] = {}
        self._batch: asyncio.Task[dict[int, Restored]] | None = None

    async def of(self, committed: Mapping[Partition, int | None]) -> Restored:
        """What is known of one partition number; `committed` has each topic's offset, None where there is none yet."""
        self._asked |= committed
        if self._batch is None:
            self._batch = asyncio.get_running_loop().create_task(self._read())
        restored = await asyncio.shield(self._batch)
        return restored[next(iter(committed)).partition]

    async def _read(self) -> dict[int, Restored]:
        await asyncio.sleep(TOGETHER_S)
        committed, self._asked, self._batch = self._asked, {}, None
        return await recover(self._settings, self._stage, self._codec, committed)


async def recover(
    settings: Settings, stage: Stage, codec: Codec, committed: Mapping[Partition, int | None]
) -> dict[int, Restored]:
    """What is known of each partition number that occurs in `committed` (None: nothing committed yet)."""
    numbers = sorted({partition.partition for partition in committed})
    snapshots, recorded = await asyncio.gather(
        _snapshots(settings, stage, numbers), _recorded(settings, stage, codec, committed)
    )
    return {number: Restored(snapshots[number], recorded[number]) for number in numbers}


async def _snapshots(settings: Settings, stage: Stage, numbers: Iterable[int]) -> Mapping[int, dict[str, bytes]]:
    topic = state_topic(stage.name)
    found: dict[int, dict[str, bytes]] = {number: {} for number in numbers}
    ranges = {Partition(topic, number): (BEGINNING, END) for number in found}
    async for record in read_range(settings, ranges, f"{stage.group}.snapshots"):
        session_id = (record.key or b"").decode()
        if record.value is None:
            found[record.partition].pop(session_id, None)
        else:
            found[record.partition][session_id] = record.value
    return found


async def _recorded(
    settings: Settings, stage: Stage, codec: Codec, committed: Mapping[Partition, int | None]
) -> Mapping[int, list[Event]]:
    oldest_ms = await _oldest_unfinished(settings, stage, committed)
    found: dict[int, list[Event]] = defaultdict(list)
    if not oldest_ms:
        return found
    async with LogReader(settings, f"{stage.group}.outputs") as reader:
        starts: dict[Partition, int] = {}
        for number, timestamp_ms in oldest_ms.items():
            output = Partition(stage.produces.TOPIC, number)
            starts |= await reader.offsets_at([output], timestamp_ms - CLOCK_SKEW_MS)
    ranges = {partition: (start, END) for partition, start in starts.items()}
    async for record in read_range(settings, ranges, f"{stage.group}.outputs"):
        try:
            found[record.partition].append(codec.decode(record.topic, record.value))
        except CodecError as error:
            log.warning("foreign_output_skipped", topic=record.topic, offset=record.offset, reason=error.reason)
    return found


async def _oldest_unfinished(
    settings: Settings, stage: Stage, committed: Mapping[Partition, int | None]
) -> dict[int, int]:
    """For each partition number with records to redo, the time in milliseconds of the oldest."""
    async with LogReader(settings, f"{stage.group}.backlog") as reader:
        first, last = await reader.begin_offsets(committed), await reader.end_offsets(committed)
    next_record = {}
    for partition, offset in committed.items():
        start = max(first[partition], offset or 0)
        if start < last[partition]:
            next_record[partition] = (start, start + 1)
    oldest: dict[int, int] = {}
    async for record in read_range(settings, next_record, f"{stage.group}.backlog"):
        oldest[record.partition] = min(record.timestamp_ms, oldest.get(record.partition, record.timestamp_ms))
    return oldest

"""Gathers what a call left behind: from the topics, ClickHouse, the demo ERP, and the groups' committed offsets."""

from collections.abc import Callable, Collection, Sequence

from api.client import CallResult
from bench.faults.checks import Evidence, Finding, Kind, Place, check, check_offsets
from bench.faults.patience import settle
from bench.faults.platform import Platform
from bench.faults.reference import Reference
from processors.clickhouse.rows import TABLE_OF_TOPIC
from processors.clickhouse.sink import GROUP as SINK_GROUP
from processors.pipeline import PIPELINE, STAGES
from schemas.event import Event
from schemas.events import AudioFrame, DeadLetter
from streams.client import Partition
from streams.codec import CodecError
from streams.consumer import BEGINNING, END, LogReader, Record, read_range, session_records
from streams.registry import codec_for
from streams.settings import Settings

SETTLES_WITHIN_S = 45.0


async def examine(
    platform: Platform, result: CallResult, caller: str, reference: Reference
) -> tuple[int, list[Finding]]:
    """How many records repeat an id, and every broken invariant of the call; what is merely late is waited for."""

    async def once() -> tuple[int, list[Finding]]:
        events = await _events(platform.settings, result.session_id)
        tickets, rows = await platform.tickets(caller), await platform.rows(result.session_id)
        evidence = Evidence(result, events, tickets, rows)
        return len(events) - len({event.event_id for event in events}), check(evidence, reference, TABLE_OF_TOPIC)

    def late(found: tuple[int, list[Finding]]) -> bool:
        return any(finding.kind is not Kind.TRANSCRIPT for finding in found[1])

    return await settle(once, late, SETTLES_WITHIN_S)


async def tickets_of(platform: Platform, caller: str) -> int:
    """How many tickets the caller has in the ERP."""
    return len(await platform.tickets(caller))


async def examine_offsets(settings: Settings, doubtful: Collection[Place] = ()) -> list[Finding]:
    """Groups that do not come to the end of their topics, once the platform is idle.

    Audio of a call that nobody began is waited on for a quarter of an hour: such partitions are left out.
    """
    held = {Partition(topic, partition) for topic, partition, _ in doubtful if topic == AudioFrame.TOPIC}
    groups = {stage.group: [event.TOPIC for event in stage.consumes] for stage in PIPELINE}
    groups[SINK_GROUP] = list(TABLE_OF_TOPIC)

    async def once() -> list[Finding]:
        committed: dict[str, int | None] = {}
        ends: dict[str, int] = {}
        for group, topics in groups.items():
            async with LogReader(settings, "trunkline.faults", group) as reader:
                partitions = [partition for topic in topics for partition in await reader.partitions(topic)]
                last, places = await reader.end_offsets(partitions), await reader.committed(partitions)
            for partition in partitions:
                if group == STAGES["stt"].group and partition in held:
                    continue
                name = f"{group} {partition.topic}-{partition.partition}"
                ends[name], committed[name] = last[partition], places[partition]
        return list(check_offsets(committed, ends))

    return await settle(once, bool, SETTLES_WITHIN_S)


class DeadLetterBox:
    """Reads the dead letters, each once."""

    def __init__(self) -> None:
        self._next: dict[Partition, int] = {}
        self._places: list[Place] = []
        self._ids: set[str] = set()

    async def places(self, settings: Settings) -> list[Place]:
        """Where the record of each dead letter so far lay; letters that repeat an id count once."""
        async with LogReader(settings, "trunkline.faults") as reader:
            partitions = await reader.partitions(DeadLetter.TOPIC)
        ranges = {partition: (self._next.get(partition, BEGINNING), END) for partition in partitions}
        codec = codec_for(settings)
        async for record in read_range(settings, ranges, "trunkline.faults"):
            self._next[Partition(record.topic, record.partition)] = record.offset + 1
            try:
                letter = codec.decode_keyed(record.topic, record.key, record.value)
            except CodecError:  # somebody poisoned the dead letters, too
                continue
            if isinstance(letter, DeadLetter) and letter.event_id not in self._ids:
                self._ids.add(letter.event_id)
                self._places.append((letter.source_topic, letter.source_partition, letter.source_offset))
        return self._places

    async def examine(self, settings: Settings, judge: Callable[[Sequence[Place]], list[Finding]]) -> list[Finding]:
        """What the judge finds wrong with the places, waiting for letters that are late."""

        async def once() -> list[Finding]:
            return judge(await self.places(settings))

        return await settle(once, bool, SETTLES_WITHIN_S)


async def _events(settings: Settings, session_id: str) -> list[Event]:
    """The session's events as they lie in the topics; poison under its key is none."""
    codec = codec_for(settings)

    def decoded(record: Record) -> Event | None:
        try:
            return codec.decode_keyed(record.topic, record.key, record.value)
        except CodecError:
            return None

    records = await session_records(settings, session_id)
    return [event for event in map(decoded, records) if event is not None]

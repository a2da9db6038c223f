"""Compares Kafka, ClickHouse and what was signed, record by record, and names what is wrong.

Each partition is read in pieces of offsets: the records, the audit record of them, and the rows that events have in
their tables. Records that the sink has not written yet are left for the next time.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from processors.audit.chain import Chain, Entry, digest_of, key_text
from processors.audit.checkpoints import Statement
from processors.audit.comparison import (
    BOTH,
    CLICKHOUSE,
    KAFKA,
    Bounds,
    Expected,
    Finding,
    Kept,
    Kind,
    Walk,
    altered_rows,
)
from processors.audit.ledger import TABLE, is_chained
from processors.audit.signed import Series, Signed, read_series, series_of
from processors.audit.tables import Ask, Tables
from processors.clickhouse.rows import TABLE_OF_TOPIC, row_of
from processors.clickhouse.sink import GROUP
from processors.privacy import load_policies
from schemas.events import Checkpoint
from streams.client import Partition
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, END, LogReader, Record
from streams.keys import partition_of
from streams.settings import Settings
from streams.topics import TOPICS

WINDOW = 50_000
# How far behind what Kafka holds and what was signed the audit record is looked through; what it has further on was
# added to it.
_BEYOND = 1_000_000
_SLACK_MS = 5_000
_DAY_MS = 86_400_000
_IDS_A_QUERY = 1000
# Rows of the audit record go when ClickHouse finds time; so long before that they are left out.
_MARGIN_DAYS = 7


@dataclass(slots=True)
class Report:
    """What was compared, and what is wrong: of each chain and each table of a call, the first.

    `expired`: records that retention has taken from Kafka; `pending`: those that the sink has not written yet;
    `unsigned`: those behind the last signed head of their chain.
    """

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    expired: int = 0
    pending: int = 0
    unsigned: int = 0
    checkpoints: int = 0
    signed_until_us: int = 0


@dataclass(frozen=True, slots=True)
class _Span:
    """From where to where a partition is compared; Kafka has it from `begin` to `kafka_end`, tables to `written`."""

    place: Partition
    first: int
    end: int
    begin: int
    kafka_end: int
    written: int


class Verifier:
    """For one verification. `ask` blocks and is called in threads; errors of it come through."""

    def __init__(
        self, settings: Settings, codec: Codec, ask: Ask, trusted: Sequence[Ed25519PublicKey], clock: Clock
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._policies = load_policies(settings.privacy.policies_dir)
        self._ask = ask
        self._trusted = trusted
        self._clock = clock
        self._report = Report()
        self._signed = Signed()
        self._entries_since_ms = 0

    async def verify(self, key: str | None = None, anchor: Statement | None = None) -> Report:
        """Of one call, or with None of everything. `anchor` is a statement that must be among those signed.

        Raises LogError where the log is not read.
        """
        tables = Tables(self._ask, key)
        async with LogReader(self._settings, "trunkline.audit", note_ends=True) as reader:
            began_ms, ended_ms = (None, None) if key is None else await self._times(reader, tables, key)
            series = await self._read_signed(reader, tables, (began_ms, ended_ms) if anchor is None else (None, None))
            self._look_for(anchor)
            spans = await self._spans(reader, tables, key, began_ms, ended_ms)
            for span in spans:
                await self._compare(reader, tables, span, key)
            await self._look_beside(reader, tables, spans)
            for one in series:
                await self._compare_checkpoints(reader, one)
        self._report.findings = _firsts(self._report.findings)
        return self._report

    async def _times(self, reader: LogReader, tables: Tables, key: str) -> tuple[int | None, int | None]:
        """When the call began, by Kafka's voice.sessions, and when it ended, by the audit record."""
        sessions = Partition("voice.sessions", partition_of(key, self._settings.kafka.partitions))
        began_ms = None
        async for record in reader.read_to({sessions: (BEGINNING, END)}):
            if began_ms is None and key_text(record.key) == key:
                began_ms = record.timestamp_ms - _SLACK_MS
        ended_ms = await asyncio.to_thread(tables.ended_ms)
        return began_ms, None if ended_ms is None else ended_ms + _SLACK_MS

    # What was signed.

    async def _read_signed(
        self, reader: LogReader, tables: Tables, times: tuple[int | None, int | None]
    ) -> list[Series]:
        """Reads the checkpoints of that time, and of the day after it: the sink may have been behind."""
        if (days := await asyncio.to_thread(tables.kept_days, TABLE)) is not None:
            self._entries_since_ms = self._clock.now_us() // 1000 - (days - _MARGIN_DAYS) * _DAY_MS
            self._signed.since_ms = self._entries_since_ms + _DAY_MS
        since_ms, until_ms = times[0], None if times[1] is None else times[1] + _DAY_MS
        found = [await series_of(self._settings, reader, key, since_ms, until_ms) for key in self._trusted]
        for series in found:
            self._report.findings += await read_series(reader, self._codec, self._ask, series, self._signed)
        self._report.checkpoints, self._report.signed_until_us = self._signed.count, self._signed.until_us
        return found

    def _look_for(self, anchor: Statement | None) -> None:
        if anchor is not None and anchor.digest not in self._signed.digests:
            detail = f"checkpoint {anchor.number}, which was kept elsewhere"
            self._report.findings.append(Finding(BOTH, "removed", "", Checkpoint.TOPIC, 0, anchor.number, detail))

    async def _compare_checkpoints(self, reader: LogReader, series: Series) -> None:
        """The rows of the series' checkpoints: that it is whole in one of the stores is known."""
        place, tables = series.place, Tables(self._ask, series.name)
        written = min((await asyncio.to_thread(tables.written, GROUP)).get(place, 0), series.end)
        begin = (await reader.begin_offsets([place]))[place]
        await self._compare(
            reader, tables, _Span(place, series.first, written, begin, series.end, written), series.name
        )

    # Where to look.

    async def _spans(
        self, reader: LogReader, tables: Tables, key: str | None, began_ms: int | None, ended_ms: int | None
    ) -> list[_Span]:
        known = await asyncio.to_thread(tables.places)
        written = await asyncio.to_thread(tables.written, GROUP)
        wanted = await self._places(reader, key, known)
        begins, ends = await reader.begin_offsets(wanted), await reader.end_offsets(wanted)
        firsts = begins if began_ms is None else await reader.offsets_at(wanted, began_ms)
        lasts = ends if ended_ms is None else await reader.offsets_at(wanted, ended_ms)
        spans = []
        for place in wanted:
            first, last = known.get(place, (firsts[place], -1))
            signed = max(self._signed.offsets.get(place, 0), self._signed.end(place, None))
            limit = max(min(written.get(place, 0), ends[place]), signed)
            beyond = max(ends[place], limit) + _BEYOND
            end = max(min(lasts[place], limit), min(last + 1, beyond), self._signed.end(place, key))
            spans.append(_Span(place, min(first, firsts[place]), end, begins[place], ends[place], limit))
            if key is None:
                self._report.pending += max(0, ends[place] - limit)
        return spans

    async def _places(self, reader: LogReader, key: str | None, known: Iterable[Partition]) -> list[Partition]:
        """The partitions that exist, as far as they concern the call."""
        every = {place for topic in TABLE_OF_TOPIC if is_chained(topic) for place in await reader.partitions(topic)}
        if key is None:
            return sorted(every)
        number = partition_of(key, self._settings.kafka.partitions)
        signed = {place for place, chains in self._signed.heads.items() if key in chains}
        return sorted({place for place in every if place.partition == number or place in {*known, *signed}})

    # Record by record.

    async def _compare(self, reader: LogReader, tables: Tables, span: _Span, key: str | None) -> None:
        bounds = self._bounds(span)
        walks: dict[str, Walk] = {}
        for first in range(span.first, span.end, WINDOW):
            end = min(first + WINDOW, span.end)
            records = await self._records(reader, span, first, end, key)
            doubtful = {
                one.offset for one in self._report.findings if one.store == KAFKA and one.topic == Checkpoint.TOPIC
            }
            if is_chained(span.place.topic):
                entries = await asyncio.to_thread(tables.entries, span.place, first, end)
                doubtful = self._walk(span.place, records, entries, walks, bounds)
            sure = [record for record in records if record.offset not in doubtful]
            await self._compare_rows(tables, span, (first, end), sure, doubtful)
        for one in self._signed.heads.get(span.place, ()):
            if key in (None, one):
                walks.setdefault(one, self._walk_of(Chain(one, *span.place), bounds))
        for walk in walks.values():
            self._finish(walk)

    def _bounds(self, span: _Span) -> Bounds:
        retention_ms = int(TOPICS[span.place.topic].config(self._settings)["retention.ms"])
        kept_since_ms = self._clock.now_us() // 1000 - retention_ms if retention_ms >= 0 else 0
        return Bounds(span.begin, kept_since_ms, self._signed.since.get(span.place, 0))

    async def _records(self, reader: LogReader, span: _Span, first: int, end: int, key: str | None) -> list[Record]:
        start, end = max(first, span.begin), min(end, span.kafka_end)
        if start >= end:
            return []
        return [
            record
            async for record in reader.read_to({span.place: (start, end)})
            if key is None or key_text(record.key) == key
        ]

    def _walk(
        self,
        place: Partition,
        records: Sequence[Record],
        entries: Sequence[Entry],
        walks: dict[str, Walk],
        bounds: Bounds,
    ) -> set[int]:
        """Goes on along the chains; returns the offsets at which Kafka and the audit record differ."""
        kafka: dict[str, list[Kept]] = defaultdict(list)
        for record in records:
            if record.timestamp_ms >= self._entries_since_ms:
                kafka[key_text(record.key)].append(Kept(record.offset, digest_of(record)))
        recorded: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.recorded_ms >= self._entries_since_ms:
                recorded[entry.chain.key].append(entry)
        for key in sorted({*kafka, *recorded}):
            if key not in walks:
                walks[key] = self._walk_of(Chain(key, *place), bounds)
            walks[key].feed(kafka.get(key, []), recorded.get(key, []))
        found = {(key, *one) for key, kept in kafka.items() for one in kept}
        known = {(key, one.offset, one.digest) for key, chained in recorded.items() for one in chained}
        return {offset for _, offset, _ in found ^ known if offset >= bounds.chained_since}

    def _walk_of(self, chain: Chain, bounds: Bounds) -> Walk:
        return Walk(chain, bounds, self._signed.of(chain), chain in self._signed.old)

    def _finish(self, walk: Walk) -> None:
        if (finding := walk.finish()) is not None:
            self._report.findings.append(finding)
        self._report.records += walk.checked
        self._report.expired += walk.expired
        self._report.unsigned += walk.unsigned

    async def _compare_rows(
        self, tables: Tables, span: _Span, window: tuple[int, int], records: Sequence[Record], doubtful: set[int]
    ) -> None:
        """The rows that the records give; what the rows of doubtful ones should be, nobody knows."""
        place, event = span.place, TOPICS[span.place.topic].event
        assert event is not None
        expected = await asyncio.to_thread(self._expected, tables, records)
        found = [one for one in await asyncio.to_thread(tables.rows, event, place, *window) if one[0] not in doubtful]
        wrong, missing = altered_rows(expected, found, span.begin)
        lost = await self._truly_missing(tables, place.topic, expected, missing)
        gone: list[tuple[Kind, int, str]] = [("removed", offset, "its row") for offset in sorted(lost)]
        keys = {offset: str(columns["session_id"]) for offset, columns in found}
        keys |= {record.offset: key_text(record.key) for record in records}
        for kind, offset, detail in [*wrong, *gone]:
            self._stray(place, offset, keys[offset], kind, detail, TABLE_OF_TOPIC[place.topic])
        self._report.rows += len(found)

    def _expected(self, tables: Tables, records: Sequence[Record]) -> dict[int, Expected]:
        """The rows that these records give, by offset; what is no event gives none."""
        expected = {}
        for record in records:
            with contextlib.suppress(CodecError):
                event, row = row_of(self._codec, self._policies, record)
                expected[record.offset] = tables.shown(event, row, self._codec.unproved(event))
        return expected

    async def _truly_missing(
        self, tables: Tables, topic: str, expected: Mapping[int, Expected], missing: set[int]
    ) -> set[int]:
        """Without what has its row at a repeat's offset, and without what the table has let go of by age."""
        if not missing:
            return missing
        days = await asyncio.to_thread(tables.kept_days, topic)
        oldest_us = 0 if days is None else self._clock.now_us() - days * _DAY_MS * 1000
        left = sorted(offset for offset in missing if expected[offset].occurred_at >= oldest_us)
        lost = set()
        for at in range(0, len(left), _IDS_A_QUERY):
            some = left[at : at + _IDS_A_QUERY]
            there = await asyncio.to_thread(tables.present, topic, [expected[offset].event_id for offset in some])
            lost |= {offset for offset in some if expected[offset].event_id not in there}
        return lost

    async def _look_beside(self, reader: LogReader, tables: Tables, spans: Sequence[_Span]) -> None:
        """Rows where no record of the call, or of anything, is."""
        by_topic: dict[str, dict[int, _Span]] = defaultdict(dict)
        for span in spans:
            by_topic[span.place.topic][span.place.partition] = span
        for topic, places in by_topic.items():
            for table in (TABLE_OF_TOPIC[topic], TABLE) if is_chained(topic) else (TABLE_OF_TOPIC[topic],):
                found = await asyncio.to_thread(tables.strays, table, topic, _ranges(places.values()))
                # What came while this ran is where it should be.
                ends = await reader.end_offsets([span.place for span in places.values()]) if found else {}
                for number, offset, key in found:
                    of_place = places.get(number)
                    if of_place is None or not of_place.written <= offset < ends[of_place.place]:
                        self._stray(Partition(topic, number), offset, key, "added", "no record is there", table)

    def _stray(self, place: Partition, offset: int, key: str, kind: Kind, detail: str, table: str) -> None:
        self._report.findings.append(Finding(CLICKHOUSE, kind, key, *place, offset, detail, table))


def _ranges(spans: Iterable[_Span]) -> dict[int, list[tuple[int, int]]]:
    """Where rows may be, by partition: what was compared, and what Kafka has no more."""
    return {span.place.partition: [(0, span.begin), (span.first, span.end)] for span in spans}


def _firsts(findings: Iterable[Finding]) -> list[Finding]:
    """Of each chain, and of each table of a call, the first thing that is wrong."""
    first: dict[tuple[str, str, int, str], Finding] = {}
    for one in sorted(findings, key=lambda one: (one.topic, one.partition, one.offset)):
        first.setdefault((one.key, one.topic, one.partition, one.table), one)
    return list(first.values())

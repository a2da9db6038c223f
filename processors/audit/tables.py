"""ClickHouse's copy of events, read so that it can be compared: texts and numbers that JSON keeps exactly."""

import math
import re
import struct
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from processors.audit.chain import Chain, Entry
from processors.audit.comparison import Expected
from processors.audit.ledger import TABLE
from processors.clickhouse.rows import TABLE_OF_TOPIC, columns
from schemas.event import Event
from schemas.events import ChainHead, Checkpoint
from streams.client import Partition

# Asks ClickHouse: a query and the values of its `{name:Type}`; the rows.
Ask = Callable[[str, Mapping[str, str]], Sequence[Sequence[Any]]]

_STRINGS = re.compile(r"(LowCardinality\()?(Nullable\()?String\)*")
_IN = "kafka_partition = {partition:UInt16} AND kafka_offset >= {first:UInt64} AND kafka_offset < {end:UInt64}"


class Tables:
    """Reads rows by where their records lie. With a `key`, those of one call alone."""

    def __init__(self, ask: Ask, key: str | None) -> None:
        self._ask = ask
        self._key = key
        self._types: dict[str, Mapping[str, str]] = {}

    def entries(self, place: Partition, first: int, end: int) -> list[Entry]:
        """The audit record of a partition, in offset order."""
        rows = self._ask(
            "SELECT record_key, kafka_offset, position, hex(digest), hex(link), toUnixTimestamp64Milli(recorded_at) "
            f"FROM {TABLE} WHERE kafka_topic = {{topic:String}} AND {_IN} {self._only('record_key')} "
            "ORDER BY kafka_offset, ingested_at",
            self._given(place, first, end),
        )
        return [
            Entry(Chain(key, *place), position, offset, bytes.fromhex(digest), bytes.fromhex(link), at_ms)
            for key, offset, position, digest, link, at_ms in rows
        ]

    def places(self) -> dict[Partition, tuple[int, int]]:
        """The partitions that the audit record names, with the first and the last offset in each."""
        where = "WHERE record_key = {key:String}" if self._key is not None else ""
        rows = self._ask(
            f"SELECT kafka_topic, kafka_partition, min(kafka_offset), max(kafka_offset) FROM {TABLE} {where} "
            "GROUP BY kafka_topic, kafka_partition",
            {"key": self._key or ""},
        )
        return {Partition(topic, number): (first, last) for topic, number, first, last in rows}

    def ended_ms(self) -> int | None:
        """When the call's last record was written, as the audit record has it; None where it has none."""
        rows = self._ask(
            f"SELECT count(), toUnixTimestamp64Milli(max(recorded_at)) FROM {TABLE} WHERE record_key = {{key:String}}",
            {"key": self._key or ""},
        )
        return rows[0][1] if rows[0][0] else None

    def checkpoints(self, series: str, first: int, end: int) -> list[tuple[int, Checkpoint]]:
        """ClickHouse's copies of a series' checkpoints in a range of offsets, each with its own."""
        rows = self._ask(
            "SELECT kafka_offset, toString(event_id), seq, toUnixTimestamp64Micro(occurred_at), statement, signature, "
            "public_key, heads FROM checkpoints AS t WHERE toString(session_id) = {series:String} "
            "AND kafka_offset >= {first:UInt64} AND kafka_offset < {end:UInt64} ORDER BY seq",
            {"series": series, "first": str(first), "end": str(end)},
        )
        return [
            (
                offset,
                Checkpoint(
                    event_id=event_id,
                    session_id=series,
                    tenant_id="",
                    agent_id="",
                    turn=0,
                    seq=seq,
                    occurred_at=at_us,
                    statement=statement,
                    signature=signature,
                    public_key=public_key,
                    heads=tuple(ChainHead(**head) for head in heads),
                ),
            )
            for offset, event_id, seq, at_us, statement, signature, public_key, heads in rows
        ]

    def written(self, group: str) -> dict[Partition, int]:
        """Up to where the sink has written, the offset of the next record of each partition."""
        rows = self._ask(
            "SELECT kafka_topic, kafka_partition, max(next_offset) FROM sink_offsets "
            "WHERE consumer_group = {group:String} GROUP BY kafka_topic, kafka_partition",
            {"group": group},
        )
        return {Partition(topic, number): offset for topic, number, offset in rows}

    def rows(self, event: type[Event], place: Partition, first: int, end: int) -> list[tuple[int, dict[str, object]]]:
        """Rows of events as they are shown, each with its offset; `shown` says how a row will be."""
        table = TABLE_OF_TOPIC[place.topic]
        types = self._types_of(table)
        names = [name for name in columns(event) if name not in ("kafka_partition", "kafka_offset")]
        chosen = ", ".join(_expression(name, types[name]) for name in names)
        only = self._only("toString(session_id)")
        rows = self._ask(
            f"SELECT kafka_offset, {chosen} FROM {table} AS t WHERE {_IN} {only} ORDER BY kafka_offset",
            self._given(place, first, end),
        )
        return [
            (offset, {name: _read(types[name], value) for name, value in zip(names, values, strict=True)})
            for offset, *values in rows
        ]

    def strays(
        self, table: str, topic: str, ranges: Mapping[int, Sequence[tuple[int, int]]]
    ) -> list[tuple[int, int, str]]:
        """Partition, offset and key of rows outside these ranges of offsets, by partition; the first hundred."""
        inside = " OR ".join(
            f"(kafka_partition = {number} AND kafka_offset >= {first} AND kafka_offset < {end})"
            for number, some in ranges.items()
            for first, end in some
        )
        key, of_topic = ("record_key", "AND kafka_topic = {topic:String}") if table == TABLE else ("session_id", "")
        rows = self._ask(
            f"SELECT kafka_partition, kafka_offset, toString({key}) FROM {table} "
            f"WHERE NOT ({inside}) {of_topic} {self._only(f'toString({key})')} ORDER BY ALL LIMIT 100",
            {"topic": topic, "key": self._key or ""},
        )
        return [(number, offset, name) for number, offset, name in rows]

    def present(self, topic: str, events: Sequence[str]) -> set[str]:
        """Which of these events have a row, wherever."""
        listed = ", ".join(f"'{uuid.UUID(one)}'" for one in events)
        rows = self._ask(f"SELECT DISTINCT event_id FROM {TABLE_OF_TOPIC[topic]} WHERE event_id IN ({listed})", {})
        return {one for (one,) in rows}

    def kept_days(self, topic: str) -> int | None:
        """After how many days the table lets go of rows; None where it keeps them."""
        ((engine,),) = self._ask(
            "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
            {"table": TABLE_OF_TOPIC.get(topic, topic)},
        )
        found = re.search(r"TTL .*toIntervalDay\((\d+)\)", engine)
        return int(found[1]) if found else None

    def shown(self, event: Event, row: Sequence[Any], unproved: Collection[str]) -> Expected:
        """The row that an event gives, as `rows` shows it once it is there; without what cannot be proved."""
        types = self._types_of(TABLE_OF_TOPIC[event.TOPIC])
        named = dict(zip(columns(type(event)), row, strict=True))
        for name in ("kafka_partition", "kafka_offset", *("pcm_bytes" if one == "pcm" else one for one in unproved)):
            del named[name]
        return Expected(
            event.event_id, event.occurred_at, {name: _written(types[name], value) for name, value in named.items()}
        )

    def _types_of(self, table: str) -> Mapping[str, str]:
        if table not in self._types:
            rows = self._ask(
                "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}",
                {"table": table},
            )
            self._types[table] = {str(name): str(kind) for name, kind in rows}
        return self._types[table]

    def _only(self, column: str) -> str:
        return "" if self._key is None else f"AND {column} = {{key:String}}"

    def _given(self, place: Partition, first: int, end: int) -> dict[str, str]:
        given = {"topic": place.topic, "partition": str(place.partition), "first": str(first), "end": str(end)}
        return given if self._key is None else {**given, "key": self._key}


def _expression(name: str, kind: str) -> str:
    """What is selected, so that bytes that are no text and times come through JSON."""
    if _STRINGS.fullmatch(kind):
        return f"hex(t.{name})"
    if kind == "Map(String, String)":
        return f"mapApply((k, v) -> (hex(k), hex(v)), t.{name})"
    if "DateTime64" in kind:
        return f"toUnixTimestamp64Micro(t.{name})"
    return f"t.{name}"


def _read(kind: str, value: Any) -> object:
    """A value as ClickHouse answered it."""
    return _float(value) if kind == "Float32" else _plain(value)


def _written(kind: str, value: Any) -> object:
    """A value of a row, as ClickHouse will answer it."""
    if value is None:
        return None
    if _STRINGS.fullmatch(kind):
        return _hex(value)
    if kind == "Map(String, String)":
        return {_hex(name): _hex(one) for name, one in value.items()}
    return _float(value) if kind == "Float32" else _plain(value)


def _plain(value: Any) -> object:
    match value:
        case uuid.UUID():
            return str(value)
        case float():
            return _float(value)
        case list() | tuple():
            return [_plain(one) for one in value]
        case Mapping():
            return {name: _plain(one) for name, one in value.items()}
    return value


def _hex(value: str | bytes) -> str:
    return (value if isinstance(value, bytes) else value.encode()).hex().upper()


def _float(value: Any) -> float | None:
    """In single precision, as the columns have it; what is no number is null in JSON."""
    if value is None or not math.isfinite(value):
        return None
    single: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return single if math.isfinite(single) else None

"""ClickHouse as the sink sees it: the embedded engine or a server, its migrations, batches written once in effect."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clickhouse_connect
import structlog
from clickhouse_connect.datatypes.base import ClickHouseType
from clickhouse_connect.driver.client import Client

from processors.audit.chain import Chain, Head
from processors.audit.ledger import TABLE as AUDIT_RECORDS
from streams.client import Partition
from streams.settings import REPOSITORY, Settings

log = structlog.get_logger(__name__)

_CONNECT_S = 5
_NO_OFFSET = 2**63
MIGRATIONS = REPOSITORY / "infra" / "clickhouse" / "migrations"

Ranges = Mapping[Partition, tuple[int, int]]
Rows = Sequence[Sequence[Any]]


class Store:
    """One connection, for one thread at a time. Methods block; they raise clickhouse_connect's errors."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._group = group
        self._client = connect(settings)
        self._types: dict[str, Sequence[ClickHouseType]] = {}

    def migrate(self, directory: Path = MIGRATIONS) -> list[str]:
        """Applies the numbered SQL files that were not yet, in order; returns their names."""
        self._client.command(
            "CREATE TABLE IF NOT EXISTS migrations (name String, applied_at DateTime64(6, 'UTC') "
            "DEFAULT now64(6, 'UTC')) ENGINE = MergeTree ORDER BY name"
        )
        applied = {name for (name,) in self._client.query("SELECT name FROM migrations").result_rows}
        fresh = [path for path in sorted(directory.glob("[0-9]*.sql")) if path.name not in applied]
        for path in fresh:
            for statement in statements(path.read_text()):
                self._client.command(statement)
            self._client.insert("migrations", [[path.name]], column_names=["name"])
            log.info("migrated", file=path.name)
        return [path.name for path in fresh]

    def offsets(self) -> dict[Partition, int]:
        """The offset of the next record to write, for every partition ever written."""
        rows = self._client.query(
            "SELECT kafka_topic, kafka_partition, max(next_offset) FROM sink_offsets "
            "WHERE consumer_group = {group:String} GROUP BY kafka_topic, kafka_partition",
            parameters={"group": self._group},
        ).result_rows
        return {Partition(topic, partition): offset for topic, partition, offset in rows}

    def heads(self, keys: Sequence[str], below: Mapping[Partition, int]) -> list[tuple[Chain, Head]]:
        """The heads of all chains of these keys, of records below those offsets where they name the partition."""
        return self._heads("record_key IN {keys:Array(String)} AND kafka_offset <", below, _NO_OFFSET, keys)

    def heads_since(self, offsets: Mapping[Partition, int]) -> list[tuple[Chain, Head]]:
        """The heads of the chains that have records at or above those offsets."""
        return self._heads("{keys:Array(String)} = [] AND kafka_offset >=", offsets, 0, ())

    def _heads(
        self, where: str, offsets: Mapping[Partition, int], otherwise: int, keys: Sequence[str]
    ) -> list[tuple[Chain, Head]]:
        rows = self._client.query(
            "SELECT record_key, kafka_topic, kafka_partition, argMax(position, kafka_offset), max(kafka_offset), "
            f"hex(argMax(link, kafka_offset)) FROM {AUDIT_RECORDS} WHERE {where} "
            "transform(concat(kafka_topic, '/', toString(kafka_partition)), {places:Array(String)}, "
            "{offsets:Array(UInt64)}, {otherwise:UInt64}) GROUP BY record_key, kafka_topic, kafka_partition",
            parameters={
                "keys": list(keys),
                "places": [f"{topic}/{number}" for topic, number in offsets],
                "offsets": list(offsets.values()),
                "otherwise": otherwise,
            },
        ).result_rows
        return [(Chain(*row[:3]), Head(row[3], row[4], bytes.fromhex(row[5]))) for row in rows]

    def last_plan(self) -> tuple[int, dict[Partition, tuple[int, int]]]:
        """Number and ranges (first and last offset) of the batch planned last; 0 and nothing before the first."""
        rows = self._client.query(
            "SELECT batch, ranges FROM sink_batches WHERE consumer_group = {group:String} ORDER BY batch DESC LIMIT 1",
            parameters={"group": self._group},
        ).result_rows
        if not rows:
            return 0, {}
        batch, ranges = rows[0]
        return batch, {
            Partition(topic, int(partition)): (first, last)
            for topic, partitions in json.loads(ranges).items()
            for partition, (first, last) in partitions.items()
        }

    def plan(self, batch: int, ranges: Ranges) -> None:
        """Records what is about to be written, so that after a crash exactly that is written again."""
        nested: dict[str, dict[int, tuple[int, int]]] = {}
        for partition, both in ranges.items():
            nested.setdefault(partition.topic, {})[partition.partition] = both
        row = [self._group, batch, json.dumps(nested)]
        self._insert("sink_batches", ("consumer_group", "batch", "ranges"), [row])

    def write(self, batch: int, table: str, columns: tuple[str, ...], rows: Rows) -> None:
        """Inserts a batch's rows of one table; a second time has no effect, on the views fed by the table neither."""
        once = {
            "insert_deduplication_token": f"{self._group}/{batch}/{table}",
            "deduplicate_blocks_in_dependent_materialized_views": 1,
            "async_insert": 0,
        }
        self._insert(table, columns, rows, once)

    def written(self, ranges: Ranges) -> None:
        """Moves the offsets behind a batch whose rows are all there."""
        rows = [[self._group, *partition, last + 1] for partition, (_, last) in ranges.items()]
        self._insert("sink_offsets", ("consumer_group", "kafka_topic", "kafka_partition", "next_offset"), rows)

    def _insert(
        self, table: str, columns: tuple[str, ...], rows: Rows, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Asks for the columns' types once: the client would before each insert, at a fifth of its cost."""
        if (types := self._types.get(table)) is None:
            described = self._client.create_insert_context(table, columns)
            types = self._types[table] = described.column_types
        self._client.insert(
            table, rows, column_names=columns, column_types=types, settings=dict(settings) if settings else None
        )

    def close(self) -> None:
        """Lets go of the engine or the server."""
        self._client.close()


def connect(settings: Settings) -> Client:
    """A client whose database exists."""
    clickhouse = settings.clickhouse
    if clickhouse.host:
        arguments: dict[str, Any] = {
            "host": clickhouse.host,
            "port": clickhouse.port,
            "username": clickhouse.username,
            "password": clickhouse.password.get_secret_value(),
            "secure": clickhouse.secure,
            # A server that hangs is tried again: an insert that it did after all has no second effect.
            "connect_timeout": _CONNECT_S,
            "send_receive_timeout": clickhouse.answer_s,
        }
    else:
        path = settings.data_dir / "clickhouse"
        path.mkdir(parents=True, exist_ok=True)
        arguments = {"interface": "chdb", "path": str(path)}
    client = clickhouse_connect.get_client(**arguments)
    client.command(f"CREATE DATABASE IF NOT EXISTS {identifier(clickhouse.database)}")
    client.close()
    return clickhouse_connect.get_client(**arguments, database=clickhouse.database)


def identifier(name: str) -> str:
    """The name quoted for a statement; raises ValueError for what no plain name is."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"clickhouse.database: letters, digits and underscores are expected, found {name!r}")
    return f"`{name}`"


def statements(sql: str) -> list[str]:
    """The statements of a migration: they end with a semicolon at the end of a line."""
    lines = [line for line in sql.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in re.split(r";\s*(?:\n|$)", "\n".join(lines)) if part.strip()]

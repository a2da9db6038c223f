"""ClickHouse as the sink sees it: the embedded engine or a server, its migrations, batches written once in effect."""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clickhouse_connect
import structlog
from clickhouse_connect.datatypes.base import ClickHouseType
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from processors.audit.chain import Chain, Head
from processors.audit.ledger import TABLE as AUDIT_RECORDS
from processors.clickhouse.rows import TABLES, personal_columns
from streams.client import Partition
from streams.settings import REPOSITORY, Settings

log = structlog.get_logger(__name__)

_CONNECT_S = 5
_NO_OFFSET = 2**63
_OF_SESSIONS = "session_id IN {sessions:Array(UUID)}"
_NO_PARTITION = "197001"
_GONE_S = 60.0
_LOOK_S = 0.2
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

    def erase(self, session_ids: Sequence[str]) -> dict[str, int]:
        """Empties what is personal in these sessions' rows, for good: returns when no file holds it any more.

        Returns the rows by table. Repeating it is harmless.
        """
        given: dict[str, Any] = {"sessions": [str(uuid.UUID(session_id)) for session_id in session_ids]}
        erased = {}
        for event, table in TABLES.items():
            columns = personal_columns(event)
            if not columns:
                continue
            (rows,) = self._client.query(f"SELECT count() FROM {table} WHERE {_OF_SESSIONS}", given).result_rows[0]
            if rows:
                self._blank(table, columns, given)
                erased[table] = int(rows)
        return erased

    def _blank(self, table: str, columns: Mapping[str, str], given: dict[str, Any]) -> None:
        """Rewrites the parts that hold such rows, and waits until the old ones are gone from the disk.

        Replaced parts would lie there for minutes. With no time to live any more they are removed with the next
        statement about partitions, were it about one that does not exist.
        """
        emptied = ", ".join(f"{name} = {value}" for name, value in columns.items())
        settings = {"mutations_sync": 2}
        self._client.command(f"ALTER TABLE {table} MODIFY SETTING old_parts_lifetime = 0")
        try:
            self._client.command(f"ALTER TABLE {table} UPDATE {emptied} WHERE {_OF_SESSIONS}", given, settings=settings)
            deadline_s = time.monotonic() + _GONE_S
            while self._replaced(table):
                if time.monotonic() > deadline_s:
                    raise ClickHouseError(f"{table}: replaced parts are still there after {_GONE_S} s")
                self._client.command(f"ALTER TABLE {table} DROP PARTITION ID '{_NO_PARTITION}'")
                time.sleep(_LOOK_S)
        finally:
            self._client.command(f"ALTER TABLE {table} RESET SETTING old_parts_lifetime")

    def _replaced(self, table: str) -> int:
        own = "database = currentDatabase() AND table = {table:String}"
        query = f"SELECT count() FROM system.parts WHERE {own} AND NOT active"
        return int(self._client.query(query, {"table": table}).result_rows[0][0])

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

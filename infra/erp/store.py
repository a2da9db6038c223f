"""The ERP's data: orders and stock from `catalogue.json`, returns and tickets in SQLite."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

_CATALOGUE = Path(__file__).with_name("catalogue.json")
_RETURN_DAYS = 30

_TABLES = """
CREATE TABLE IF NOT EXISTS tickets (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    problem TEXT NOT NULL, order_number TEXT NOT NULL, caller TEXT NOT NULL, created_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS returns (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    order_number TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    idempotency_key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL
);
INSERT OR IGNORE INTO sqlite_sequence (name, seq) SELECT 'tickets', 7000
    WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'tickets');
"""

Answer = tuple[int, dict[str, Any]]


class Store:
    """Thread-safe: every call opens a connection of its own, and writers take turns."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        catalogue = json.loads(_CATALOGUE.read_text(encoding="utf-8"))
        self._orders = {order["number"]: order for order in catalogue["orders"]}
        self._stock = {item["product"]: item for item in catalogue["stock"]}
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_TABLES)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._file, timeout=10, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            yield connection
        finally:
            connection.close()

    def orders(self) -> list[dict[str, Any]]:
        """All orders."""
        return [_dated(order) for order in self._orders.values()]

    def order(self, number: str) -> dict[str, Any] | None:
        """The order with that number, with dates as of today."""
        order = self._orders.get(number)
        return _dated(order) if order else None

    def stock(self) -> list[dict[str, Any]]:
        """All products."""
        return [_dated(item) for item in self._stock.values()]

    def product(self, name: str) -> dict[str, Any] | None:
        """The product of that name."""
        item = self._stock.get(name.strip().lower())
        return _dated(item) if item else None

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of `tickets` or `returns`, oldest first."""
        with self._connection() as connection:
            found = connection.execute(f"SELECT * FROM {table} ORDER BY number").fetchall()
        return [dict(row) for row in found]

    def open_ticket(self, key: str, problem: str, order_number: str, caller: str) -> Answer:
        """Opens a ticket, once for each key."""

        def effect(connection: sqlite3.Connection) -> Answer:
            cursor = connection.execute(
                "INSERT INTO tickets (problem, order_number, caller, created_at) VALUES (?, ?, ?, ?)",
                (problem, order_number, caller, _now()),
            )
            return 201, {"number": str(cursor.lastrowid), "status": "open"}

        request = {"problem": problem, "order_number": order_number, "caller": caller}
        return self._once(key, {"ticket": request}, effect)

    def start_return(self, key: str, order_number: str) -> Answer:
        """Registers the return of an order, once for each key and once for each order."""

        def effect(connection: sqlite3.Connection) -> Answer:
            order = self._orders.get(order_number)
            if order is None:
                return 404, {"reason": "there is no such order"}
            reason = _why_not_returnable(order)
            if reason:
                return 409, {"reason": reason}
            if connection.execute("SELECT 1 FROM returns WHERE order_number = ?", (order_number,)).fetchone():
                return 409, {"reason": "its return is already registered"}
            cursor = connection.execute(
                "INSERT INTO returns (order_number, created_at) VALUES (?, ?)", (order_number, _now())
            )
            return 201, {"number": str(cursor.lastrowid), "order_number": order_number, "label": "email"}

        return self._once(key, {"return": order_number}, effect)

    def _once(self, key: str, request: Mapping[str, Any], effect: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """The effect and the answer to its key are one transaction, so a crash leaves both or neither."""
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            known = connection.execute("SELECT * FROM answers WHERE idempotency_key = ?", (key,)).fetchone()
            if known is not None:
                connection.execute("ROLLBACK")
                if known["fingerprint"] != fingerprint:
                    return 422, {"reason": "this Idempotency-Key was used for another request"}
                return known["status"], json.loads(known["body"])
            status, body = effect(connection)
            if key:
                connection.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?)", (key, fingerprint, status, json.dumps(body))
                )
            connection.execute("COMMIT")
            return status, body


def _why_not_returnable(order: Mapping[str, Any]) -> str:
    if order["status"] == "cancelled":
        return "it was cancelled"
    if order["status"] in ("processing", "delayed"):
        return "it has not been sent yet"
    if order["status"] == "delivered" and order["delivery_in_days"] < -_RETURN_DAYS:
        return "its return period of 30 days is over"
    return ""


def _dated(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `..._in_days` into dates, so that the demo's data never grows old."""
    dated: dict[str, Any] = {}
    for name, value in record.items():
        if name.endswith("_in_days"):
            day = None if value is None else _today() + timedelta(days=value)
            dated[name.removesuffix("_in_days") + "_date"] = day.isoformat() if day else None
        else:
            dated[name] = value
    return dated


def _today() -> date:
    return datetime.now(UTC).date()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

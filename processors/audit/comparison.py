"""What differs between a chain as Kafka holds it, as the audit record in ClickHouse has it, and as it was signed: pure.

A `Walk` goes along one chain in offset order, in pieces of any size, and names the first record at which something is
wrong. Which store is wrong is what a signature says: the first signed head at or behind the record agrees with one of
the two, or with none. Where no signature reaches yet, the audit record's own links must do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from processors.audit.chain import START, Chain, Entry, Head, link_of

Kind = Literal["altered", "removed", "added", "reordered"]
KAFKA, CLICKHOUSE, BOTH = "kafka", "clickhouse", "kafka and clickhouse"
RECORDS = "audit_records"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where; `table` is ClickHouse's, empty where Kafka is meant. `signed` where a signature says
    so."""

    store: str
    kind: Kind
    key: str
    topic: str
    partition: int
    offset: int
    detail: str
    table: str = ""
    signed: bool = True


class Kept(NamedTuple):
    """A record by its place and its digest."""

    offset: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be missing without anybody's fault in one partition.

    Kafka's first offset; since which time (ms) retention leaves records alone; since which offset records are chained.
    """

    begin: int = 0
    kept_since_ms: int = 0
    chained_since: int = 0

    def has_expired(self, entry: Entry) -> bool:
        """Whether retention has taken the record: it is gone from the partition's beginning, and old enough."""
        return entry.offset < self.begin and entry.recorded_ms < self.kept_since_ms


@dataclass(slots=True)
class Walk:
    """Along one chain; `heads` are its signed ones, by position. `checked`, `expired` and `unsigned` count records.

    `resumes` where heads were signed so long ago that the audit record has let go of their rows: then the first link
    that is left is taken as it is, until a signed head confirms it.
    """

    chain: Chain
    bounds: Bounds
    heads: Sequence[Head] = ()
    resumes: bool = False
    checked: int = 0
    expired: int = 0
    unsigned: int = 0
    _link: bytes = START
    _position: int = 0
    _next_head: int = 0
    _unsigned_from: int = 0
    _kafka: list[Kept] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)
    _finding: Finding | None = None

    def feed(self, kafka: Sequence[Kept], entries: Sequence[Entry]) -> None:
        """The next records of both, each in offset order, of the same offsets."""
        if self._kafka or self._entries:
            self._kafka += kafka
            self._entries += entries
            return
        if self._position == 0 and entries and self.resumes:
            self._position = entries[0].position - 1
            self._link = b""
        at = 0
        for index, entry in enumerate(entries):
            while at < len(kafka) and kafka[at].offset < min(entry.offset, self.bounds.chained_since):
                at += 1
            found = kafka[at] if at < len(kafka) and kafka[at].offset <= entry.offset else None
            if not self._agrees(found, entry):
                self._kafka, self._entries = list(kafka[at:]), list(entries[index:])
                return
            at += found is not None
            self._advance(entry)
        self._kafka = [record for record in kafka[at:] if record.offset >= self.bounds.chained_since]

    def finish(self) -> Finding | None:
        """The first thing that is wrong, None where all is well."""
        if self._finding is None and (self._kafka or self._entries):
            self._finding = self._diagnosed()
        if self._finding is None and self._next_head < len(self.heads):
            head = self.heads[self._next_head]
            self._finding = self._named(
                BOTH, "removed", head.offset, f"{head.position} records were signed, {self._position} are there"
            )
        return self._finding

    def _agrees(self, found: Kept | None, entry: Entry) -> bool:
        if found is None:
            if not self.bounds.has_expired(entry):
                return False
        elif found != (entry.offset, entry.digest):
            return False
        position = self._position + 1
        link = link_of(self._link, self.chain, position, entry.offset, entry.digest) if self._link else entry.link
        return (entry.position, entry.link) == (position, link)

    def _advance(self, entry: Entry) -> None:
        self.checked += 1
        self.expired += entry.offset < self.bounds.begin
        self._link, self._position = entry.link, entry.position
        self._unsigned_from = entry.offset if not self.unsigned else self._unsigned_from
        self.unsigned += 1
        here = Head(entry.position, entry.offset, entry.link)
        while self._next_head < len(self.heads) and self.heads[self._next_head].position <= here.position:
            head = self.heads[self._next_head]
            if head != here and self._finding is None:
                detail = f"this record or one up to offset {head.offset} is not as it was signed"
                self._finding = self._named(BOTH, "altered", min(self._unsigned_from, head.offset), detail)
            self.unsigned = 0
            self._next_head += 1

    def _diagnosed(self) -> Finding:
        """Both from the first difference to the end: which of them was signed, and how the other differs."""
        recorded = [Kept(entry.offset, entry.digest) for entry in self._entries]
        gone = [Kept(one.offset, one.digest) for one in self._entries if self.bounds.has_expired(one)]
        logged = [*gone, *(record for record in self._kafka if record.offset >= self.bounds.chained_since)]
        logged_signed, recorded_signed = self._is_signed(logged), self._is_signed(recorded)
        signed = logged_signed is not None
        if recorded == logged:
            return self._named(CLICKHOUSE, "altered", recorded[0].offset, "its link or position", RECORDS, signed)
        if recorded_signed and not logged_signed:
            return self._named(KAFKA, *difference(recorded, logged))
        if logged_signed and not recorded_signed:
            return self._named(CLICKHOUSE, *difference(logged, recorded), RECORDS)
        if signed and not recorded:
            detail = "it and what was before it, which retention has taken from Kafka"
            return self._named(CLICKHOUSE, "removed", logged[0].offset, detail, RECORDS)
        kind, offset, detail = difference(recorded, logged)
        if signed:
            return self._named(BOTH, kind, offset, f"{detail}; neither is as it was signed")
        if self._is_linked():
            return self._named(KAFKA, kind, offset, f"{detail}, by the audit record alone", signed=False)
        return self._named(CLICKHOUSE, *difference(logged, recorded), RECORDS, signed=False)

    def _is_signed(self, records: Sequence[Kept]) -> bool | None:
        """Whether the next signed head is the head of these; None where none is signed any more."""
        if self._next_head == len(self.heads):
            return None
        head = self.heads[self._next_head]
        link, offset = self._link, -1
        wanted = head.position - self._position
        for number, record in enumerate(records[:wanted], self._position + 1):
            link, offset = link_of(link, self.chain, number, record.offset, record.digest), record.offset
        return len(records) >= wanted and (offset, link) == (head.offset, head.link)

    def _is_linked(self) -> bool:
        """Whether the audit record's own links hold."""
        link = self._link
        for number, entry in enumerate(self._entries, self._position + 1):
            link = link_of(link, self.chain, number, entry.offset, entry.digest)
            if (entry.position, entry.link) != (number, link):
                return False
        return True

    def _named(self, store: str, kind: Kind, offset: int, detail: str, table: str = "", signed: bool = True) -> Finding:
        return Finding(store, kind, *self.chain, offset, detail, table, signed)


def difference(true: Sequence[Kept], other: Sequence[Kept]) -> tuple[Kind, int, str]:
    """How the other first differs from the true one: what, at which offset, in words. They do differ."""
    at = next(
        (index for index, pair in enumerate(zip(true, other, strict=False)) if pair[0] != pair[1]),
        min(len(true), len(other)),
    )
    if at >= len(true):
        return "added", other[at].offset, "it was not there"
    if at >= len(other):
        return "removed", true[at].offset, "it is not there any more"
    was, found = true[at], other[at]
    if was.offset == found.offset and true[at + 1 :] == other[at + 1 :]:
        return "altered", was.offset, "its timestamp, key, value or headers"
    elsewhere = was.digest in {record.digest for record in other[at + 1 :]}
    foreign = found.digest not in {record.digest for record in true[at + 1 :]}
    return _moved(was, found, elsewhere, foreign)


def _moved(was: Kept, found: Kept, elsewhere: bool, foreign: bool) -> tuple[Kind, int, str]:
    """`elsewhere` where the record that was there is further on, `foreign` where that which is there was nowhere."""
    if elsewhere and foreign:
        return "added", found.offset, "it was not there; those behind it have moved"
    if elsewhere:
        return "reordered", min(was.offset, found.offset), "records have changed places"
    if not foreign:
        return "removed", was.offset, "it is not there any more"
    if was.offset == found.offset:
        return "altered", was.offset, "its timestamp, key, value or headers, and records behind it"
    if was.offset < found.offset:
        return "removed", was.offset, "it is not there any more"
    return "added", found.offset, "it was not there"


@dataclass(frozen=True, slots=True)
class Expected:
    """The row that a record gives: its event and when that happened, its columns by name as ClickHouse shows them."""

    event_id: str
    occurred_at: int
    columns: Mapping[str, object]


def altered_rows(
    expected: Mapping[int, Expected], found: Sequence[tuple[int, Mapping[str, object]]], begin: int
) -> tuple[list[tuple[Kind, int, str]], set[int]]:
    """What is wrong with the rows found, and at which offsets a row was not found, in one partition of a topic.

    A repeated event has one row, at any of its offsets. Rows below `begin` are of records that Kafka has no more.
    """
    wrong: list[tuple[Kind, int, str]] = []
    missing = set(expected)
    for offset, columns in found:
        wanted = expected.get(offset)
        if wanted is None:
            if offset >= begin:
                wrong.append(("added", offset, "no record gives this row"))
            continue
        missing.discard(offset)
        if names := sorted(name for name, value in wanted.columns.items() if columns.get(name) != value):
            wrong.append(("altered", offset, f"the columns {', '.join(names)}"))
    return wrong, missing

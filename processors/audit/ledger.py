"""The chains as the sink continues them: pure.

What it needs of a chain is its head. Heads of keys in use are kept in memory, those of others are in the tables. A
batch that is written again gets the links that it had.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from processors.audit.chain import START, Chain, Entry, Head, digest_of, key_text, link_of
from schemas.events import Checkpoint
from streams.consumer import Record
from streams.keys import Partition

KEYS_MAX = 20_000
TABLE = "audit_records"
COLUMNS = (
    "record_key",
    "kafka_topic",
    "kafka_partition",
    "kafka_offset",
    "position",
    "digest",
    "link",
    "recorded_at",
)
_GENESIS = Head(0, -1, START)


class Ledger:
    """Continues chains in the order in which records come.

    `grown` are the chains that have grown since they were signed; records below `covered` were signed before.
    """

    def __init__(self) -> None:
        self._heads: OrderedDict[str, dict[tuple[str, int], Head]] = OrderedDict()
        self.grown: dict[Chain, Head] = {}
        self.covered: Mapping[Partition, int] = {}

    def unknown(self, records: Iterable[Record]) -> list[str]:
        """Keys of records whose heads `learn` must be told before `enter`."""
        return sorted({key_text(record.key) for record in records if is_chained(record.topic)} - self._heads.keys())

    def learn(self, keys: Iterable[str], heads: Iterable[tuple[Chain, Head]]) -> None:
        """The heads of these keys; a chain that is not among them begins."""
        for key in keys:
            self._heads[key] = {}
        for chain, head in heads:
            self._heads[chain.key][chain.topic, chain.partition] = head

    def enter(self, records: Sequence[Record]) -> list[Entry]:
        """The records' entries. Records of a partition come in offset order."""
        entries = [self._entry(record) for record in records if is_chained(record.topic)]
        while len(self._heads) > KEYS_MAX:
            self._heads.popitem(last=False)
        return entries

    def _entry(self, record: Record) -> Entry:
        chain = Chain(key_text(record.key), record.topic, record.partition)
        heads = self._heads[chain.key]
        self._heads.move_to_end(chain.key)
        last = heads.get((chain.topic, chain.partition), _GENESIS)
        digest = digest_of(record)
        link = link_of(last.link, chain, last.position + 1, record.offset, digest)
        head = Head(last.position + 1, record.offset, link)
        heads[chain.topic, chain.partition] = head
        if record.offset >= self.covered.get(Partition(record.topic, record.partition), 0):
            self.grown[chain] = head
        return Entry(chain, head.position, head.offset, digest, link, record.timestamp_ms)


def is_chained(topic: str) -> bool:
    """Whether records of the topic are chained: checkpoints, which name one another, are not."""
    return topic != Checkpoint.TOPIC


def row_of(entry: Entry) -> tuple[object, ...]:
    """The entry as a row of `TABLE`, in the order of `COLUMNS`."""
    recorded_ms = max(0, entry.recorded_ms)
    return (*entry.chain, entry.offset, entry.position, entry.digest, entry.link, recorded_ms)

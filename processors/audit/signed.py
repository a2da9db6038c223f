"""What trusted keys have signed, read from both stores: a signature counts wherever it is found."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from processors.audit import checkpoints
from processors.audit.anchor import place_of, read_checkpoints
from processors.audit.chain import Chain, Head
from processors.audit.checkpoints import Statement
from processors.audit.comparison import BOTH, CLICKHOUSE, KAFKA, Finding
from processors.audit.tables import Ask, Tables
from schemas.events import Checkpoint
from streams.client import Partition
from streams.codec import Codec
from streams.consumer import LogReader
from streams.settings import Settings
from streams.signing import SignatureError


@dataclass(slots=True)
class Signed:
    """The signed heads of every chain, and the statements about all of them.

    Heads from before `since_ms` are left out, since the audit record may have let go of their rows: `old` are chains
    that have some. `since` and `offsets` are as in a `Statement`, of all together.
    """

    since_ms: int = 0
    heads: dict[Partition, dict[str, set[Head]]] = field(default_factory=lambda: defaultdict(dict))
    old: set[Chain] = field(default_factory=set)
    since: dict[Partition, int] = field(default_factory=dict)
    offsets: dict[Partition, int] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    until_us: int = 0
    count: int = 0

    def add(self, checkpoint: Checkpoint, statement: Statement) -> None:
        """One more, whose signature holds."""
        self.digests.add(statement.digest)
        self.until_us = max(self.until_us, statement.at_us)
        for chain, head in checkpoints.heads_of(checkpoint):
            if statement.at_us // 1000 < self.since_ms:
                self.old.add(chain)
            else:
                self.heads[Partition(chain.topic, chain.partition)].setdefault(chain.key, set()).add(head)
        for place, offset in statement.since.items():
            self.since[place] = min(offset, self.since.get(place, offset))
        for place, offset in statement.offsets.items():
            self.offsets[place] = max(offset, self.offsets.get(place, 0))

    def of(self, chain: Chain) -> list[Head]:
        """The chain's signed heads, by position."""
        return sorted(self.heads.get(Partition(chain.topic, chain.partition), {}).get(chain.key, ()))

    def end(self, place: Partition, key: str | None) -> int:
        """The offset behind the last signed head, of one call or of all."""
        chains = self.heads.get(place, {})
        wanted = chains.values() if key is None else [chains.get(key, set())]
        return max((head.offset + 1 for heads in wanted for head in heads), default=0)


@dataclass(frozen=True, slots=True)
class Series:
    """A trusted key's checkpoints, from one offset to before another; Kafka's end where there is none."""

    trusted: Ed25519PublicKey
    name: str
    place: Partition
    first: int
    end: int


async def series_of(
    settings: Settings, reader: LogReader, trusted: Ed25519PublicKey, since_ms: int | None, until_ms: int | None
) -> Series:
    """Those that were written in that time, or all."""
    name = checkpoints.series_of(trusted)
    place = place_of(settings, name)
    first = (await reader.begin_offsets([place]))[place]
    end = (await reader.end_offsets([place]))[place]
    if since_ms is not None:
        first = (await reader.offsets_at([place], since_ms))[place]
    if until_ms is not None:
        end = (await reader.offsets_at([place], until_ms))[place]
    return Series(trusted, name, place, first, end)


async def read_series(reader: LogReader, codec: Codec, ask: Ask, series: Series, signed: Signed) -> list[Finding]:
    """Adds what the key has signed; returns what is wrong with the series. Raises LogError."""
    name, place = series.name, series.place
    logged = await read_checkpoints(reader, codec, name, place, series.first, series.end)
    stored = await asyncio.to_thread(Tables(ask, None).checkpoints, name, series.first, series.end)
    findings: list[Finding] = []
    known: dict[int, list[Statement]] = defaultdict(list)
    for store, found in ((KAFKA, logged), (CLICKHOUSE, stored)):
        for offset, checkpoint in found:
            try:
                statement = checkpoints.checked(checkpoint, series.trusted)
            except SignatureError as error:
                if offset not in {one.offset for one in findings}:  # a copy of what is wrong already
                    table = "checkpoints" if store == CLICKHOUSE else ""
                    findings.append(Finding(store, "altered", name, *place, offset, str(error), table))
                continue
            if statement.digest in signed.digests:
                continue
            if store == CLICKHOUSE and offset not in {one.offset for one in findings}:
                findings.append(Finding(KAFKA, "removed", name, *place, offset, f"checkpoint {statement.number}"))
            known[statement.number].append(statement)
            signed.add(checkpoint, statement)
    signed.count += len(known)
    return [*findings, *_gaps(known, place, name)]


def _gaps(known: Mapping[int, Sequence[Statement]], place: Partition, series: str) -> list[Finding]:
    """Checkpoints that are nowhere, or that name another one before them; their number stands for an offset."""
    findings = []
    for number in range(min(known, default=1), max(known, default=0) + 1):
        if number not in known:
            detail = f"checkpoint {number} is in neither store"
            findings.append(Finding(BOTH, "removed", series, *place, number, detail))
            continue
        before = {one.digest for one in known.get(number - 1, ())} if number > 1 else {checkpoints.FIRST}
        if before and any(one.previous not in before for one in known[number]):
            detail = f"checkpoint {number} names another one before it"
            findings.append(Finding(BOTH, "altered", series, *place, number, detail))
    return findings

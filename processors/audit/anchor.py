"""Signs how far the chains are, again and again, and writes it to the log."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from prometheus_client import Counter, Gauge

from processors.audit import checkpoints
from processors.audit.checkpoints import HEADS_MAX, Statement
from processors.audit.ledger import Ledger
from schemas.event import Event
from schemas.events import Checkpoint
from streams import signing
from streams.client import LogError, Partition
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.consumer import LogReader
from streams.keys import partition_of
from streams.settings import Settings

log = structlog.get_logger(__name__)

_LOOK_BACK = 64

signed = Counter("trunkline_audit_checkpoints", "Checkpoints written.")
unsigned = Gauge("trunkline_audit_unsigned", "Chains that have grown since the last checkpoint.")


class Anchor:
    """Makes the checkpoints of one series, that of the platform's key. `since` is where it began to chain records."""

    def __init__(
        self,
        settings: Settings,
        publish: Callable[[Event], Awaitable[Any]],
        codec: Codec,
        clock: Clock,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._publish = publish
        self._codec = codec
        self._clock = clock
        self._ledger = ledger
        self._last: Statement | None = None
        self._since: Mapping[Partition, int] = {}

    @property
    def started(self) -> bool:
        """Whether the series goes on."""
        return self._last is not None

    async def start(self, since: Mapping[Partition, int], offsets: Mapping[Partition, int]) -> bool:
        """Goes on from the last checkpoint in the log; True where there is one, else the first is made, with `since`.

        Raises SignatureError where there is no key to sign with, LogError where the log is not read.
        """
        found = await last_checkpoint(self._settings, self._codec, signing.public_key(self._settings))
        if found is None:
            self._since = since
            await self.sign(offsets)
            return False
        self._last = checkpoints.statement_of(found)
        self._since = {**since, **self._last.since}
        self._ledger.covered = self._last.offsets
        return True

    async def sign(self, offsets: Mapping[Partition, int]) -> None:
        """Signs the chains that have grown; `offsets` are those of the next records. What fails is done next time."""
        grown = sorted(self._ledger.grown.items())
        unsigned.set(len(grown))
        if not grown and self._last is not None:
            return
        try:
            for first in range(0, max(1, len(grown)), HEADS_MAX):
                some = dict(grown[first : first + HEADS_MAX])
                last = first + HEADS_MAX >= len(grown)
                await self._write(some, offsets if last else self._ledger.covered)
        except LogError as error:
            log.warning("checkpoint_not_written", error=str(error))
            return
        self._ledger.covered = dict(offsets)
        self._ledger.grown = {}
        unsigned.set(0)

    async def _write(self, heads: Mapping[Any, Any], offsets: Mapping[Partition, int]) -> None:
        made = checkpoints.signed(
            self._settings, self._last, heads, self._clock.now_us(), self._since, {**self._since, **offsets}
        )
        await self._publish(made)
        self._last = checkpoints.statement_of(made)
        signed.inc()


async def last_checkpoint(settings: Settings, codec: Codec, key: Ed25519PublicKey) -> Checkpoint | None:
    """The newest in the log that the key has signed, read from its end; None where there is none."""
    series = checkpoints.series_of(key)
    place = place_of(settings, series)
    async with LogReader(settings, "trunkline.audit", note_ends=True) as reader:
        begin, end = (await reader.begin_offsets([place]))[place], (await reader.end_offsets([place]))[place]
        step = _LOOK_BACK
        while end > begin:
            start = max(begin, end - step)
            for _, one in reversed(await read_checkpoints(reader, codec, series, place, start, end)):
                # Others may write to the topic, too.
                with contextlib.suppress(signing.SignatureError):
                    checkpoints.checked(one, key)
                    return one
            step, end = 4 * step, start
    return None


def place_of(settings: Settings, series: str) -> Partition:
    """Where the series' checkpoints lie."""
    return Partition(Checkpoint.TOPIC, partition_of(series, settings.kafka.partitions))


async def read_checkpoints(
    reader: LogReader, codec: Codec, series: str, place: Partition, first: int, end: int
) -> list[tuple[int, Checkpoint]]:
    """The series' checkpoints in a range of offsets, each with its own; for a reader with `note_ends`."""
    return [
        (record.offset, one)
        async for record in reader.read_to({place: (first, end)})
        if record.key == series.encode() and (one := decoded(codec, record.value)) is not None
    ]


def decoded(codec: Codec, value: bytes | None) -> Checkpoint | None:
    """The checkpoint in a record; None where it is none."""
    try:
        event = codec.decode(Checkpoint.TOPIC, value)
    except CodecError:
        return None
    return event if isinstance(event, Checkpoint) else None

"""How each customer fares: a score that every call moves, kept in a compacted topic without the caller's name."""

import math
from collections import OrderedDict

import msgspec
import structlog

from schemas.events import Customer
from streams.consumer import BEGINNING, END, LogReader, Record
from streams.producer import LogProducer
from streams.settings import Settings
from streams.topics import state_topic

log = structlog.get_logger(__name__)

TOPIC = state_topic("crm")
CUSTOMERS_MAX = 200_000
# How much the latest call counts against all before.
WEIGHT = 0.3


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's score, 0 to 100, after so many calls."""

    score: int
    calls: int


class Standings:
    """For one process: who else writes the topic would be overwritten."""

    def __init__(self, settings: Settings, producer: LogProducer) -> None:
        self._settings = settings
        self._producer = producer
        self._known: OrderedDict[str, Standing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    async def load(self) -> None:
        """As they were kept last; raises LogError."""
        async with LogReader(self._settings, "trunkline.crm.standings", note_ends=True) as reader:
            ranges = dict.fromkeys(await reader.partitions(TOPIC), (BEGINNING, END))
            async for record in reader.read_to(ranges):
                self._take(record)

    def of(self, customer: str) -> Standing | None:
        """How the customer stands; None where nothing is known."""
        return self._known.get(customer)

    def after(self, customer: str, call_score: int) -> Standing:
        """How the customer stands after another call, which is not kept yet."""
        before = self._known.get(customer)
        if before is None:
            return Standing(score=call_score, calls=1)
        moved = before.score + WEIGHT * (call_score - before.score)
        # A call that is better, or worse, shows, however little it counts.
        score = math.ceil(moved) if call_score > before.score else math.floor(moved)
        return Standing(score=score, calls=before.calls + 1)

    async def catch_up(self, event: Customer) -> None:
        """Keeps what the event says, unless a later call's is kept already; raises LogError."""
        before = self._known.get(event.customer)
        if not event.customer or (before is not None and before.calls >= event.calls):
            return
        standing = Standing(score=event.score, calls=event.calls)
        self._put(event.customer, standing)
        await self._producer.publish_raw(TOPIC, event.customer.encode(), msgspec.json.encode(standing))

    def _take(self, record: Record) -> None:
        if not record.key or not record.value:
            return
        try:
            self._put(record.key.decode(), msgspec.json.decode(record.value, type=Standing))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.error("a customer's standing cannot be read", offset=record.offset)

    def _put(self, customer: str, standing: Standing) -> None:
        self._known[customer] = standing
        self._known.move_to_end(customer)
        if len(self._known) > CUSTOMERS_MAX:
            self._known.popitem(last=False)

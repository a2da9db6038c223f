"""What the process wrote before it died: that is not done again."""

import contextlib
from collections.abc import Mapping

from processors.crm.errands import ENDPOINT
from schemas.events import Customer, Delivery, DeliveryKind
from streams.client import Partition
from streams.codec import Codec, CodecError
from streams.consumer import END, LogReader
from streams.settings import Settings

# Records are stamped by brokers, whose clocks may differ a little.
_SKEW_MS = 2000
_OVER = (DeliveryKind.DELIVERED, DeliveryKind.DEAD)


async def written_since(
    settings: Settings, codec: Codec, positions: Mapping[Partition, int], name: str
) -> tuple[set[str], dict[str, Customer]]:
    """The ids of errands that are over, and customers' events by id, since the records at those positions.

    Raises LogError.
    """
    errands: set[str] = set()
    customers: dict[str, Customer] = {}
    async with LogReader(settings, name, note_ends=True) as reader:
        firsts = {partition: (offset, offset + 1) for partition, offset in positions.items()}
        stamps = [record.timestamp_ms async for record in reader.read_to(firsts)]
        if not stamps:
            return errands, customers
        own = [one for event in (Delivery, Customer) for one in await reader.partitions(event.TOPIC)]
        starts = await reader.offsets_at(own, min(stamps) - _SKEW_MS)
        async for record in reader.read_to({partition: (start, END) for partition, start in starts.items()}):
            with contextlib.suppress(CodecError):
                match codec.decode_keyed(record.topic, record.key, record.value):
                    case Delivery(kind=kind, endpoint_id=endpoint, message_id=identity):
                        if kind in _OVER and endpoint.startswith(ENDPOINT):
                            errands.add(identity)
                    case Customer() as event:
                        customers.setdefault(event.event_id, event)
    return errands, customers

"""The two compacted topics: subscriptions, which the API writes, and progress, which the relay writes."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import structlog

from processors.webhooks.subscriptions import Progress, Subscription
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, Record
from streams.keys import Position
from streams.producer import LogProducer
from streams.settings import Settings
from streams.topics import SUBSCRIPTIONS, state_topic

log = structlog.get_logger(__name__)

PROGRESS = state_topic("webhooks")
ValueT = TypeVar("ValueT", Subscription, Progress)


async def subscriptions(settings: Settings, ends: Mapping[Partition, int] | None = None) -> dict[str, Subscription]:
    """All subscriptions by id, as of the given ends or of now; raises LogError."""
    return await _read(settings, SUBSCRIPTIONS, Subscription, ends)


async def progress(settings: Settings) -> dict[str, Progress]:
    """How far each is, as the relay last said; raises LogError."""
    return await _read(settings, PROGRESS, Progress)


def write(
    producer: LogProducer, key: str, value: Subscription | Progress | None, topic: str
) -> "asyncio.Future[Position]":
    """Replaces what is stored under the id; None removes it. See `LogProducer.publish`."""
    return producer.publish_raw(topic, key.encode(), None if value is None else msgspec.json.encode(value))


def subscription_in(record: Record) -> Subscription | None:
    """The subscription in a record; None where it was removed, or the record is none."""
    return _decoded(record, Subscription)


async def _read(
    settings: Settings, topic: str, kind: type[ValueT], ends: Mapping[Partition, int] | None = None
) -> dict[str, ValueT]:
    found: dict[str, ValueT] = {}
    async with LogReader(settings, "trunkline.webhooks.store", note_ends=True) as reader:
        until = ends or dict.fromkeys(await reader.partitions(topic), END)
        async for record in reader.read_to({partition: (BEGINNING, end) for partition, end in until.items()}):
            key = (record.key or b"").decode(errors="replace")
            value = _decoded(record, kind)
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
    return found


def _decoded(record: Record, kind: type[ValueT]) -> ValueT | None:
    if not record.value:
        return None
    try:
        return msgspec.json.decode(record.value, type=kind)
    except msgspec.MsgspecError:
        log.error("a record of the webhooks cannot be read", topic=record.topic, offset=record.offset)
        return None

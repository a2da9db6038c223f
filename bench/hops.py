"""One hop over the log, from the call that sends a record to the line of code that has it.

Three paths, on one broker, with records of 3,200 bytes (100 ms of audio), acknowledged by all replicas: confluent-kafka
alone, `LogProducer` to `LogReader`, and `LogProducer` to a stage's Faust application. Sender and receiver share
this process and its clock. The paths take turns, so that what else the machine does meets all of them.
"""

import asyncio
import struct
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.report import Distribution, Fact, Findings, Row
from streams.client import LogError, Partition, client_config
from streams.consumer import BEGINNING, LogReader
from streams.faust_app import create_app, run
from streams.producer import LogProducer
from streams.settings import Settings

RECORD_BYTES = 3200
RATES_PER_S = (50, 500)
RAW, READER, STAGE = "confluent-kafka alone", "LogProducer to LogReader", "LogProducer to Faust stage"

_HEAD = struct.Struct(">qq")
_BODY = bytes(range(256)) * 13
_LIMIT_S = 30.0
_WARM_RECORDS = 100

Send = Callable[[bytes], None]
Arrived = Callable[[bytes | None], None]
Open = Callable[[Settings, str, Arrived], AbstractAsyncContextManager[Send]]


@dataclass(slots=True)
class Arrivals:
    """When records came, by their number; written from whichever thread received them."""

    took_ms: dict[int, float] = field(default_factory=dict)

    def note(self, value: bytes | None) -> None:
        """A record is here, now."""
        now_ns = time.perf_counter_ns()
        number, sent_ns = _HEAD.unpack_from(value or bytes(_HEAD.size))
        self.took_ms[number] = (now_ns - sent_ns) / 1e6


def record(number: int) -> bytes:
    """A record that knows its number and when it was made."""
    return (_HEAD.pack(number, time.perf_counter_ns()) + _BODY)[:RECORD_BYTES]


def measure_hops(settings: Settings, records: Mapping[int, int], rounds: int = 3) -> Findings:
    """Sends so many records at each rate (per second) over every path, in so many rounds."""
    return asyncio.run(_measure(settings, records, rounds))


async def _measure(settings: Settings, records: Mapping[int, int], rounds: int) -> Findings:
    paths: dict[str, Open] = {RAW: _raw, READER: _reader, STAGE: _stage}
    took: dict[tuple[int, str], list[float]] = defaultdict(list)
    lost: dict[tuple[int, str], int] = defaultdict(int)
    async with AsyncExitStack() as stack:
        arrivals = {name: Arrivals() for name in paths}
        sends = {}
        for name, path in paths.items():
            topic = await asyncio.to_thread(_new_topic, settings)
            sends[name] = await stack.enter_async_context(path(settings, topic, arrivals[name].note))
            await _send(sends[name], arrivals[name], _WARM_RECORDS, 100)
        for rate_per_s, count in records.items():
            for turn in range(rounds):
                # Whoever goes first meets the change of rate, so they take turns at it.
                for name in rotated(list(paths), turn):
                    arrived = await _send(sends[name], arrivals[name], count // rounds, rate_per_s)
                    took[rate_per_s, name] += arrived
                    lost[rate_per_s, name] += count // rounds - len(arrived)
    return _findings(took, lost)


def rotated(names: list[str], by: int) -> list[str]:
    """The names, beginning at another one each time."""
    start = by % len(names)
    return names[start:] + names[:start]


def _findings(took: Mapping[tuple[int, str], list[float]], lost: Mapping[tuple[int, str], int]) -> Findings:
    found = Findings()
    for (rate_per_s, name), values in took.items():
        group = f"hop, {rate_per_s}/s"
        of_path, of_raw = Distribution.of(values), Distribution.of(took[rate_per_s, RAW])
        found.rows.append(Row(group, name, of_path))
        if name != RAW:
            known = of_path.p99 is not None and of_raw.p99 is not None
            difference = round((of_path.p99 or 0.0) - (of_raw.p99 or 0.0), 3) if known else None
            found.facts.append(Fact(group, f"{name}: p99 above confluent-kafka alone", difference, "ms"))
        if lost[rate_per_s, name]:
            found.facts.append(Fact(group, f"{name}: not arrived", lost[rate_per_s, name]))
    return found


async def _send(send: Send, arrivals: Arrivals, count: int, rate_per_s: int) -> list[float]:
    """Sends at an even pace, waits for all of them, and returns how long each took."""
    arrivals.took_ms = {}
    began_s = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, began_s + number / rate_per_s - time.perf_counter()))
        send(record(number))
    deadline_s = time.perf_counter() + _LIMIT_S
    while len(arrivals.took_ms) < count and time.perf_counter() < deadline_s:  # noqa: ASYNC110  one path notes arrivals from a thread
        await asyncio.sleep(0.01)
    return list(arrivals.took_ms.values())


def _new_topic(settings: Settings) -> str:
    name = f"bench.{uuid.uuid4()}"
    admin = AdminClient(client_config(settings, "bench"))
    for future in admin.create_topics([NewTopic(name, 1, 1)]).values():
        future.result()
    return name


@asynccontextmanager
async def _raw(settings: Settings, topic: str, arrived: Arrived) -> AsyncIterator[Send]:
    """The floor: librdkafka's own clients with the same guarantees, the consumer blocking in a thread of its own."""
    base = client_config(settings, "bench")
    producer = Producer(base | {"enable.idempotence": True, "acks": "all", "linger.ms": 0})
    consumer = Consumer(base | {"group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    closing = threading.Event()

    def receive() -> None:
        while not closing.is_set():
            message = consumer.poll(0.05)
            if message is not None and message.error() is None:
                arrived(message.value())
        consumer.close()

    def send(value: bytes) -> None:
        producer.produce(topic, value, b"bench")
        producer.poll(0)

    thread = threading.Thread(target=receive, name="bench-raw", daemon=True)
    thread.start()
    try:
        yield send
    finally:
        closing.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(producer.flush, _LIMIT_S)


@asynccontextmanager
async def _reader(settings: Settings, topic: str, arrived: Arrived) -> AsyncIterator[Send]:
    """As the gateway and the sink read."""
    async with LogProducer(settings, "bench") as producer, LogReader(settings, "bench") as reader:
        await reader.add({Partition(topic, 0): BEGINNING})

        async def receive() -> None:
            async for one in reader:
                arrived(one.value)

        receiving = asyncio.create_task(receive())
        try:
            yield lambda value: _publish(producer, topic, value)
        finally:
            await reader.close()
            await receiving


@asynccontextmanager
async def _stage(settings: Settings, topic: str, arrived: Arrived) -> AsyncIterator[Send]:
    """As a stage reads: a member of a group, each record acknowledged, offsets committed."""
    app = create_app(settings, f"trunkline.{topic}", (topic,))

    async def shell(stream: Any) -> None:
        async for event in stream.noack().events():
            arrived(event.value)
            event.ack()

    app.read_with(shell)
    stopping = asyncio.Event()
    running = asyncio.create_task(run(app, stopping))
    try:
        async with LogProducer(settings, "bench") as producer:
            ready = asyncio.create_task(app.ready.wait())
            await asyncio.wait({ready, running}, timeout=_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                raise LogError(f"{topic}: the stage was not ready within {_LIMIT_S:g} s")
            yield lambda value: _publish(producer, topic, value)
    finally:
        stopping.set()
        await asyncio.wait_for(running, _LIMIT_S)


def _publish(producer: LogProducer, topic: str, value: bytes) -> None:
    producer.publish_raw(topic, b"bench", value)

"""What Faust itself sends (`topic.send`, replies). Stages publish through `streams.producer.LogProducer`."""
# Faust comes without usable types: its classes are Any here.
# mypy: allow-subclassing-any

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any

from confluent_kafka import KafkaError, Message
from confluent_kafka import Producer as KafkaProducer
from faust.exceptions import ProducerSendError
from faust.transport.producer import Producer as FaustProducer
from faust.types import TP, RecordMetadata

from streams.client import LogError
from streams.keys import murmur2

_POLL_S = 0.25
_FLUSH_S = 30.0


class Producer(FaustProducer):
    """An idempotent producer that connects when something is sent; a stage that sends nothing has none."""

    _kafka: KafkaProducer | None = None
    _polling: threading.Thread | None = None

    def _connected(self) -> KafkaProducer:
        if self._kafka is None:
            options = getattr(self.app, "transport_options", None)
            servers = ",".join(f"{url.host}:{url.port or 9092}" for url in self.transport.url)
            connection = dict(options.connection) if options and options.connection else {"bootstrap.servers": servers}
            self._kafka = KafkaProducer(
                connection
                | {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random", "linger.ms": 0}
            )
            self._polling = threading.Thread(target=self._poll, name="faust-deliveries", daemon=True)
            self._polling.start()
        return self._kafka

    def _poll(self) -> None:
        while not self.should_stop:
            assert self._kafka is not None
            self._kafka.poll(_POLL_S)

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Sends the record; the future has its place once all in-sync replicas have it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordMetadata] = loop.create_future()

        def delivered(error: KafkaError | None, message: Message) -> None:
            loop.call_soon_threadsafe(_settle, future, error, message)

        self._connected().produce(
            topic,
            value,
            key,
            -1 if partition is None else partition,
            on_delivery=delivered,
            timestamp=int(timestamp * 1000) if timestamp else 0,
            headers=list(headers.items()) if isinstance(headers, dict) else list(headers or ()),
        )
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        """As `send`, but returns when all in-sync replicas have the record."""
        return await (await self.send(*args, **kwargs))

    async def flush(self) -> None:
        """Returns when everything sent is acknowledged or has failed."""
        if self._kafka is not None:
            await self.buffer.flush()
            await asyncio.to_thread(self._kafka.flush, _FLUSH_S)

    async def on_stop(self) -> None:
        """Sends what is left."""
        await self.flush()

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Refused: topics are made by provisioning."""
        raise LogError(f"{topic}: topics are created beforehand, not by a stage")

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Where a record with the key goes; asks the cluster how many partitions the topic has."""
        count = len(self._connected().list_topics(topic, timeout=_FLUSH_S).topics[topic].partitions)
        return TP(topic, (murmur2(key) & 0x7FFFFFFF) % count)

    def supports_headers(self) -> bool:
        """Kafka has had them since 0.11."""
        return True


def _settle(future: asyncio.Future[RecordMetadata], error: KafkaError | None, message: Message) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(ProducerSendError(error.str()))
        return
    kind, timestamp_ms = message.timestamp()
    tp = TP(message.topic(), message.partition())
    future.set_result(RecordMetadata(*tp, tp, message.offset(), timestamp_ms / 1000.0, kind))

"""Writing to the log: every record is acknowledged by all in-sync replicas, or its future says why not."""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.event import Event
from streams.client import LogError, Position, client_config
from streams.codec import Codec, headers
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import TOPICS

Headers = Sequence[tuple[str, bytes | None]]

# How long the delivery thread sleeps when nothing is delivered; it wakes at once for a delivery report.
_POLL_S = 0.25


class LogProducer:
    """An idempotent producer for one event loop.

    Records published one after another keep that order within each partition, retries included. Its queue is
    bounded (`queue_records_max`); a full queue fails the future at once, so that callers notice a broker that is away.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        codec: Codec | None = None,
        timeout_s: float = 30.0,
        queue_records_max: int = 20_000,
    ) -> None:
        self._codec = codec or codec_for(settings)
        self._producer = Producer(
            client_config(settings, name)
            | {
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "delivery.timeout.ms": int(timeout_s * 1000),
                # Topics are made beforehand: one that is unknown for this long is not there.
                "topic.metadata.propagation.max.ms": 5000,
                "message.max.bytes": max(topic.record_bytes_max for topic in TOPICS.values()) + 1024,
                "queue.buffering.max.messages": queue_records_max,
            }
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: set[asyncio.Future[Position]] = set()
        self._delivered: deque[tuple[asyncio.Future[Position], Position | LogError]] = deque()
        self._waking = False
        self._closing = False
        self._thread = threading.Thread(target=self._poll, name=f"{name}-deliveries", daemon=True)
        self._thread.start()

    def publish(self, event: Event, traceparent: str | None = None) -> asyncio.Future[Position]:
        """Sends the event to its topic under its session id; call it on the event loop.

        Returns at once. The future resolves to the record's place when all in-sync replicas have it, or fails with
        LogError. Raises CodecError where a field has the wrong type.
        """
        value = self._codec.encode(event)
        return self.publish_raw(event.TOPIC, event.session_id.encode(), value, headers(event, traceparent))

    def publish_raw(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> asyncio.Future[Position]:
        """Sends bytes as they are (dead letters, snapshots; a value of None deletes); otherwise as `publish`."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Position] = self._loop.create_future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._report(future, topic, error, message)

        try:
            self._producer.produce(topic, value=value, key=key, headers=list(headers), on_delivery=delivered)
        except BufferError:
            future.set_exception(LogError(f"{topic}: the producer's queue is full; is the broker away?"))
        except KafkaException as error:
            future.set_exception(LogError(f"{topic}: not written: {error.args[0].str()}"))
        return future

    async def flush(self) -> None:
        """Waits for everything published so far; raises the first LogError among it."""
        pending = tuple(self._pending)
        for outcome in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self, timeout_s: float = 10.0) -> None:
        """Waits that long for what is under way, then stops; what was not acknowledged fails with LogError."""
        if self._closing:
            return
        pending = tuple(self._pending)
        if pending:
            await asyncio.wait(pending, timeout=timeout_s)
        self._closing = True
        await asyncio.to_thread(self._thread.join)
        self._resolve()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # In the delivery thread.

    def _poll(self) -> None:
        while not self._closing:
            self._producer.poll(_POLL_S)
        # What is left fails now, and lets go of its callbacks and so of this producer and its connections.
        self._producer.purge()
        self._producer.poll(0)

    def _report(self, future: asyncio.Future[Position], topic: str, error: KafkaError | None, message: Message) -> None:
        outcome: Position | LogError
        if error is None:
            outcome = Position(topic, _known(message.partition()), _known(message.offset()))
        elif error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            outcome = LogError(f"{topic}: the producer was closed before the broker acknowledged the record")
        else:
            outcome = LogError(f"{topic}: not written: {error.str()}")
        self._delivered.append((future, outcome))
        # One wake-up of the loop for all reports that arrive together.
        if not self._waking and self._loop is not None and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self._resolve)

    # In the event loop.

    def _resolve(self) -> None:
        self._waking = False
        while self._delivered:
            future, outcome = self._delivered.popleft()
            if future.done():
                continue
            if isinstance(outcome, LogError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def _known(number: Any) -> int:
    return -1 if number is None else int(number)

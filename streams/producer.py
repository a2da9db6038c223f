"""Writing to the log: every record is acknowledged by all in-sync replicas, or its future says why not."""

import asyncio
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.event import Event
from streams import metrics
from streams.client import Closing, LogError, Position, client_config
from streams.codec import Codec, headers
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import TOPICS

Headers = Sequence[tuple[str, bytes | None]]

# Delivery reports are collected by a timer on the loop, and only while something is under way: a thread that waits for
# them cost 150 us of CPU a record, most of it in waking threads. The wait grows while the broker does not answer.
_BY_KEY = -1
# How often acknowledgements are looked for while some are missing, beyond what records wait for company. A broker takes
# 2 ms at best; a busy producer would look a thousand times a second for less, and a caller waits at a session's start
# for what is looked for later.
_WAIT_S_MIN = 0.003
_WAIT_S_MAX = 0.010
QUEUE_KBYTES_MAX = 65_536
_CLOSED = "the producer was closed before the broker acknowledged the record"


class LogProducer(Closing):
    """An idempotent producer for one event loop.

    Records published one after another keep that order within each partition, retries included. Its queue is
    bounded (`queue_records_max`); a full queue fails the future at once, so that callers notice a broker that is away.
    A record that no broker has taken within `timeout_s` fails: long enough for a broker to be restarted meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        codec: Codec | None = None,
        timeout_s: float = 120.0,
        queue_records_max: int = 20_000,
        linger_ms: int = 0,
    ) -> None:
        """`linger_ms` is how long a record waits for others of its partition, so that they are one request."""
        self._codec = codec or codec_for(settings)
        self._producer = Producer(
            client_config(settings, name)
            | {
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "delivery.timeout.ms": int(timeout_s * 1000),
                # Topics are made beforehand: one that is unknown for this long is not there.
                "topic.metadata.propagation.max.ms": 5000,
                "message.max.bytes": max(topic.record_bytes_max for topic in TOPICS.values()) + 1024,
                # A topic's limit holds for a whole batch: a burst must not make one that is refused.
                "batch.size": min(topic.record_bytes_max for topic in TOPICS.values()) // 4,
                "queue.buffering.max.messages": queue_records_max,
                "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
            }
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: set[asyncio.Future[Position]] = set()
        self._name = name
        # Asked for when somebody looks: to be told at each record costs as much as to encode it.
        metrics.unacknowledged.labels(name).set_function(self._pending.__len__)
        self._timer: asyncio.TimerHandle | None = None
        self._wait_s_min = self._wait_s = _WAIT_S_MIN + linger_ms / 1000
        self._wait_s_max = _WAIT_S_MAX + linger_ms / 1000
        self._closed = False

    def publish(self, event: Event, traceparent: str | None = None) -> asyncio.Future[Position]:
        """Sends the event to its topic under its session id; call it on the event loop.

        Returns at once. The future resolves to the record's place when all in-sync replicas have it, or fails with
        LogError. Raises CodecError where a field has the wrong type.
        """
        value = self._codec.encode(event)
        return self.publish_raw(event.TOPIC, event.session_id.encode(), value, headers(event, traceparent))

    def publish_raw(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int = _BY_KEY,
    ) -> asyncio.Future[Position]:
        """Sends bytes as they are (snapshots; a value of None deletes); otherwise as `publish`."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Position] = self._loop.create_future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

        def delivered(error: KafkaError | None, message: Message) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(Position(topic, _known(message.partition()), _known(message.offset())))
            else:
                metrics.unwritten.labels(self._name, "failed").inc()
                purged = error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
                future.set_exception(LogError(f"{topic}: not written: {_CLOSED if purged else error.str()}"))

        try:
            self._producer.produce(topic, value, key, partition, delivered, headers=list(headers))
        except BufferError:
            metrics.unwritten.labels(self._name, "queue_full").inc()
            future.set_exception(LogError(f"{topic}: the producer's queue is full; is the broker away?"))
        except KafkaException as error:
            future.set_exception(LogError(f"{topic}: not written: {error.args[0].str()}"))
        self._wait_s = self._wait_s_min
        if self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._collect)
        return future

    def _collect(self) -> None:
        """Resolves the futures of what was delivered, and comes again while something is under way."""
        self._timer = None
        served = self._producer.poll(0)
        self._wait_s = self._wait_s_min if served else min(2 * self._wait_s, self._wait_s_max)
        if self._pending and not self._closed and self._loop is not None:
            self._timer = self._loop.call_later(self._wait_s, self._collect)

    async def flush(self) -> None:
        """Waits for everything published so far; raises the first LogError among it."""
        pending = tuple(self._pending)
        for outcome in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self, timeout_s: float = 10.0) -> None:
        """Waits that long for what is under way, then stops; what was not acknowledged fails with LogError."""
        if self._closed:
            return
        pending = tuple(self._pending)
        if pending:
            await asyncio.wait(pending, timeout=timeout_s)
        self._closed = True
        # Purged records report at once, and so let go of this producer and its connections.
        self._producer.purge()
        self._producer.poll(0)


def _known(number: Any) -> int:
    return -1 if number is None else int(number)

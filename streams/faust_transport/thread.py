"""The one thread that calls the confluent consumer: it polls, and between polls runs what the event loop asks of it.

A thread inside poll() blocks the calls of every other thread (confluent-kafka 2.16), hence the queue of commands.
Rebalance callbacks run here too, inside poll().
"""
# Faust comes without usable types: its classes and decorators are Any here.
# mypy: allow-subclassing-any, allow-untyped-decorators

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.exceptions import ConsumerNotStarted
from faust.transport.consumer import ConsumerThread
from faust.types import TP
from mode import Service

from streams.client import LogError
from streams.faust_transport.options import Committed, Options

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

_QUERY_S = 10.0
_BATCH_RECORDS = 64
FETCHED_KBYTES_MAX = 4096
# Records handed to the event loop that it has not looked at yet: beyond, a busy loop finds them in librdkafka's queue.
_UNSEEN_RECORDS_MAX = 256
_UNSEEN_WAIT_S = 0.005
_PASSING = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._PARTITION_EOF,
    KafkaError._MAX_POLL_EXCEEDED,
}


def consumer_config(options: Options, group: str, connection: Mapping[str, Any]) -> dict[str, Any]:
    """librdkafka's settings for a member of the group: live audio wants few records, soon."""
    config: dict[str, Any] = dict(connection) | {
        "group.id": group,
        # `range` gives equal partition numbers of all subscribed topics to the same worker.
        "partition.assignment.strategy": "range",
        "session.timeout.ms": options.session_timeout_ms,
        # However long a silent member is waited for, the others hear of one that comes or goes within half a second.
        "heartbeat.interval.ms": min(500, max(100, options.session_timeout_ms // 5)),
        "max.poll.interval.ms": max(options.max_poll_interval_ms, options.session_timeout_ms),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": options.start,
        # A broker answers a waiting fetch as soon as a record comes; this only bounds how long a partition that is
        # resumed waits for the fetch under way. At 100 ms the fetches of idle workers were most of an idle broker.
        "fetch.wait.max.ms": 500,
        "fetch.queue.backoff.ms": 2,
        "max.partition.fetch.bytes": 262_144,
        "queued.min.messages": 64,
        "queued.max.messages.kbytes": FETCHED_KBYTES_MAX,
    }
    if options.instance_id:
        config["group.instance.id"] = options.instance_id
    return config


class PollThread(ConsumerThread):
    """Owns the confluent consumer; hands records to the event loop in batches, as they come."""

    def __init__(self, consumer: Any, options: Options, config: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._options = options
        self._config = config
        self._kafka: Consumer | None = None
        self._commands: deque[tuple[Callable[[Consumer], Any], asyncio.Future[Any]]] = deque()
        self._committing: asyncio.Future[None] | None = None
        self._assignment: frozenset[TP] = frozenset()
        self._generation = 0
        self._handed_over = 0
        self._ending = False

    # On the event loop.

    def run_soon(self, work: Callable[[Consumer], ResultT]) -> asyncio.Future[ResultT]:
        """Runs the work in the thread, within `poll_s`; the future has its result. Raises ConsumerNotStarted."""
        future: asyncio.Future[ResultT] = self.parent_loop.create_future()
        if self._kafka is None:
            raise ConsumerNotStarted("the consumer is not running")
        self._commands.append((work, future))
        return future

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Joins the group."""
        wanted = sorted(topics)
        if wanted:
            await self.run_soon(
                lambda kafka: kafka.subscribe(
                    wanted, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
            )

    async def commit(self, offsets: Sequence[TopicPartition]) -> None:
        """Returns when the group's coordinator has the offsets; raises LogError when it refuses them."""
        done: asyncio.Future[None] = self.parent_loop.create_future()

        def work(kafka: Consumer) -> None:
            wanted = [pair for pair in offsets if (pair.topic, pair.partition) in self._assignment]
            if not wanted:
                self._post(_settle, done, None, LogError("the partitions are no longer assigned"))
                return
            self._committing = done
            # Synchronous, it would hold back records for the time of a round trip.
            kafka.commit(offsets=wanted, asynchronous=True)

        await self.run_soon(work)
        await done

    async def commit_now(self, offsets: Sequence[TopicPartition]) -> None:
        """Commits and leaves the assignment, for a worker that stops."""
        await self.run_soon(lambda kafka: self._let_go(kafka, offsets))

    def pause(self, tp: TP, generation: int) -> None:
        """Stops fetching the partition, soon."""
        self.run_soon(lambda kafka: self._switch(kafka.pause, tp, generation))

    def resume(self, tp: TP, generation: int) -> None:
        """Fetches the partition again, soon, from the first record that was not handed over."""
        self.run_soon(lambda kafka: self._switch(kafka.resume, tp, generation))

    def assignment(self) -> set[TP]:
        """The partitions assigned to this member."""
        return set(self._assignment)

    async def position(self, tp: TP) -> int | None:
        """The offset of the next record to be handed over; None where none was yet."""
        pairs = await self.run_soon(lambda kafka: kafka.position([TopicPartition(*tp)]))
        return pairs[0].offset if pairs[0].offset >= 0 else None

    def seek(self, partition: TP, offset: int) -> None:
        """Continues at the offset, soon; records already under way still come."""
        self.run_soon(lambda kafka: kafka.seek(TopicPartition(partition.topic, partition.partition, offset)))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Continues at the offsets."""
        pairs = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in partitions.items()]

        def work(kafka: Consumer) -> None:
            for pair in pairs:
                kafka.seek(pair)

        await self.run_soon(work)

    async def seek_to_beginning(self, *partitions: TP) -> None:
        """Continues at the first offsets that are still kept."""
        await self.seek_wait(await self.earliest_offsets(*partitions))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """The committed offsets; an assignment starts there, so there is nothing to seek."""
        pairs = [TopicPartition(*tp) for tp in self._assignment]
        found = await self.run_soon(lambda kafka: kafka.committed(pairs, timeout=_QUERY_S)) if pairs else []
        return {TP(pair.topic, pair.partition): pair.offset for pair in found if pair.offset >= 0}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """The first offsets that are still kept."""
        return {tp: (await self._watermarks(tp))[0] for tp in partitions}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The offsets that the next records written will have."""
        return {tp: (await self._watermarks(tp))[1] for tp in partitions}

    async def _watermarks(self, tp: TP) -> tuple[int, int]:
        pair = TopicPartition(*tp)

        def work(kafka: Consumer) -> tuple[int, int]:
            found = kafka.get_watermark_offsets(pair, cached=True)
            if found is None or min(found) < 0:
                found = kafka.get_watermark_offsets(pair, timeout=_QUERY_S)
            return found

        return await self.run_soon(work)

    def highwater(self, tp: TP) -> int:
        """Unknown without asking: see `highwaters`."""
        return 0

    def topic_partitions(self, topic: str) -> int | None:
        """Unknown: only Faust's own assignor asks, which is not used."""
        return None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Only transactions ask, which are not used."""
        return partition

    def close(self) -> None:
        """Faust's request to close while it stops; the thread closes the consumer when it ends."""

    async def getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109
        """Nothing: records are handed over as they come."""
        return {}

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Refused: topics are made by provisioning."""
        raise LogError(f"{topic}: topics are created beforehand, not by a stage")

    # In the thread.

    async def on_start(self) -> None:
        """Connects; Faust calls this in the thread."""
        self._kafka = Consumer(dict(self._config) | {"on_commit": self._on_commit, "error_cb": self._on_error})

    @Service.task
    async def _poll(self) -> None:
        # The thread's own event loop has nothing to do meanwhile.
        while not self._ending and not self.should_stop:
            self._run_commands()
            self._read()

    @Service.task
    async def _thread_keepalive(self) -> None:
        """Nothing: Faust would keep the thread's event loop turning, which waits while the thread polls."""

    def _stopped_set(self) -> None:
        self._ending = True
        super()._stopped_set()

    async def on_thread_stop(self) -> None:
        """Leaves the group (a static member only disconnects)."""
        kafka, self._kafka = self._kafka, None
        if kafka is not None:
            self._run_commands(kafka)
            kafka.close()
        if self._committing is not None:
            self._post(_settle, self._committing, None, LogError("the consumer was closed"))
        await super().on_thread_stop()

    def _read(self) -> None:
        kafka = self._kafka
        assert kafka is not None
        if self._handed_over - self.consumer.records_seen > _UNSEEN_RECORDS_MAX:
            time.sleep(_UNSEEN_WAIT_S)
            return
        first = kafka.poll(self._options.poll_s)
        if first is None:
            return
        messages = [first, *kafka.consume(_BATCH_RECORDS - 1, 0)]
        if any(message.error() is not None for message in messages):
            messages = [message for message in messages if not self._failed(message)]
        if messages:
            self._handed_over += len(messages)
            self._post(self.consumer.receive, self._generation, messages)

    def _failed(self, message: Message) -> bool:
        error = message.error()
        if error is not None and _is_fatal(error):
            self._on_error(error)
        elif error is not None and error.code() not in _PASSING:
            log.warning("consumer error", topic=message.topic(), partition=message.partition(), error=error.str())
        return error is not None

    def _run_commands(self, kafka: Consumer | None = None) -> None:
        while self._commands:
            work, future = self._commands.popleft()
            try:
                result, error = work(kafka or self._kafka), None  # type: ignore[arg-type]
            except KafkaException as failure:
                result, error = None, LogError(failure.args[0].str())
            except Exception as failure:
                result, error = None, failure  # type: ignore[assignment]
            self._post(_settle, future, result, error)

    def _switch(self, switch: Callable[[list[TopicPartition]], Any], tp: TP, generation: int) -> None:
        if generation == self._generation and tp in self._assignment:
            switch([TopicPartition(*tp)])

    def _post(self, callback: Callable[..., Any], *arguments: Any) -> None:
        if not self.parent_loop.is_closed():
            self.parent_loop.call_soon_threadsafe(callback, *arguments)

    def _on_assign(self, kafka: Consumer, partitions: list[TopicPartition]) -> None:
        committed, starts = {}, []
        # Offset 0 where nothing is committed: a logical offset costs half a second to resolve. Where retention has
        # taken offset 0, auto.offset.reset finds the first that is kept.
        start = 0 if self._options.start == "earliest" else OFFSET_END
        for pair in kafka.committed(partitions, timeout=_QUERY_S) if partitions else []:
            if pair.error is not None:
                raise KafkaException(pair.error)
            offset = pair.offset if pair.offset >= 0 else None
            committed[TP(pair.topic, pair.partition)] = Committed(offset)
            starts.append(TopicPartition(pair.topic, pair.partition, start if offset is None else offset))
        self._generation += 1
        self._assignment = frozenset(committed)
        self._post(self.consumer.take_over, self._generation, committed)
        kafka.assign(starts)

    def _on_revoke(self, kafka: Consumer, partitions: list[TopicPartition]) -> None:
        """Blocks the consumer, not its heartbeats, until the event loop has let go."""
        letting_go = asyncio.run_coroutine_threadsafe(self.consumer.give_up(self._generation), self.parent_loop)
        try:
            final = letting_go.result(self._options.revoke_limit_s + 1.0)
        except TimeoutError:
            log.warning("partitions given up without a final commit: the event loop is blocked")
            final = []
        self._let_go(kafka, final)

    def _on_lost(self, kafka: Consumer, partitions: list[TopicPartition]) -> None:
        asyncio.run_coroutine_threadsafe(self.consumer.give_up(self._generation, lost=True), self.parent_loop)
        self._let_go(kafka, ())

    def _let_go(self, kafka: Consumer, final: Sequence[TopicPartition]) -> None:
        try:
            if final:
                kafka.commit(offsets=list(final), asynchronous=False)
        except KafkaException as error:
            log.warning("final commit refused; the next owner repeats", error=error.args[0].str())
        self._assignment = frozenset()
        kafka.unassign()

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        done, self._committing = self._committing, None
        error = error or next((pair.error for pair in partitions if pair.error is not None), None)
        if done is not None:
            self._post(_settle, done, None, LogError(error.str()) if error is not None else None)

    def _on_error(self, error: KafkaError) -> None:
        """A fatal error (this member's name was taken by another process) comes here or as a message, or both."""
        if _is_fatal(error):
            failure = LogError(f"consumer of group {self._config['group.id']}: {error.str()}")
            asyncio.run_coroutine_threadsafe(self.app.crash(failure), self.parent_loop)


def _is_fatal(error: KafkaError) -> bool:
    # Of errors that come as messages librdkafka tells by the code alone.
    return error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
        # Nobody need be waiting for a command that fails while the consumer stops.
        future.exception()
    else:
        future.set_result(result)

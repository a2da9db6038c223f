"""The event loop's side of the consumer: which partitions are owned, what was delivered, what may be committed."""
# Faust comes without usable types: its classes and decorators are Any here.
# mypy: allow-subclassing-any, allow-untyped-decorators

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import structlog
from confluent_kafka import Message, TopicPartition
from faust.transport.consumer import ThreadDelegateConsumer
from faust.types import TP, ConsumerMessage

from streams.client import LogError, Partition
from streams.faust_transport.conductor import Deliver
from streams.faust_transport.ledger import Ledger
from streams.faust_transport.options import Committed, Options
from streams.faust_transport.thread import PollThread, consumer_config

log = structlog.get_logger(__name__)

CONFIRM_RETRY_S = 0.2


class Owned:
    """A partition while this worker owns it, from one assignment until it is given up."""

    __slots__ = ("committed", "deliver", "generation", "held", "ledger", "paused", "tp")

    def __init__(self, tp: TP, generation: int, committed: Committed) -> None:
        self.tp = tp
        self.generation = generation
        self.ledger = Ledger(committed.offset or 0)
        #: The offset that the group's coordinator has, or is being sent.
        self.committed = committed.offset
        #: Arrived, but not delivered: the partition is being prepared, or its stream's buffer is full.
        self.held: deque[Any] = deque()
        #: None while the listener prepares the partition.
        self.deliver: Deliver | None = None
        self.paused = False


class Consumer(ThreadDelegateConsumer):
    """A member of a consumer group.

    Offsets are committed in order: an offset is, once every record below it that was delivered is acknowledged.
    """

    _thread: PollThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Records taken from the thread; it waits when they lag behind what it handed over.
        self.records_seen = 0
        self._owned: dict[TP, Owned] = {}
        self._generation = 0
        self._generations: dict[int, dict[TP, Owned]] = {}
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._rebalance = asyncio.Lock()
        self._commit_lock = asyncio.Lock()
        self._draining = False
        self._confirming: asyncio.Task[None] | None = None
        super().__init__(*args, **kwargs)
        #: Set while every assigned partition is prepared and delivers; the application's own, where it has one.
        self.ready: asyncio.Event = getattr(self.app, "ready", None) or asyncio.Event()

    @property
    def options(self) -> Options:
        """The application's choices, or the defaults for a plain `faust.App`."""
        return getattr(self.app, "transport_options", None) or Options()

    @property
    def records_held(self) -> int:
        """Records that arrived and wait for room or for their partition to be prepared."""
        return sum(len(owned.held) for owned in self._owned.values())

    @property
    def records_open(self) -> int:
        """Records delivered that hold back a commit."""
        return sum(len(owned.ledger) for owned in self._owned.values())

    @property
    def partitions_paused(self) -> int:
        """Partitions that are not fetched because their records found no room."""
        return sum(owned.paused for owned in self._owned.values())

    def _new_consumer_thread(self) -> PollThread:
        connection = self.options.connection or {"bootstrap.servers": _servers(self.transport.url)}
        config = consumer_config(self.options, self.app.conf.id, connection)
        return PollThread(self, self.options, config, loop=self.loop, beacon=self.beacon)

    # Records.

    def receive(self, generation: int, messages: Sequence[Message]) -> None:
        """Takes records from the thread, in offset order within each partition."""
        self.records_seen += len(messages)
        if generation != self._generation:
            return
        try:
            for message in messages:
                self._receive(message, generation)
        except Exception as error:
            self._fail(error)

    def _receive(self, record: Message, generation: int) -> None:
        tp = TP(record.topic(), record.partition())
        owned = self._owned.get(tp)
        if owned is None:
            return
        message = self._to_message(tp, record)
        message.generation_id = generation
        if owned.deliver is not None and not owned.held and owned.deliver(message):
            owned.ledger.delivered(message.offset)
            return
        owned.held.append(message)
        if not owned.paused and len(owned.held) >= self.options.held_records_max:
            owned.paused = True
            self._thread.pause(tp, generation)

    def _to_message(self, tp: TP, record: Message) -> ConsumerMessage:
        kind, timestamp_ms = record.timestamp()
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.offset(),
            timestamp_ms / 1000.0,
            kind,
            record.headers() or (),
            record.key(),
            record.value(),
            None,
            0,
            0,
            tp,
        )

    def _drain(self) -> None:
        """Delivers what is held, a record of each partition in turn, as far as there is room."""
        self._draining = False
        waiting = deque(owned for owned in self._owned.values() if owned.held and owned.deliver is not None)
        try:
            while waiting:
                owned = waiting.popleft()
                assert owned.deliver is not None
                if not owned.deliver(owned.held[0]):
                    continue
                owned.ledger.delivered(owned.held.popleft().offset)
                if owned.held:
                    waiting.append(owned)
                elif owned.paused:
                    owned.paused = False
                    self._thread.resume(owned.tp, owned.generation)
        except Exception as error:
            self._fail(error)

    def on_buffer_full(self, tp: TP) -> None:
        """A stream has no room for records of the partition; they are held."""
        self.app.sensors.on_topic_buffer_full(tp)

    def on_buffer_drop(self, tp: TP) -> None:
        """A stream has room again. Called from inside the stream's queue, so what is held follows a moment later."""
        if not self._draining:
            self._draining = True
            self.loop.call_soon(self._drain)

    def ack(self, message: ConsumerMessage) -> bool:
        """Notes that a record is done; on the event loop. False for a partition that was given up meanwhile."""
        if message.acked:
            return False
        message.acked = True
        owned = self._owned.get(message.tp)
        if owned is None or owned.generation != message.generation_id:
            return False
        owned.ledger.done(message.offset)
        return True

    # Commits.

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commits what can be; True when something was, and the coordinator has it."""
        async with self._commit_lock:
            return await self.force_commit(topics, start_new_transaction)

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """As `commit`, for callers that make sure that no other commit is under way."""
        ready = [
            owned
            for owned in self._owned.values()
            if _committable(owned) and (topics is None or owned.tp in topics or owned.tp.topic in topics)
        ]
        if not ready:
            return False
        before = [owned.committed for owned in ready]
        pairs = [self._pair(owned) for owned in ready]
        try:
            await self._thread.commit(pairs)
        except LogError as error:
            for owned, committed in zip(ready, before, strict=True):
                owned.committed = committed
            log.warning("commit refused; it is tried again", error=str(error))
            return False
        return True

    def _pair(self, owned: Owned) -> TopicPartition:
        owned.committed = offset = owned.ledger.position
        return TopicPartition(owned.tp.topic, owned.tp.partition, offset)

    # Partitions coming and going.

    def take_over(self, generation: int, committed: Mapping[TP, Committed]) -> None:
        """The thread says what was assigned; everything assigned before was given up."""
        self._generation = self.app.consumer_generation_id = generation
        self._owned = {tp: Owned(tp, generation, found) for tp, found in committed.items()}
        self._generations[generation] = self._owned
        self._preparing[generation] = self.loop.create_task(self._prepare(generation, committed))

    async def _prepare(self, generation: int, committed: Mapping[TP, Committed]) -> None:
        try:
            async with self._rebalance:
                if not self.app.rebalancing:
                    self.app.on_rebalance_start()
                await super().on_partitions_assigned(set(committed), generation)
                self.app.flow_control.resume()
                self.resume_flow()
                self.app.on_rebalance_end()
            in_order = sorted(committed, key=lambda tp: (tp.partition, tp.topic))
            groups = [list(group) for _, group in groupby(in_order, key=lambda tp: tp.partition)]
            await asyncio.gather(*(self._open({tp: committed[tp] for tp in group}) for group in groups))
            self.ready.set()
            log.info("partitions assigned", partitions=len(committed), generation=generation)
        except Exception as error:
            await self.app.crash(error)

    async def _open(self, committed: Mapping[TP, Committed]) -> None:
        """Delivers the records of partitions once the listener has prepared them."""
        opening = {tp: self._owned[tp] for tp in committed}
        if self.options.listener is not None:
            partitions = {Partition(*tp): found for tp, found in committed.items()}
            await self.options.listener.assigned(partitions, self._confirm)
        for tp, owned in opening.items():
            owned.deliver = self.app.topics.deliverer(tp)
        self._drain()

    async def _confirm(self) -> None:
        """See `PartitionListener.assigned`; those who ask at the same moment share an answer."""
        if self._confirming is None:
            self._confirming = self.loop.create_task(self._confirm_soon())
        await asyncio.shield(self._confirming)

    async def _confirm_soon(self) -> None:
        """Commits what is committed already, until the coordinator takes it; one that lost its partitions ends here."""
        await asyncio.sleep(0)
        self._confirming = None  # who asks from now on wants a later answer
        pairs = [TopicPartition(tp.topic, tp.partition, owned.committed or 0) for tp, owned in self._owned.items()]
        while True:
            try:
                async with self._commit_lock:
                    await self._thread.commit(pairs)
                return
            except LogError as error:
                log.warning("ownership not confirmed; asked again", error=str(error))
            await asyncio.sleep(CONFIRM_RETRY_S)

    async def give_up(self, generation: int, lost: bool = False) -> list[TopicPartition]:
        """Stops delivering what that assignment brought; returns the offsets to be committed last of all."""
        owned = self._generations.pop(generation, {})
        for partition in owned.values():
            partition.deliver = None
            partition.held.clear()
        self.ready.clear()
        if preparing := self._preparing.pop(generation, None):
            preparing.cancel()
        async with self._rebalance:
            if generation == self._generation:
                await self._suspend(set(owned))
            await self._tell(owned, lost)
            final = [] if lost else [self._pair(partition) for partition in owned.values() if _committable(partition)]
            if self._owned is owned:
                self._owned = {}
            log.info("partitions given up", partitions=len(owned), generation=generation, lost=lost)
            return final

    async def _suspend(self, tps: set[TP]) -> None:
        """Empties the streams' buffers, so that their handlers see nothing more of the partitions."""
        self.app.flow_control.suspend()
        self.app.flow_control.clear()
        if not self.app.should_stop:
            self.app.on_rebalance_start()
            await super().on_partitions_revoked(tps)

    async def _tell(self, owned: Mapping[TP, Owned], lost: bool) -> None:
        listener = self.options.listener
        if listener is None or not owned:
            return
        partitions = {Partition(*tp) for tp in owned}
        try:
            async with asyncio.timeout(self.options.revoke_limit_s):
                await (listener.lost(partitions) if lost else listener.revoked(partitions))
        except TimeoutError:
            log.warning("partitions given up before their work was done", limit_s=self.options.revoke_limit_s)
        except Exception as error:
            await self.app.crash(error)

    async def release(self) -> None:
        """Gives every partition up, with a final commit, before the application stops."""
        if not self._owned:
            return
        final = await self.give_up(self._generation)
        with suppress(LogError):
            await self._thread.commit_now(final)

    async def seek(self, partition: TP, offset: int) -> None:
        """Continues at the offset once the records under way have passed; acknowledgements start anew there."""
        owned = self._owned[partition]
        owned.held.clear()
        owned.ledger = Ledger(offset)
        await self._thread.seek_wait({partition: offset})

    async def perform_seek(self) -> None:
        """Nothing: an assignment starts at the committed offsets."""

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Nothing: Faust pauses round a rebalance, when nothing is delivered anyway."""

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Nothing, as for `pause_partitions`."""

    async def verify_all_partitions_active(self) -> None:
        """Nothing: librdkafka watches its own fetching."""

    async def on_stop(self) -> None:
        """Gives up what is left, where the application did not stop in order."""
        await self.release()

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Refused: topics are made by provisioning."""
        await self._thread.create_topic(topic)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def _fail(self, error: Exception) -> None:
        self.add_future(self.app.crash(error))


def _committable(owned: Owned) -> bool:
    position = owned.ledger.position
    return position > (owned.committed or 0)


def _servers(urls: Iterable[Any]) -> str:
    return ",".join(f"{url.host or '127.0.0.1'}:{url.port or 9092}" for url in urls)

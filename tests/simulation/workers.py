"""A stage's workers and the coordinator of their group, in simulated time.

What `processors/shell.py` and `streams/faust_transport` do around a runner is done here around the same runner, with
the same recovery: partitions are prepared before their first record, offsets are committed only up to the first record
that is not done, and a commit counts only from the member that owns the partition.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from processors.dead_letters import DeadLetters
from processors.engine import EngineClient
from processors.pipeline import Stage
from processors.recovery import Recovery, Snapshots
from processors.runner import Record, Runner
from processors.shell import DRAIN_S, ProducerLog
from processors.stage import Core, Position, Refuse
from tests.simulation.log import Connection, Decoded, Partition, Producer, SimulatedLog, Subscription, event_of
from tests.simulation.world import Channel, Process

COMMIT_S_MAX = 1.0
BATCH = 32


class Worker:
    """One life of one of a stage's processes."""

    def __init__(
        self,
        log: SimulatedLog,
        group: "Group",
        process: Process,
        core: Core[Any],
        engines: Mapping[str, EngineClient],
    ) -> None:
        self.process = process
        self._log = log
        self._group = group
        self._to_group = Channel(log.world)
        self.from_group = Channel(log.world)
        self._stage = group.stage
        producer: Any = Producer(log, process)
        self._snapshots = Snapshots(producer, self._stage.name, process.name)
        self._letters = DeadLetters(self._stage.name, producer.publish, process, per_minute_max=10_000)
        connection: Any = Connection(log)
        decoded: Any = Decoded()
        self._recovery = Recovery(connection, self._stage, decoded)
        self._subscription = Subscription(process, self._wake)
        self._epochs: dict[int, int] = {}
        self._taken: set[int] = set()
        self._taking: dict[int, asyncio.Task[None]] = {}
        self._next: dict[Partition, int] = {}
        self._undone: dict[Partition, set[int]] = {}
        self._sent: dict[Partition, int] = {}
        self._committing = False
        self._ready: deque[Partition] = deque()
        self._some: asyncio.Event | None = None
        self.runner: Runner[Any] = Runner(
            self._stage,
            core,
            engines,
            ProducerLog(producer, self._snapshots, decoded, log.partitions),
            process,
            on_done=self._done,
            on_refused=self._refused,
            on_bug=self._bug,
        )

    def start(self, after_s: float) -> None:
        """Begins to work that much later: what a process takes to start."""
        self.process.spawn(self._run(after_s))

    async def _run(self, after_s: float) -> None:
        self._some = asyncio.Event()
        await asyncio.sleep(after_s)
        self._tell(self._group.joined, self)
        while True:
            while self._ready:
                await self.runner.room()
                self._read(self._ready.popleft())
                await asyncio.sleep(0)
            self._some.clear()
            await self._some.wait()

    def _tell(self, action: Callable[..., None], *args: Any) -> None:
        self._log.world.after(self._to_group.delay_s(self._log.delay_s()), action, *args)

    def _bug(self, bug: BaseException) -> None:
        self._log.world.errors.append(f"{self.process.name}: {type(bug).__name__}: {bug}")

    # Partitions.

    def assigned(self, number: int, epoch: int, committed: Mapping[Partition, int | None]) -> None:
        """The group gives a partition number of every topic."""
        self._epochs[number] = epoch
        task = asyncio.get_running_loop().create_task(self._take(number, epoch, committed))
        task.add_done_callback(self.process._ended)
        if before := self._taking.pop(number, None):
            before.cancel()
        self._taking[number] = task

    async def _take(self, number: int, epoch: int, committed: Mapping[Partition, int | None]) -> None:
        recovered = await self._recovery.of(committed)
        confirmed = asyncio.get_running_loop().create_future()
        self._tell(self._group.confirm, self, number, epoch, confirmed)
        await confirmed
        if self._epochs.get(number) != epoch:
            return
        if number in self._taken:
            self._forget(number)
            self._epochs[number] = epoch
        self._taken.add(number)
        self._snapshots.inherit(number, recovered.keys)
        self.runner.restore(number, recovered.restored)
        for partition, offset in committed.items():
            self._next[partition] = self._sent[partition] = offset or 0
            self._undone[partition] = set()
            self._log.subscribe(self._subscription, partition)

    def revoked(self, number: int, epoch: int, then: Callable[[], None]) -> None:
        """The group takes a partition number back, and waits a while until what is in flight is finished."""
        task = asyncio.get_running_loop().create_task(self._give_up(number, epoch, then))
        task.add_done_callback(self.process._ended)

    async def _give_up(self, number: int, epoch: int, then: Callable[[], None]) -> None:
        self._stop_reading(number)
        await self.runner.drain(DRAIN_S)
        if self._epochs.get(number) == epoch:
            self._commit_now()
            self._forget(number)
        self._tell(then)

    def lost(self) -> None:
        """The worker learns that it is no member any more."""
        for task in self._taking.values():
            task.cancel()
        self._taking.clear()
        for number in sorted(self._taken):
            self._forget(number)
        self._epochs.clear()
        self._tell(self._group.joined, self)

    def _stop_reading(self, number: int) -> None:
        for partition in [partition for partition in self._next if partition.partition == number]:
            self._log.unsubscribe(self._subscription, partition)

    def _forget(self, number: int) -> None:
        self._stop_reading(number)
        self.runner.forget(number)
        self._snapshots.forget(number)
        self._taken.discard(number)
        self._epochs.pop(number, None)
        for partition in [partition for partition in self._next if partition.partition == number]:
            del self._next[partition], self._undone[partition], self._sent[partition]

    # Records.

    def _wake(self, partition: Partition) -> None:
        if partition in self._next and partition not in self._ready:
            self._ready.append(partition)
            if self._some is not None:
                self._some.set()

    def _read(self, partition: Partition) -> None:
        if partition not in self._next or partition.partition not in self._taken:
            return
        records = self._log.records[partition]
        for _ in range(min(BATCH, len(records) - self._next[partition])):
            record = records[self._next[partition]]
            self._next[partition] += 1
            self._undone[partition].add(record.offset)
            position = Position(*partition, record.offset)
            self.runner.deliver(Record(position, event_of(record), record.key, b"", {}))
        if self._next[partition] < len(records):
            self._ready.append(partition)

    def _refused(self, record: Record, refuse: Refuse) -> Awaitable[Any]:
        return self._letters.send(
            record.position, record.key, record.value, record.headers, refuse.reason, refuse.detail, record.event
        )

    # Commits.

    def _done(self, position: Position) -> None:
        partition = Partition(position.topic, position.partition)
        if partition not in self._undone:
            return
        self._undone[partition].discard(position.offset)
        if not self._committing:
            self._committing = True
            after_s = self._log.world.random.uniform(0.05, COMMIT_S_MAX)
            asyncio.get_running_loop().call_later(after_s, self._commit)

    def _commit(self) -> None:
        self._committing = False
        self._commit_now()

    def _commit_now(self) -> None:
        for partition, undone in self._undone.items():
            offset = min(undone, default=self._next[partition])
            if offset > self._sent[partition]:
                self._sent[partition] = offset
                self._tell(self._group.commit, self, partition, offset, self._epochs.get(partition.partition))


@dataclass(slots=True)
class _Number:
    """A partition number as the coordinator sees it."""

    owner: Worker | None = None
    epoch: int = 0
    moving: bool = False


@dataclass(slots=True)
class Group:
    """The coordinator of a stage's workers: static members, a session timeout, partitions moved only when they must."""

    log: SimulatedLog
    stage: Stage
    members: dict[int, Worker] = field(default_factory=dict)
    indices: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, _Number] = field(default_factory=lambda: defaultdict(_Number))
    evictions: int = 0

    def joined(self, worker: Worker) -> None:
        """A worker is there, for the first time or again; one with its index before it is gone for good."""
        if not worker.process.alive:
            return
        index = self.indices[id(worker)]
        before = self.members.get(index)
        self.members[index] = worker
        for number in self.numbers.values():
            if number.owner is before or number.owner is worker:
                number.owner = None
        self._settle()

    def register(self, worker: Worker, index: int) -> None:
        """Names the worker; two lives of the same process have one index."""
        self.indices[id(worker)] = index

    def died(self, worker: Worker) -> None:
        """The worker is silent; the coordinator finds out when its session times out, unless it is back by then."""
        timeout_s = self.log.world.random.uniform(0.7, 1.5)
        self.log.world.after(timeout_s, self._expired, worker)

    def _expired(self, worker: Worker) -> None:
        if self.members.get(self.indices[id(worker)]) is worker and (not worker.process.alive or worker.process.frozen):
            self.evict(worker)

    def evict(self, worker: Worker, noticed_after_s: float | None = None) -> None:
        """Takes the worker out; it goes on until it notices, which a frozen one does a while after it wakes."""
        index = self.indices[id(worker)]
        if self.members.get(index) is not worker:
            return
        self.evictions += 1
        self.log.world.note("evicted", worker.process.name)
        del self.members[index]
        for number in self.numbers.values():
            if number.owner is worker:
                number.owner, number.epoch = None, number.epoch + 1
        if noticed_after_s is None:
            noticed_after_s = self.log.world.random.uniform(0.0, 1.0)
        if worker.process.frozen:
            worker.process.when_thawed(lambda: self._notice(worker, noticed_after_s or 0.0))
        else:
            self._notice(worker, noticed_after_s)
        self._settle()

    def _notice(self, worker: Worker, after_s: float) -> None:
        self.tell(worker, after_s, worker.lost)

    def tell(self, worker: Worker, after_s: float, action: Callable[..., None], *args: Any) -> None:
        """Sends the worker a message, in order with the others."""
        self.log.world.send(worker.process, worker.from_group.delay_s(after_s), action, *args)

    def commit(self, worker: Worker, partition: Partition, offset: int, epoch: int | None) -> None:
        """Counts only from the owner."""
        number = self.numbers[partition.partition]
        if number.owner is worker and number.epoch == epoch:
            self.log.committed[self.stage.group, partition] = offset
            self.log.world.note("committed", self.stage.name, partition, offset)

    def confirm(self, worker: Worker, number: int, epoch: int, confirmed: "asyncio.Future[None]") -> None:
        """Answers the owner, and nobody else: who lost the partition is told so in another way."""
        state = self.numbers[number]
        if state.owner is worker and state.epoch == epoch:
            self.tell(worker, self.log.delay_s(), _settle, confirmed)

    # Who gets what.

    def _wanted(self, number: int) -> Worker | None:
        indices = sorted(self.members)
        return self.members[indices[number % len(indices)]] if indices else None

    def _settle(self) -> None:
        for number in range(self.log.partitions):
            self._settle_one(number)

    def _settle_one(self, number: int) -> None:
        state, wanted = self.numbers[number], self._wanted(number)
        if state.moving or wanted is None or state.owner is wanted:
            return
        if state.owner is not None:
            self._take_back(number, state, state.owner)
            return
        state.owner, state.epoch = wanted, state.epoch + 1
        committed = {
            where: self.log.committed.get((self.stage.group, where))
            for where in (Partition(kind.TOPIC, number) for kind in self.stage.consumes)
        }
        self.log.world.note("assigned", self.stage.name, number, wanted.process.name)
        self.tell(wanted, self.log.delay_s(), wanted.assigned, number, state.epoch, committed)

    def _take_back(self, number: int, state: _Number, owner: Worker) -> None:
        state.moving = True
        given_up = False

        def done() -> None:
            nonlocal given_up
            if not given_up:
                given_up = True
                state.moving = False
                if state.owner is owner:
                    state.owner = None
                self._settle_one(number)

        self.tell(owner, self.log.delay_s(), owner.revoked, number, state.epoch, done)
        self.log.world.after(2 * DRAIN_S + 1, done)


def _settle(confirmed: "asyncio.Future[None]") -> None:
    if not confirmed.done():
        confirmed.set_result(None)

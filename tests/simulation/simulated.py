"""A world in simulated time: an event loop that jumps to its next timer, a log in memory, workers that crash.

Everything random comes from one seed, so a failing run is repeated by its seed. The log keeps the real promises: order
within a partition, acknowledgement after the append, and on a crash what was sent is either there or not.
"""

import asyncio
import random
import selectors
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from processors.dead_letters import DeadLetters
from processors.engine import EngineClient, EngineError, Reply, Request
from processors.pipeline import Stage
from processors.runner import Limits, Record, Restored, Runner
from processors.stage import Core, Position, Refuse
from schemas.event import Event
from streams.keys import partition_of

EPOCH_US = 1_750_000_000_000_000
LIMITS = Limits(snapshot_interval_s=0.05)


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting it moves the loop's time forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("simulation stuck: nothing is scheduled and nothing can happen")
            self.now_s += max(timeout, 0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Simulated seconds since the start."""
        return self._jumping.now_s


def simulate(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


class SimulatedClock:
    """The jumping loop's time."""

    def now_us(self) -> int:
        return EPOCH_US + round(asyncio.get_running_loop().time() * 1e6)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class MemoryLog:
    """Topics in memory, by (topic, partition)."""

    seed: int
    partitions: int = 2
    delay_ms_max: float = 5.0
    records: dict[tuple[str, int], list[Event]] = field(default_factory=lambda: defaultdict(list))
    state: dict[tuple[str, int], dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    committed: dict[tuple[str, str, int], int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.arrived = asyncio.Condition()

    def append(self, event: Event) -> Position:
        """At once, as an outside producer would."""
        partition = partition_of(event.session_id, self.partitions)
        log = self.records[event.TOPIC, partition]
        log.append(event)
        return Position(event.TOPIC, partition, len(log) - 1)

    def events(self, kind: type[Event], session_id: str | None = None) -> list[Any]:
        """Everything on the topic of that kind, by partition and offset; repeats included."""
        found = [event for (topic, _), log in sorted(self.records.items()) if topic == kind.TOPIC for event in log]
        return [event for event in found if session_id is None or event.session_id == session_id]

    def truth(self, kind: type[Event], session_id: str | None = None) -> list[Any]:
        """The same as a reader sees it: the first event with an id is the truth."""
        first: dict[str, Event] = {}
        for event in self.events(kind, session_id):
            first.setdefault(event.event_id, event)
        return list(first.values())


class Writer:
    """One process's connection to the log; after `crash` nothing of it is acknowledged any more."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._chains: dict[int, asyncio.Future[None]] = {}
        self.crashed = False

    def publish(self, event: Event) -> Awaitable[Any]:
        return self._send(partition_of(event.session_id, self._log.partitions), lambda: self._log.append(event))

    def publish_state(self, stage: str, session_id: str, snapshot: bytes | None) -> Awaitable[Any]:
        partition = partition_of(session_id, self._log.partitions)
        table = self._log.state[stage, partition]

        def write() -> None:
            if snapshot is None:
                table.pop(session_id, None)
            else:
                table[session_id] = snapshot

        return self._send(partition, write)

    def _send(self, partition: int, write: Callable[[], Any]) -> "asyncio.Task[Any]":
        """Writes are appended in order for each partition, each after a delay, and acknowledged after another."""
        before = self._chains.get(partition)
        appended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chains[partition] = appended

        async def deliver() -> Any:
            delay_s = self._log.random.uniform(0, self._log.delay_ms_max) / 1e3
            if before is not None:
                await before
            await asyncio.sleep(delay_s)
            if self.crashed and self._log.random.random() < 0.5:
                self.lost = True
            if not getattr(self, "lost", False):
                write()
            appended.set_result(None)
            if self.crashed:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(delay_s)
            if self.crashed:
                await asyncio.get_running_loop().create_future()

        return asyncio.get_running_loop().create_task(deliver())


class ScriptedEngine:
    """An engine in simulated time: `script` maps a request to its replies; delays and failures come from the seed."""

    def __init__(
        self,
        log: MemoryLog,
        script: Callable[[Request], list[Reply]],
        *,
        delay_ms_max: float = 50,
        failure_share: float = 0.0,
    ) -> None:
        self._random = log.random
        self._script = script
        self._delay_ms_max = delay_ms_max
        self._failure_share = failure_share
        self.asked: list[Request] = []

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        self.asked.append(request)
        for reply in self._script(request):
            await asyncio.sleep(self._random.uniform(0, self._delay_ms_max) / 1e3)
            if self._random.random() < self._failure_share:
                raise EngineError("crashed")
            yield reply

    async def close(self) -> None:
        return None


class Worker:
    """One life of a stage's process: it takes over all partitions, works, and may be killed at any moment."""

    def __init__(
        self,
        log: MemoryLog,
        stage: Stage,
        core: Core[Any],
        engines: Mapping[str, EngineClient],
        clock: SimulatedClock,
        limits: Limits = LIMITS,
        dead_letters_max: int = 1000,
    ) -> None:
        self._log = log
        self._stage = stage
        self._writer = Writer(log)
        self._letters = DeadLetters(stage.name, self._writer.publish, clock, per_minute_max=dead_letters_max)
        self._delivered: dict[tuple[str, int], int] = {}
        self._undone: dict[tuple[str, int], set[int]] = defaultdict(set)
        self.runner: Runner[Any] = Runner(
            stage,
            core,
            engines,
            self._writer,
            clock,
            on_done=self._done,
            on_refused=self._refused,
            on_bug=self._bug,
            limits=limits,
        )
        self.bugs: list[BaseException] = []
        self._task: asyncio.Task[None] | None = None

    def _refused(self, record: Record, refuse: Refuse) -> Awaitable[Any]:
        return self._letters.send(
            record.position, record.key, record.value, record.headers, refuse.reason, refuse.detail, record.event
        )

    def _bug(self, bug: BaseException) -> None:
        self.bugs.append(bug)

    def _done(self, position: Position) -> None:
        if self._writer.crashed:
            return
        partition = (position.topic, position.partition)
        self._undone[partition].discard(position.offset)
        following = min(self._undone[partition], default=self._delivered[partition])
        self._log.committed[self._stage.group, *partition] = following

    def start(self) -> None:
        """Reads back what the log knows, then works from the committed offsets on."""
        for partition in range(self._log.partitions):
            recorded = self._log.records[self._stage.produces.TOPIC, partition]
            self.runner.restore(partition, Restored(dict(self._log.state[self._stage.name, partition]), list(recorded)))
        for kind in self._stage.consumes:
            for partition in range(self._log.partitions):
                where = (kind.TOPIC, partition)
                self._delivered[where] = self._log.committed[self._stage.group, *where]
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while True:
            for where in self._log.random.sample(sorted(self._delivered), len(self._delivered)):
                records = self._log.records[where]
                while self._delivered[where] < len(records):
                    await self.runner.room()
                    offset = self._delivered[where]
                    self._delivered[where] = offset + 1
                    self._undone[where].add(offset)
                    event = records[offset]
                    self.runner.deliver(Record(Position(*where, offset), event, event.session_id.encode(), b"", {}))
            await asyncio.sleep(0.002)

    def crash(self) -> None:
        """kill -9: nothing is finished, nothing is acknowledged, what was sent may or may not have arrived."""
        self._writer.crashed = True
        if self._task is not None:
            self._task.cancel()
        for partition in range(self._log.partitions):
            self.runner.forget(partition)

    @property
    def behind(self) -> int:
        """Records not yet committed."""
        return sum(
            len(self._log.records[where]) - self._log.committed[self._stage.group, *where] for where in self._delivered
        )

"""Connects a stage's runner to Faust: records in, acknowledgements out, partitions taken over and given up.

Faust reads and keeps the group; everything else is the runner's. No record is acknowledged before the runner calls it
done, and Faust's exception handling is never relied on: it would acknowledge what raised.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Mapping
from typing import Any

import structlog

from processors import metrics
from processors.choices import History
from processors.dead_letters import DeadLetterCeilingError, DeadLetters
from processors.engine import EngineClient
from processors.load import Meter
from processors.pipeline import Stage
from processors.recovery import Recovery, Snapshots
from processors.runner import Limits, Record, Runner
from processors.stage import Core, Position, Refuse
from schemas.event import Event
from streams.client import Partition
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.faust_app import create_app, run
from streams.faust_transport import Committed, Confirm
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.settings import Settings

log = structlog.get_logger(__name__)

# A caller's audio never pauses; other records come with turns.
SILENT_S = {"stt": 5.0}
SILENT_S_ELSE = 60.0
# What takes longer is asked for again by the next owner, and callers wait meanwhile.
DRAIN_S = 0.5


def runner_limits(settings: Settings) -> Limits:
    """The runner's; a session may be silent for as long as its gateway lets it be, and its caller be away."""
    return Limits(
        open_units_max=settings.open_units_max,
        session_silent_s=settings.api.session_idle_s + settings.api.resume_grace_s,
        session_kept_s=settings.session_kept_s,
    )


class ProducerLog:
    """The runner's view of the log, on the real producer."""

    def __init__(self, producer: LogProducer, snapshots: Snapshots, codec: Codec, partitions: int) -> None:
        self._producer = producer
        self._snapshots = snapshots
        self._codec = codec
        self._partitions = partitions

    def publish(self, event: Event) -> Awaitable[Any]:
        """See `runner.Log`."""
        return self._producer.publish(event)

    def publish_state(self, stage: str, session_id: str, snapshot: bytes | None) -> Awaitable[Any]:
        """See `runner.Log`; snapshots hold what was said."""
        sealed = None if snapshot is None else self._codec.seal_state(session_id, stage, snapshot)
        return self._snapshots.write(session_id, partition_of(session_id, self._partitions), sealed)


class Shell:
    """One stage's worker; it is the `PartitionListener` of its Faust application."""

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        core: Core[Any],
        engines: Mapping[str, EngineClient],
        producer: LogProducer,
        codec: Codec,
        clock: Clock,
        meter: Meter | None = None,
    ) -> None:
        """`meter` is told how long records waited before they were processed."""
        self._settings = settings
        self._stage = stage
        self._codec = codec
        self._clock = clock
        self._meter = meter
        self._heard_s: dict[str, float] = {}
        self._silent_s = SILENT_S.get(stage.name, SILENT_S_ELSE)
        self._guarded = {event.TOPIC for event in stage.guards}
        self._undone: dict[Position, Any] = {}
        self._stopping = asyncio.Event()
        self._bug: BaseException | None = None
        self._snapshots = Snapshots(producer, stage.name, uuid.uuid4().hex[:12])
        output = ProducerLog(producer, self._snapshots, codec, settings.kafka.partitions)
        self._letters = DeadLetters(stage.name, output.publish, clock, settings.dead_letters_per_minute_max)
        self._recovery = Recovery(settings, stage, codec)
        self._runner: Runner[Any] = Runner(
            stage,
            core,
            engines,
            output,
            clock,
            on_done=self._done,
            on_refused=self._refused,
            on_bug=self.stop,
            limits=runner_limits(settings),
        )
        self._app = create_app(
            settings,
            stage.group,
            tuple(event.TOPIC for event in stage.consumes),
            self,
            instance_id=f"{stage.group}.{settings.worker}",
        )
        self._app.agent(self._app.records, name=stage.name)(self._consume)

    @property
    def open(self) -> int:
        """Asks and unacknowledged events."""
        return self._runner.open

    @property
    def calls(self) -> int:
        """Sessions of which a record came lately: those whose gateway died are not at work, though not forgotten."""
        now_s = self._clock.monotonic_s()
        self._heard_s = {
            session_id: heard_s
            for session_id, heard_s in self._heard_s.items()
            if now_s - heard_s < self._silent_s and self._runner.knows(session_id)
        }
        return len(self._heard_s)

    def histories(self, role: str) -> list[History]:
        """What the sessions in memory asked of the role."""
        return self._runner.histories(role)

    def measure_queues(self) -> int:
        """Sets the gauges of this worker's queues; returns how many records wait to be processed."""
        held = self._app.records_waiting
        metrics.records_waiting.labels(self._stage.name).set(held)
        metrics.records_kept.labels(self._stage.name).set(self._runner.held)
        return held

    async def prepare(self) -> None:
        """Connects what a takeover needs, for a worker that waits for its turn; `run` does it else."""
        await self._recovery.open()

    async def run(self) -> None:
        """Works until `stop`; raises what stopped it if that was no orderly stop."""
        opening = asyncio.create_task(self._recovery.open(), name="recovery")
        try:
            await run(self._app, self._stopping)
        finally:
            await asyncio.gather(opening, return_exceptions=True)
            await self._recovery.close()
        if self._bug is not None:
            raise self._bug

    async def ready(self) -> None:
        """Returns when the worker is in its group and its partitions are prepared."""
        await self._app.ready.wait()

    def stop(self, bug: BaseException | None = None) -> None:
        """Ends `run`: orderly, or because of a bug, after which the undone records are somebody else's."""
        if bug is not None and self._bug is None:
            log.error("worker_stops", stage=self._stage.name, error=type(bug).__name__, detail=str(bug))
            self._bug = bug
        self._stopping.set()

    # ---- partitions

    async def assigned(self, partitions: Mapping[Partition, Committed], confirm: Confirm) -> None:
        """Takes over one partition number of each topic."""
        number = next(iter(partitions)).partition
        recovered = await self._recovery.of({where: committed.offset for where, committed in partitions.items()})
        await confirm()
        self._snapshots.inherit(number, recovered.keys)
        self._runner.restore(number, recovered.restored)
        sessions = len(recovered.restored.snapshots)
        log.info("partition_taken", stage=self._stage.name, partition=number, sessions=sessions)

    async def revoked(self, partitions: set[Partition]) -> None:
        """Finishes what is in flight, as far as the time allows, and forgets the partitions."""
        await self._runner.drain(DRAIN_S)
        await self.lost(partitions)

    async def lost(self, partitions: set[Partition]) -> None:
        """Forgets the partitions; nothing of them is acknowledged any more."""
        for number in {partition.partition for partition in partitions}:
            self._runner.forget(number)
            self._snapshots.forget(number)
        self._undone = {
            position: event
            for position, event in self._undone.items()
            if Partition(position.topic, position.partition) not in partitions
        }

    # ---- records

    async def _consume(self, stream: Any) -> None:
        async for event in stream.noack().events():
            if self._meter is not None:
                self._meter.waiting(round(event.message.timestamp * 1e6))
            await self._runner.room()
            if self._meter is not None:
                self._meter.taken(self._clock.monotonic_s(), self._clock.now_us())
            try:
                self._deliver(event)
            except DeadLetterCeilingError as ceiling:
                self.stop(ceiling)
            if self._bug is not None:
                return

    def _deliver(self, event: Any) -> None:
        message = event.message
        position = Position(message.topic, message.partition, message.offset)
        key, value, headers = message.key, message.value, _headers(message.headers)
        self._undone[position] = event
        try:
            decoded = self._codec.decode_keyed(position.topic, key, value)
            if partition_of(decoded.session_id, self._settings.kafka.partitions) != position.partition:
                raise CodecError("wrong_key", "the partition that murmur2 gives the session id is expected")
        except CodecError as error:
            self._undecodable(position, key, value, headers, error)
            return
        self._heard_s[decoded.session_id] = self._clock.monotonic_s()
        self._runner.deliver(Record(position, decoded, key, value, headers))

    def _undecodable(
        self,
        position: Position,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes],
        error: CodecError,
    ) -> None:
        """One stage guards each topic; for the others the record does not exist."""
        if position.topic not in self._guarded:
            metrics.dropped.labels(self._stage.name, error.reason).inc()
            self._done(position)
            return
        sent = asyncio.ensure_future(self._letters.send(position, key, value, headers, error.reason, error.detail))

        def acknowledged(done: "asyncio.Future[Any]") -> None:
            if done.cancelled():
                return
            if (failure := done.exception()) is not None:
                self.stop(failure)
                return
            self._done(position)

        sent.add_done_callback(acknowledged)

    def _refused(self, record: Record, refuse: Refuse) -> Awaitable[Any]:
        return self._letters.send(
            record.position, record.key, record.value, record.headers, refuse.reason, refuse.detail, record.event
        )

    def _done(self, position: Position) -> None:
        event = self._undone.pop(position, None)
        if event is not None:
            event.ack()


def _headers(headers: Any) -> dict[str, bytes]:
    # Lists come by far the most often, and what an abstract class asks takes longer than all the rest.
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    return {name: value for name, value in pairs if value is not None}

"""How long a new owner of partitions takes until it has its first record, and how much it reads for that.

Two questions: does it depend on how long calls have lasted (the conversation after 5, 50 and 500 turns), and on how
many there are (the ear after ten minutes of 1, 50 and 200 calls, each of which writes as many snapshots as it may)? The
records are on a real broker and were written by the stages' own code; what a process takes to start is not in these
numbers.
"""

import asyncio
import time
import uuid
import zlib
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.report import Distribution, Fact, Findings, Row
from processors.agents import load_agents
from processors.engine import Embed, Embedded, EngineClient, Generate, Generated, Reply, Request
from processors.llm.stage import create_core as conversation
from processors.pipeline import STAGES, Stage
from processors.recovery import Recovered, Snapshots, recover
from processors.runner import Limits, Record, Runner
from processors.session import Snapshot
from processors.shell import ProducerLog
from processors.stage import Core, Position, Received, Refuse
from processors.stt import vad
from processors.stt.core import SttCore
from schemas.event import Event
from schemas.events import AudioFrame, Intent, IntentKind, Session, SessionKind
from streams.client import Partition
from streams.clock import SystemClock
from streams.consumer import LogReader
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import state_topic

TURNS = (5, 50, 500)
SESSIONS = (1, 50, 200)
TIMES = 7
FRAME_SAMPLES = 640
FRAMES_PER_S = 25
# Stages write a call's snapshot so often, and what came since is done again.
SNAPSHOT_EVERY_S = Limits().snapshot_interval_s
_MINUTES = 10
# Ten minutes are written in one: the cleaner has a tenth of the time that it has in earnest.
_WRITTEN_IN_S = 60
_LIMIT_S = 120.0


class Scripted:
    """A model that answers at once, always the same, so that what is measured is the log."""

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        match request:
            case Embed(texts):
                yield Embedded(embed(texts).tobytes(), 64, "scripted", 0.0)
            case Generate():
                yield Generated("That is a question which I can answer at some length. ", "scripted")
                yield Generated("Is there anything else that you would like to know about it?", "scripted")
            case _:
                raise ValueError(f"{type(request).__name__} is not asked here")

    async def close(self) -> None:
        """See `EngineClient`."""


def embed(texts: tuple[str, ...]) -> NDArray[np.float32]:
    """Unit vectors that have nothing in common."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(64) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


@dataclass(slots=True)
class Took:
    """One takeover: reading back, handing it to the runner, and what of it was snapshots."""

    read_ms: float
    restore_ms: float
    bytes_read: int
    records_read: int
    snapshot_bytes_max: int


class Desk:
    """A stage's runner on the real log, without the consumer group: records are handed to it by this benchmark."""

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        core: Core[Any],
        producer: LogProducer,
        engines: Mapping[str, EngineClient] | None = None,
    ) -> None:
        self.settings, self.stage, self.core, self.producer = settings, stage, core, producer
        self.done: set[Position] = set()
        self._failed: BaseException | None = None
        snapshots = Snapshots(producer, stage.name, uuid.uuid4().hex[:12])
        self.runner: Runner[Any] = Runner(
            stage,
            core,
            engines or {role: Scripted() for role in stage.roles},
            ProducerLog(producer, snapshots, codec_for(settings), settings.kafka.partitions),
            SystemClock(),
            on_done=self.done.add,
            on_refused=self._refused,
            on_bug=self._bug,
            limits=Limits(snapshot_interval_s=0),
        )

    async def write(self, event: Event) -> Record:
        """Puts the event into the log."""
        position = await self.producer.publish(event)
        return Record(Position(*position), event, event.session_id.encode(), b"", {})

    async def until_done(self, position: Position) -> None:
        """Waits until the record may be committed."""
        async with asyncio.timeout(_LIMIT_S):
            while position not in self.done:
                if self._failed is not None:
                    raise self._failed
                await asyncio.sleep(0.001)

    async def take_over(self, reader: LogReader, committed: Mapping[Partition, int | None]) -> Took:
        """What a new owner does before its first record."""
        started_s = time.perf_counter()
        found: dict[int, Recovered] = await recover(reader, self.stage, codec_for(self.settings), committed)
        read_s = time.perf_counter()
        for number, recovered in found.items():
            self.runner.restore(number, recovered.restored)
        sizes = [len(data) for recovered in found.values() for data in recovered.restored.snapshots.values()]
        return Took(
            1e3 * (read_s - started_s),
            1e3 * (time.perf_counter() - read_s),
            sum(recovered.bytes_read for recovered in found.values()),
            sum(recovered.records_read for recovered in found.values()),
            max(sizes, default=0),
        )

    async def committed(self, reader: LogReader, undone: Mapping[Partition, int] = {}) -> dict[Partition, int | None]:
        """As the group would have committed: everything but what is given."""
        partitions = [
            Partition(kind.TOPIC, number)
            for kind in self.stage.consumes
            for number in range(self.settings.kafka.partitions)
        ]
        ends = await reader.end_offsets(partitions)
        return {partition: undone.get(partition, ends[partition]) for partition in partitions}

    def _refused(self, record: Record, refuse: Refuse) -> Awaitable[Any]:
        raise ValueError(f"the stage refused a record: {refuse.reason}")

    def _bug(self, bug: BaseException) -> None:
        self._failed = bug


def measure_recovery(settings: Settings, quick: bool = False) -> Findings:
    """Measures on the broker of the settings, which has the platform's topics."""
    return asyncio.run(_measure(settings, quick))


async def _measure(settings: Settings, quick: bool) -> Findings:
    found = Findings()
    for turns in TURNS:
        found.add(await _of_turns(settings, turns))
    for sessions in SESSIONS:
        found.add(await _of_sessions(settings, sessions, _WRITTEN_IN_S // (10 if quick else 1)))
    return found


async def _of_turns(settings: Settings, turns: int) -> Findings:
    """One call of so many turns; the last turn is the one that is redone."""
    stage = STAGES["llm"]
    agents = load_agents(settings.agents_dir)
    core = conversation(settings, agents, embed)
    session_id = str(uuid.uuid4())
    async with (
        LogProducer(settings, "trunkline.bench") as producer,
        LogReader(settings, "trunkline.bench", note_ends=True) as reader,
    ):
        desk = Desk(settings, stage, core, producer)
        record = await desk.write(_started(session_id, next(iter(agents))))
        for turn in range(turns + 1):
            desk.runner.deliver(record)
            await desk.until_done(record.position)
            if turn < turns:
                record = await desk.write(_intent(session_id, next(iter(agents)), turn + 1))
        await reader.connect()
        position = record.position
        committed = await desk.committed(reader, {Partition(position.topic, position.partition): position.offset})
        took = [await Desk(settings, stage, core, producer).take_over(reader, committed) for _ in range(TIMES)]
    return _findings(f"conversation of {turns} turns", took)


async def _of_sessions(settings: Settings, sessions: int, written_in_s: float) -> Findings:
    """So many silent calls, each with as much audio that is redone as lies between two snapshots."""
    stage = STAGES["stt"]
    core = SttCore(vad.create(settings))
    ids = [str(uuid.uuid4()) for _ in range(sessions)]
    async with (
        LogProducer(settings, "trunkline.bench") as producer,
        LogReader(settings, "trunkline.bench", note_ends=True) as reader,
    ):
        await reader.connect()
        undone: dict[Partition, int] = {}
        before = await Desk(settings, stage, core, producer).committed(reader)
        await _ten_minutes(settings, producer, core, ids, written_in_s)
        desk = Desk(settings, stage, core, producer)
        for number in range(round(FRAMES_PER_S * SNAPSHOT_EVERY_S)):
            frames = [_frame(session_id, number) for session_id in ids]
            for record in await asyncio.gather(*(desk.write(frame) for frame in frames)):
                where = Partition(record.position.topic, record.position.partition)
                undone.setdefault(where, before[where] or 0)
        committed = await desk.committed(reader, undone)
        took = [await Desk(settings, stage, core, producer).take_over(reader, committed) for _ in range(TIMES)]
        # Ended, so that they are not counted among the next ones.
        for session_id in ids:
            number = partition_of(session_id, settings.kafka.partitions)
            await producer.publish_raw(state_topic(stage.name), _key(session_id), None, partition=number)
    return _findings(f"{sessions} live calls", took)


async def _ten_minutes(
    settings: Settings, producer: LogProducer, core: SttCore, ids: list[str], written_in_s: float
) -> None:
    """Writes what ten minutes of these calls leave in the log of snapshots."""
    partitions = settings.kafka.partitions
    states = {session_id: core.save(_after_a_second(core, session_id)) for session_id in ids}
    rounds = round(_MINUTES * 60 / SNAPSHOT_EVERY_S)
    started_s = time.monotonic()
    for done in range(rounds):
        applied = {AudioFrame.TOPIC: round(FRAMES_PER_S * SNAPSHOT_EVERY_S * done)}
        pending = []
        for session_id, state in states.items():
            snapshot = msgspec.msgpack.encode(Snapshot(state, applied, done, bytes(16)))
            number = partition_of(session_id, partitions)
            pending.append(producer.publish_raw(state_topic("stt"), _key(session_id), snapshot, partition=number))
        await asyncio.gather(*pending)
        await asyncio.sleep(max(0.0, started_s + (done + 1) * written_in_s / rounds - time.monotonic()))


def _after_a_second(core: SttCore, session_id: str) -> Any:
    state = core.start(session_id)
    for number in range(FRAMES_PER_S):
        position = Position(AudioFrame.TOPIC, 0, number)
        state = core.apply(state, Received(_frame(session_id, number), position), time.time_ns() // 1000).state
    return state


def _key(session_id: str) -> bytes:
    return f"{session_id}/bench".encode()


def _findings(group: str, took: list[Took]) -> Findings:
    return Findings(
        [
            Row(group, "reading back", Distribution.of(one.read_ms for one in took)),
            Row(group, "taking it over", Distribution.of(one.restore_ms for one in took)),
        ],
        [
            Fact(group, "records read", max(one.records_read for one in took)),
            Fact(group, "read", round(max(one.bytes_read for one in took) / 1024, 1), "KiB"),
            Fact(group, "largest snapshot", max(one.snapshot_bytes_max for one in took), "bytes"),
        ],
    )


def _envelope(session_id: str, agent_id: str, turn: int) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "session_id": session_id,
        "tenant_id": "bench",
        "agent_id": agent_id,
        "turn": turn,
        "seq": turn,
        "occurred_at": time.time_ns() // 1000,
    }


def _started(session_id: str, agent_id: str) -> Session:
    return Session(**_envelope(session_id, agent_id, 0), kind=SessionKind.STARTED, caller="+15550123")


def _intent(session_id: str, agent_id: str, turn: int) -> Intent:
    text = f"Number {turn}: would you tell me, please, how many of the blue ones were made in that year, and by whom?"
    return Intent(
        **_envelope(session_id, agent_id, turn),
        kind=IntentKind.DETECTED,
        intent="",
        confidence=0.1,
        text=text,
        committed=True,
    )


def _frame(session_id: str, number: int) -> AudioFrame:
    now_us = time.time_ns() // 1000
    return AudioFrame(
        **_envelope(session_id, "bench", 0) | {"seq": number},
        captured_at=now_us,
        sample_index=number * FRAME_SAMPLES,
        sample_rate_hz=16000,
        pcm=bytes(2 * FRAME_SAMPLES),
    )

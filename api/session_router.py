"""Between the log and the live calls: one reader and one producer for the whole gateway."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from api.beat import Lateness
from api.door import Counts, Door
from api.history import Histories
from api.metrics import Metrics
from api.resume_tokens import ResumeTokens, resume_tokens
from processors.access.refusals import Refusals
from processors.access.roles import Principal
from processors.agents import Agent
from schemas.event import Event
from schemas.events import Session
from streams.client import LogError, Partition
from streams.clock import Clock, SystemClock
from streams.codec import Codec, CodecError
from streams.consumer import LogReader, Record
from streams.keys import mint_session_id
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings

log = structlog.get_logger(__name__)

TOPICS = (
    "voice.sessions",
    "voice.transcripts",
    "voice.intents",
    "voice.responses",
    "voice.audio.out",
    "voice.control",
)
RECENT_MAX = 500
REPEATS_MAX = 4096
READER_RETRY_S = 1.0
START_PATIENCE_S = 15.0
START_RETRY_S = 0.1
# Of all producers this one writes most, a frame of audio at a time, and each request costs the broker as much as a
# batch. Its audio was up to 40 ms in the making.
LINGER_MS = 5


@dataclass(slots=True)
class Summary:
    """What is known of a call without reading the log."""

    session_id: str
    tenant: str
    agent: str
    channel: str
    started_at: int
    call_id: str = field(default="", repr=False)
    ended_at: int | None = None
    reason: str = ""
    duration_ms: int = 0
    turn: int = 0
    transfer_target: str = field(default="", repr=False)


def summary_of(started: Session, turn: int = 0) -> Summary:
    """Of the session that began so, and is at that turn."""
    return Summary(
        started.session_id, started.tenant_id, started.agent_id, started.channel, started.occurred_at, turn=turn
    )


class LiveCall(Protocol):
    """What the router needs of a call: one with its caller, or one that waits for the caller to come back."""

    summary: Summary

    def deliver(self, event: Event) -> None:
        """Takes an event of the session, in the order of the log, each once."""
        ...

    def end(self, reason: str, close_code: int = 1000) -> None:
        """Ends the call; harmless when it has ended."""
        ...

    def leave(self) -> None:
        """The gateway stops and the call does not: its client is sent to another gateway."""
        ...

    async def release(self) -> None:
        """The caller has come by another socket: lets go of it, and returns when all it wrote is in the log."""
        ...

    async def closed(self) -> None:
        """Returns when its socket is closed."""
        ...

    def depths(self) -> tuple[int, int, int]:
        """Events that the log has not confirmed, bytes that the client has not taken, speech (ms) that waits for it."""
        ...


class Repeats:
    """The newest event ids of a session, to drop what comes twice."""

    def __init__(self) -> None:
        self._order: deque[str] = deque()
        self._seen: set[str] = set()

    def add(self, event_id: str) -> bool:
        """Remembers the id; False when it was known."""
        if event_id in self._seen:
            return False
        self._seen.add(event_id)
        self._order.append(event_id)
        if len(self._order) > REPEATS_MAX:
            self._seen.discard(self._order.popleft())
        return True


class SessionRouter:
    """Gives the events of the log to the calls that live here, and the calls a way to write."""

    def __init__(
        self, settings: Settings, agents: Mapping[str, Agent], metrics: Metrics, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.agents = agents
        self.metrics = metrics
        self.clock = clock or SystemClock()
        self.codec: Codec = codec_for(settings)
        self.name = f"api.{settings.worker}"
        self.partitions = frozenset(settings.api.partitions or range(settings.kafka.partitions))
        self.partitions_for_new = _spread(self.partitions, settings.api.spread)
        self.histories = Histories(settings, self.codec, self.clock)
        self.recent: deque[Summary] = deque(maxlen=RECENT_MAX)
        self.door = Door(settings, metrics, self.clock, self._counts)
        self.lateness = Lateness()
        self.refusals = Refusals(self.name, settings.tenant, self.clock)
        self.closing = False
        self._sockets = 0
        self._tokens: ResumeTokens | None = None
        self._calls: dict[bytes, LiveCall] = {}
        self._numbers = set(self.partitions)
        self._reader: LogReader | None = None
        self._positions: dict[Partition, int] = {}
        self._reading = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._producer: LogProducer | None = None

    async def start(self) -> None:
        """Opens the log and reads from its end; returns when calls can be taken. Raises LogError."""
        self._producer = LogProducer(self.settings, "trunkline.api", self.codec, linger_ms=LINGER_MS)
        try:
            reader = await self._patiently_opened()
        except LogError as error:
            log.error("the log cannot be read", error=str(error), brokers=self.settings.kafka.bootstrap_servers)
            await self._producer.close()
            raise
        self._task = asyncio.create_task(self._read_on(reader))
        self.door.open(self._producer.publish, self.codec)
        self.refusals.open(self._producer.publish)

    async def stop(self) -> None:
        """Lets go of calls that are left, which go on elsewhere (`end_all` ends calls), and closes the log."""
        await self.leave_all()
        await self.door.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._producer is not None:
            await self.refusals.close()
            await self._producer.close()

    @property
    def producer(self) -> LogProducer:
        """The gateway's one producer; the router has been started."""
        assert self._producer is not None, "the router was not started"
        return self._producer

    @property
    def reading(self) -> bool:
        """Whether events arrive from the log."""
        return self._reading.is_set()

    def connected(self, by: int) -> None:
        """A socket was opened (1) or closed (-1), whether or not it has a call."""
        self._sockets += by
        self.metrics.sockets.set(self._sockets)

    def _counts(self) -> Counts:
        unacknowledged = max((call.depths()[0] for call in self._calls.values()), default=0)
        return Counts(len(self._calls), self._sockets, unacknowledged)

    @property
    def live(self) -> list[Summary]:
        """The calls going on, oldest first."""
        return [call.summary for call in self._calls.values()]

    def mint(self) -> str:
        """A new session id, whose events this gateway reads."""
        return mint_session_id(self.settings.kafka.partitions, self.partitions_for_new)

    @property
    def tokens(self) -> ResumeTokens:
        """Mints and reads the tokens with which clients prove that a call is theirs."""
        if self._tokens is None:
            self._tokens = resume_tokens(self.settings)
        return self._tokens

    def resume_token(self, session_id: str, tenant: str, since_us: int) -> str:
        """A token for the tenant's session that began then; valid for as long as it can last."""
        lasts_s = self.settings.api.session_max_s + self.settings.api.resume_grace_s
        return self.tokens.mint(session_id, tenant, since_us, since_us + int(lasts_s * 1_000_000))

    def agents_of(self, principal: Principal) -> Mapping[str, Agent]:
        """Those that whoever asks may know of: of other tenants none."""
        return {name: agent for name, agent in self.agents.items() if not agent.tenant or principal.sees(agent.tenant)}

    def tenant_of(self, principal: Principal, agent_id: str) -> str:
        """Whose a call with that agent is."""
        return principal.tenant or self.agents[agent_id].tenant or self.settings.tenant

    def add(self, call: LiveCall) -> None:
        """From now on the call gets its events."""
        self.put(call)
        self.metrics.started.labels(call.summary.channel).inc()

    def put(self, call: LiveCall) -> None:
        """From now on the session's events go to this one, whoever had them."""
        self._calls[call.summary.session_id.encode()] = call
        self.metrics.sessions.set(len(self._calls))

    def forget(self, call: LiveCall) -> bool:
        """The call is not here any more; False where the session's events already go to another."""
        key = call.summary.session_id.encode()
        if self._calls.get(key) is not call:
            return False
        del self._calls[key]
        self.metrics.sessions.set(len(self._calls))
        return True

    def remove(self, call: LiveCall) -> None:
        """The call has ended."""
        if self.forget(call):
            self.recent.append(call.summary)
            self.metrics.ended.labels(call.summary.channel, call.summary.reason).inc()

    async def read_partition(self, number: int) -> None:
        """Reads that partition number, too, from its end: a caller has come from another gateway. Raises LogError."""
        if number in self._numbers:
            return
        if self._reader is None:
            raise LogError("the log is not being read now")
        await self._add(self._reader, [Partition(topic, number) for topic in TOPICS])
        self._numbers.add(number)

    async def _add(self, reader: LogReader, partitions: list[Partition]) -> None:
        """From where they were read to, or their ends as of now: a reader that fails at once must not skip any."""
        fresh = [partition for partition in partitions if partition not in self._positions]
        self._positions |= await reader.end_offsets(fresh)
        await reader.add({partition: self._positions[partition] for partition in partitions})

    def find(self, session_id: str) -> LiveCall | None:
        """The live call, if it is here."""
        return self._calls.get(session_id.encode())

    def measure_queues(self) -> None:
        """Sets the gauges of the fullest queues; for each scrape."""
        depths = [call.depths() for call in self._calls.values()]
        self.metrics.queue_depth.labels("incoming", "events").set(max((depth[0] for depth in depths), default=0))
        self.metrics.queue_depth.labels("outgoing", "bytes").set(max((depth[1] for depth in depths), default=0))
        self.metrics.queue_depth.labels("speech", "ms").set(max((depth[2] for depth in depths), default=0))

    async def end_all(self, reason: str, close_code: int) -> None:
        """Takes no more calls and ends those there are; returns when their sockets are closed."""
        self.closing = True
        self.door.shut()
        calls = list(self._calls.values())
        for call in calls:
            call.end(reason, close_code)
        await asyncio.gather(*(call.closed() for call in calls))

    async def leave_all(self) -> None:
        """Takes no more calls and sends those there are to other gateways; returns when their sockets are closed."""
        self.closing = True
        self.door.shut()
        calls = list(self._calls.values())
        for call in calls:
            call.leave()
        await asyncio.gather(*(call.closed() for call in calls))

    async def _patiently_opened(self) -> LogReader:
        """Partitions of topics that were created a moment ago have no leader yet."""
        patience_until_s = self.clock.monotonic_s() + START_PATIENCE_S
        while True:
            try:
                return await self._open_reader()
            except LogError:
                if self.clock.monotonic_s() >= patience_until_s:
                    raise
            await self.clock.sleep(START_RETRY_S)

    async def _open_reader(self) -> LogReader:
        reader = LogReader(self.settings, "trunkline.api")
        wanted = [Partition(topic, number) for topic in TOPICS for number in sorted(self._numbers)]
        try:
            await self._add(reader, wanted)
        except BaseException:
            await reader.close()
            raise
        self._reader = reader
        self._reading.set()
        return reader

    async def _read_on(self, reader: LogReader | None) -> None:
        """Reads for ever; a reader that fails is replaced by one that goes on where it stopped."""
        while True:
            try:
                reader = reader or await self._open_reader()
                async for batch in reader.batches():
                    self._dispatch(batch)
            except LogError as error:
                log.error("reading the log failed, trying again", error=str(error))
            finally:
                self._reading.clear()
                self._reader = None
                if reader is not None:
                    await reader.close()
            reader = None
            await self.clock.sleep(READER_RETRY_S)

    def _dispatch(self, batch: list[Record]) -> None:
        foreign = 0
        for record in batch:
            self._positions[Partition(record.topic, record.partition)] = record.offset + 1
            call = self._calls.get(record.key) if record.key is not None else None
            if call is None:
                foreign += 1
            else:
                self._deliver(record, call)
        if foreign:
            self.metrics.records.labels("other_session").inc(foreign)

    def _deliver(self, record: Record, call: LiveCall) -> None:
        try:
            event = self.codec.decode_keyed(record.topic, record.key, record.value)
        except CodecError as error:
            self.metrics.records.labels("unreadable").inc()
            log.warning(
                "record not readable",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=error.reason,
            )
            return
        self.metrics.records.labels("delivered").inc()
        try:
            call.deliver(event)
        except Exception:
            # One call's defect must not end the others, which share this reader.
            log.exception("delivery failed", session_id=event.session_id, event_id=event.event_id)
            call.end("failed", 1011)


def _spread(partitions: Collection[int], count: int | None) -> frozenset[int]:
    """So many of them, evenly apart: a worker has neighbouring ones, and every worker shall get calls."""
    every = sorted(partitions)
    chosen = min(count or len(every), len(every))
    return frozenset(every[number * len(every) // chosen] for number in range(chosen))

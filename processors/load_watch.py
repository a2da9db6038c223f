"""A worker's watch over its own load: it samples, tells the platform of it, and adapts what the worker asks for."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
import structlog

from processors import metrics
from processors.choices import History
from processors.engine import EngineClient, Reply, Request, Transcribe, is_provisional
from processors.engine_client import replicas
from processors.generations import ForTurns
from processors.hosted import hosted_roles
from processors.load import LIMITS, REPEAT_S, STEPS, Board, Level, LoadLadder, LoadLimits, Meter, Sample
from schemas.events import Health as HealthEvent
from schemas.events import HealthKind
from streams.client import LogError
from streams.clock import Clock
from streams.codec import Codec, CodecError
from streams.consumer import LogReader
from streams.settings import Settings

log = structlog.get_logger(__name__)

SAMPLE_S = 0.5
RETRY_S = 2.0
RARE_PARTIALS_FACTOR = 4
SPARE_WAIT_S = 0.1  # of asks before the engine begins with them: others are waiting


def capacity(settings: Settings, role: str) -> int:
    """How many asks the role's engines answer at a time without any of them taking longer for it.

    On a processor that is one each, whatever they work on at once; a GPU reads many as soon as one. A remote endpoint
    takes as many as may be under way.
    """
    engines = settings.engines
    if role in hosted_roles(settings):
        reads_many = role == "stt" and engines.device == "cuda"
        return replicas(settings, role) * (engines.readings_at_once if reads_many else 1)
    return engines.queue_depth_max * len(engines.llm_endpoints)


class Reports(Protocol):
    """The part of `processors.health.Health` that is used here."""

    def report(
        self, kind: HealthKind, *, level: int = 0, reason: str = "", utilisation: float = 0.0, calls: int = 0
    ) -> None:
        """Publishes an event about this process; never raises."""
        ...


class LoadWatch:
    """Samples one worker, moves its level, and says so: at each change, and again while it lasts or calls go on.

    `depth` and `calls` are the worker's own counts. `board` is what other components say, where it is read.
    """

    def __init__(
        self,
        component: str,
        meter: Meter,
        reports: Reports,
        clock: Clock,
        *,
        depth: Callable[[], int],
        calls: Callable[[], int],
        limits: LoadLimits = LIMITS,
        board: Board | None = None,
    ) -> None:
        self._component = component
        self._meter = meter
        self._reports = reports
        self._clock = clock
        self._depth = depth
        self._calls = calls
        self._limits = limits
        self._board = board
        self._ladder = LoadLadder(STEPS[component])
        self._told_s = float("-inf")
        self._told_calls = 0

    @property
    def level(self) -> Level:
        """What this worker gives up for its own load, or for that of others where it can help them."""
        own = self._ladder.level
        others = self._board.worst(self._clock.monotonic_s(), besides=self._component) if self._board else None
        if others is not None and others.level in STEPS[self._component]:
            return max(own, others.level)
        return own

    @property
    def spares_time(self) -> bool:
        """Whether there is time for what may be in vain: no stage is short of it, and no ask waits for an engine."""
        others = self._board.worst(self._clock.monotonic_s(), besides=self._component) if self._board else None
        worst = max(self._ladder.level, others.level if others is not None else Level.ORDINARY)
        return worst < Level.RARE_PARTIALS and self._meter.waiting_s(self._clock.monotonic_s()) < SPARE_WAIT_S

    async def run(self, settings: Settings, codec: Codec) -> None:
        """Samples until it is cancelled, and reads what others say where this worker heeds it."""
        async with asyncio.TaskGroup() as group:
            if self._board is not None:
                name = f"trunkline.{self._component}.{settings.worker}.health"
                group.create_task(read_health(settings, name, self._heard, codec, self._clock))
            group.create_task(self._sampling())

    def _heard(self, event: HealthEvent) -> None:
        if self._board is not None:
            self._board.heard(event, self._clock.monotonic_s())

    async def _sampling(self) -> None:
        """How late it wakes is the event loop's lag."""
        while True:
            due_s = self._clock.monotonic_s() + SAMPLE_S
            await self._clock.sleep(SAMPLE_S)
            self.sample(max(0.0, self._clock.monotonic_s() - due_s))

    def sample(self, lag_s: float = 0.0) -> Sample:
        """One sample: measured, shown, and told where it changes something."""
        now_s = self._clock.monotonic_s()
        sample = self._meter.sample(now_s, self._clock.now_us(), self._depth(), lag_s)
        before = self._ladder.level
        level = self._ladder.observe(now_s, sample.pressure(self._limits), sample.strain(self._limits))
        self._show(sample, level)
        if level != before:
            log.warning("load level", component=self._component, level=level.name.lower(), measured=str(sample))
            raised = level > before
            metrics.load_steps.labels(self._component, "raised" if raised else "lowered").inc()
            self._tell(HealthKind.LOAD_RAISED if raised else HealthKind.LOAD_LOWERED, level, sample, now_s)
        elif now_s - self._told_s >= REPEAT_S:
            if level:
                self._tell(HealthKind.LOAD_RAISED, level, sample, now_s)
            if level or self._calls() or self._told_calls:
                self._tell(HealthKind.LOAD_MEASURED, level, sample, now_s)
        return sample

    def _tell(self, kind: HealthKind, level: Level, sample: Sample, now_s: float) -> None:
        fields: dict[str, Any] = {"level": int(level), "reason": str(sample)}
        if kind is HealthKind.LOAD_MEASURED:
            self._told_calls = self._calls()
            fields |= {"utilisation": round(sample.utilisation, 3), "calls": self._told_calls}
        self._told_s = now_s
        self._reports.report(kind, **fields)

    def _show(self, sample: Sample, level: Level) -> None:
        metrics.load_level.labels(self._component).set(level)
        metrics.load_oldest.labels(self._component).set(sample.oldest_s)
        metrics.load_waiting.labels(self._component).set(sample.waiting_s)
        metrics.load_lag.labels(self._component).set(sample.lag_s)
        metrics.load_utilisation.labels(self._component).set(sample.utilisation)
        metrics.load_deadline_used.labels(self._component).set(sample.deadline_used)
        metrics.load_calls.labels(self._component).set(self._calls())


class LoadAwareEngine:
    """An `EngineClient` that measures the one it wraps, and asks it for less while the worker is overloaded.

    What it asks for is never part of the log, so that another choice after a crash is harmless: recorded answers are
    adopted whatever model gave them.
    """

    def __init__(self, client: EngineClient, role: str, meter: Meter, level: Callable[[], Level], clock: Clock) -> None:
        self._client = client
        self._role = role
        self._meter = meter
        self._level = level
        self._clock = clock

    def for_turn(self, history: History, turn: int) -> EngineClient:
        """See `ForTurns`; where there is no choice of engines it is this one for all."""
        if not isinstance(self._client, ForTurns):
            return self
        client = self._client.for_turn(history, turn)
        return LoadAwareEngine(client, self._role, self._meter, self._level, self._clock)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        partial = isinstance(request, Transcribe) and request.partial
        number = self._meter.asked(self._role, self._clock.monotonic_s(), partial, deadline_s)
        compute_ms: float | None = None
        withdrawn = True
        try:
            async with aclosing(self._client.ask(self._adapted(request), deadline_s)) as replies:
                async for reply in replies:
                    self._meter.begun(self._role, number, self._clock.monotonic_s())
                    compute_ms = (compute_ms or 0.0) + reply.compute_ms
                    # Who reads no further than a reply that tells what it cost has what was asked for.
                    withdrawn = compute_ms == 0.0 or is_provisional(reply)
                    yield reply
            withdrawn = False
        except Exception:
            withdrawn = False
            raise
        finally:
            compute_s = None if compute_ms is None else compute_ms / 1000
            self._meter.answered(self._role, number, self._clock.monotonic_s(), compute_s, withdrawn)

    async def close(self) -> None:
        """See `EngineClient`."""
        await self._client.close()

    def _adapted(self, request: Request) -> Request:
        if isinstance(request, Transcribe) and self._level() >= Level.SMALL_MODELS:
            return msgspec.structs.replace(request, quick=True)
        return request


async def read_health(
    settings: Settings, name: str, heard: Callable[[HealthEvent], None], codec: Codec, clock: Clock
) -> None:
    """Hands on what voice.health says, from a little before now, until it is cancelled.

    A log that cannot be read is tried again.
    """
    while True:
        reader = LogReader(settings, name)
        try:
            partitions = await reader.partitions(HealthEvent.TOPIC)
            since_ms = clock.now_us() // 1000 - round(1000 * 2 * REPEAT_S)
            await reader.add(await reader.offsets_at(partitions, since_ms))
            async for record in reader:
                with contextlib.suppress(CodecError):
                    event = codec.decode_keyed(record.topic, record.key, record.value)
                    if isinstance(event, HealthEvent):
                        heard(event)
        except LogError as error:
            log.warning("voice.health cannot be read, trying again", error=str(error))
        finally:
            await asyncio.shield(reader.close())
        await clock.sleep(RETRY_S)

"""The gateway's door: asks `admission` on behalf of callers, watches the gateway's own load, and tells of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psutil
import structlog

from api.admission import Admission, Refusal
from api.metrics import Metrics
from processors.health import Health
from processors.load import REPEAT_S, Level, Sample
from processors.load_watch import SAMPLE_S, read_health
from schemas.event import Event
from schemas.events import Health as HealthEvent
from schemas.events import HealthKind
from streams.clock import Clock
from streams.codec import Codec
from streams.settings import Settings

log = structlog.get_logger(__name__)

SOCKETS_SPARE = 50


@dataclass(frozen=True, slots=True)
class Counts:
    """What the gateway has now: calls, open sockets, and the most events of a call that the log has not confirmed."""

    calls: int
    sockets: int
    unacknowledged: int


class Door:
    """One for each gateway; for its event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Clock, counts: Callable[[], Counts]) -> None:
        api, load = settings.api, settings.load
        sockets_max = 2 * api.sessions_max + SOCKETS_SPARE
        self._admission = Admission(
            api.sessions_max,
            sockets_max,
            load.reply_ms_max / 1000,
            load.utilisation_max,
            machine_max=load.machine_max,
            by_load=load.refuse,
            calls_min=load.calls_min,
        )
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._counts = counts
        self._health: Health | None = None
        self._told_s = float("-inf")
        self._refused: Refusal | None = None
        self._refusals = 0
        self._refusals_told_s = float("-inf")
        self._tasks: list[asyncio.Task[Any]] = []

    def open(self, publish: Callable[[Event], Awaitable[Any]], codec: Codec) -> None:
        """Begins to watch and to read voice.health."""
        settings = self._settings
        self._health = Health(publish, "api", settings.worker, settings.tenant, self._clock)
        self._tasks = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(read_health(settings, "trunkline.api.health", self._heard, codec, self._clock)),
        ]

    async def close(self) -> None:
        """Stops watching."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def refusal(self, name: str = "") -> Refusal | None:
        """Why no new call is taken now; None for one that was promised its place under that name."""
        now_s, counts = self._clock.monotonic_s(), self._counts()
        if name and not self._admission.closing and self._admission.claim(name, now_s):
            return None
        return self._admission.refusal(now_s, counts.calls, counts.sockets)

    def crowded(self) -> Refusal | None:
        """Why not even a connection is taken: whoever goes on with a call has one, too."""
        refusal = self._admission.refusal(self._clock.monotonic_s(), 0, self._counts().sockets)
        return refusal if refusal is not None and refusal.reason in ("shutting_down", "sockets") else None

    def reserve(self, name: str) -> None:
        """Promises a place for some seconds to a call that will come under that name."""
        self._admission.reserve(name, self._clock.monotonic_s())

    def refused(self, refusal: Refusal) -> None:
        """The caller was told."""
        self._metrics.refused.labels(refusal.reason).inc()
        self._admission.refused(self._clock.monotonic_s())
        if refusal.code == "overloaded":  # a gateway that shuts down has a successor, which takes the call
            self._refused = refusal
            self._refusals += 1
        log.info("call refused", reason=refusal.reason, retry_after_s=refusal.retry_after_s, measured=refusal.detail)

    def taken(self) -> None:
        """A new call was taken."""
        self._admission.taken(self._clock.monotonic_s())

    def replied(self, waited_s: float) -> None:
        """A caller heard the first of a reply after that long."""
        self._admission.replied(waited_s, self._clock.monotonic_s(), self._counts().calls)

    def shut(self) -> None:
        """Takes nobody any more."""
        self._admission.closing = True

    def _heard(self, event: HealthEvent) -> None:
        self._admission.heard(event, self._clock.monotonic_s())

    async def _watch(self) -> None:
        while True:
            due_s = self._clock.monotonic_s() + SAMPLE_S
            await self._clock.sleep(SAMPLE_S)
            self.sample(max(0.0, self._clock.monotonic_s() - due_s))

    def sample(self, lag_s: float) -> None:
        """Measures the gateway itself; tells of its level when it changes, and again while it is raised."""
        now_s, admission = self._clock.monotonic_s(), self._admission
        admission.machine(now_s, psutil.cpu_percent() / 100, self._counts().calls)
        before = admission.level
        sample = Sample(depth=self._counts().unacknowledged, lag_s=lag_s)
        level = admission.observe(now_s, sample)
        self._show(sample, level, now_s)
        if level != before:
            kind = HealthKind.LOAD_RAISED if level > before else HealthKind.LOAD_LOWERED
            self._metrics.load_steps.labels("raised" if level > before else "lowered").inc()
            self._tell(kind, level, sample, now_s)
        elif level and now_s - self._told_s >= REPEAT_S:
            self._tell(HealthKind.LOAD_RAISED, level, sample, now_s)
        if self._refused is not None and now_s - self._refusals_told_s >= REPEAT_S:
            self._tell_refusals(self._refused, now_s)

    def _tell_refusals(self, last: Refusal, now_s: float) -> None:
        if self._health is not None:
            self._health.report(HealthKind.CALLS_REFUSED, refused=self._refusals, reason=last.reason)
        self._refused, self._refusals, self._refusals_told_s = None, 0, now_s

    def _tell(self, kind: HealthKind, level: Level, sample: Sample, now_s: float) -> None:
        self._told_s = now_s
        replies = self._admission.replies
        slowest = f"replies {1000 * replies.p95_s(now_s):.0f} of {1000 * replies.limit_s:.0f} ms"
        if self._health is not None:
            self._health.report(kind, level=int(level), reason=f"{slowest}, {sample}")

    def _show(self, sample: Sample, level: Level, now_s: float) -> None:
        self._metrics.load_level.set(level)
        self._metrics.load_lag.set(sample.lag_s)
        self._metrics.reply_p95.set(self._admission.replies.p95_s(now_s))
        self._metrics.reply_limit.set(self._admission.replies.limit_s)
        for name, share in self._admission.expected(now_s).items():
            self._metrics.expected_utilisation.labels(name).set(share)
        for name, count in self._admission.calls_free(now_s).items():
            self._metrics.calls_free.labels(name).set(count)
        for name, share in self._admission.costs().items():
            self._metrics.call_cost.labels(name).set(share)

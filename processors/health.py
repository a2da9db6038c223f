"""What a process says on `voice.health`: breakers, load levels, calls that it refused, budgets that are burning."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from processors.stage import event_id
from schemas.event import Event
from schemas.events import Health as HealthEvent
from schemas.events import HealthKind
from streams.clock import Clock

log = structlog.get_logger(__name__)

REASON_CHARS_MAX = 200


class Health:
    """Reports of one process, `component.worker` by name; its records share a key, so they keep their order.

    Reasons are numbers, names and error kinds: never a caller's words. To be used from one event loop.
    """

    def __init__(
        self,
        producer_publish: Callable[[Event], Awaitable[Any]],
        component: str,
        worker: str,
        tenant: str,
        clock: Clock,
    ) -> None:
        self._publish = producer_publish
        self._component = component
        self._tenant = tenant
        self._clock = clock
        self._session_id = event_id("health", f"{component}.{worker}")
        self._started_us = clock.now_us()
        self._seq = 0
        self._sending: set[asyncio.Future[Any]] = set()

    def report(
        self,
        kind: HealthKind,
        *,
        engine: str = "",
        level: int = 0,
        reason: str = "",
        utilisation: float = 0.0,
        calls: int = 0,
        refused: int = 0,
        objective: str = "",
        burn_rate: float = 0.0,
        window_s: int = 0,
        tenant: str = "",
    ) -> None:
        """Publishes without waiting; `tenant` where another is meant than the process's own.

        Never raises: that the log is away must not hurt what still works without it.
        """
        self._seq += 1
        event = HealthEvent(
            event_id=event_id(self._session_id, f"{self._started_us}-{self._seq}"),
            session_id=self._session_id,
            tenant_id=tenant or self._tenant,
            agent_id="",
            turn=0,
            seq=self._seq,
            occurred_at=self._clock.now_us(),
            kind=kind,
            component=self._component,
            engine=engine,
            level=level,
            reason=reason[:REASON_CHARS_MAX],
            utilisation=utilisation,
            calls=calls,
            refused=refused,
            objective=objective,
            burn_rate=burn_rate,
            window_s=window_s,
        )
        note = log.debug if kind is HealthKind.LOAD_MEASURED else log.info
        note("health", kind=kind.value, component=self._component, engine=engine, level=level, reason=event.reason)
        try:
            sent = asyncio.ensure_future(self._publish(event))
        except Exception as error:
            self._lost(kind, error)
            return
        self._sending.add(sent)
        sent.add_done_callback(lambda done: self._sent(kind, done))

    def _sent(self, kind: HealthKind, done: asyncio.Future[Any]) -> None:
        self._sending.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            self._lost(kind, error)

    def _lost(self, kind: HealthKind, error: BaseException) -> None:
        log.warning("health_not_written", kind=kind.value, component=self._component, error=type(error).__name__)

"""What a process refuses, told on `voice.refusals`: who asked, for what, and why not."""

import asyncio
import collections
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog
from prometheus_client import Counter

from processors.access.limits import Bucket
from processors.access.roles import Principal
from processors.stage import event_id
from schemas.event import Event
from schemas.events import Refusal, RefusalKind
from streams.clock import Clock

log = structlog.get_logger(__name__)

EVENTS_PER_S = 50.0
EVENTS_AT_ONCE = 500.0
SUM_UP_S = 1.0
told = Counter("trunkline_access_refused", "What was not allowed to who asked.", ["kind", "reason"])
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Refused:
    """One thing that was not allowed."""

    kind: RefusalKind
    reason: str
    key_id: str = ""
    role: str = ""
    tenant: str = ""
    action: str = ""
    target: str = ""
    permission: str = ""


class Refusals:
    """Tells of each at once; when too many come, the rest by number alone, each second. For one event loop.

    Never waits and never raises: that the log is away opens no door, and closes none.
    """

    def __init__(self, component: str, tenant: str, clock: Clock) -> None:
        """`component` is the process's name, such as api.0, and `tenant` the platform's own."""
        self._component = component
        self._tenant = tenant
        self._session_id = event_id("refusals", component)
        self._clock = clock
        self._started_us = clock.now_us()
        self._seq = 0
        self._bucket = Bucket(EVENTS_PER_S, EVENTS_AT_ONCE, clock.monotonic_s())
        self._summed: collections.Counter[Refused] = collections.Counter()
        self._publish: Callable[[Event], Awaitable[Any]] | None = None
        self._sending: set[asyncio.Future[Any]] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self, publish: Callable[[Event], Awaitable[Any]]) -> None:
        """From now on what is refused is written."""
        self._publish = publish
        self._task = asyncio.create_task(self._sum_up())

    async def close(self) -> None:
        """Writes what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._tell_summed()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def tell(
        self,
        kind: RefusalKind,
        reason: str,
        principal: Principal | None = None,
        action: str = "",
        target: str = "",
        permission: str = "",
    ) -> None:
        """Something was refused; of a target that does not look like an id nothing is said."""
        told.labels(kind.value, reason).inc()
        refused = Refused(
            kind,
            reason,
            key_id=principal.id if principal is not None else "",
            role=",".join(sorted(principal.roles)) if principal is not None else "",
            tenant=(principal.tenant if principal is not None else None) or self._tenant,
            action=action,
            target=target if _ID.fullmatch(target) else "",
            permission=permission,
        )
        if self._bucket.take(self._clock.monotonic_s()):
            self._write(refused, 1)
        else:
            self._summed[replace(refused, action="", target="", permission="")] += 1

    async def _sum_up(self) -> None:
        while True:
            await self._clock.sleep(SUM_UP_S)
            self._tell_summed()

    def _tell_summed(self) -> None:
        summed, self._summed = self._summed, collections.Counter()
        for refused, count in summed.items():
            self._write(refused, count)

    def _write(self, refused: Refused, count: int) -> None:
        self._seq += 1
        event = Refusal(
            event_id=event_id(self._session_id, f"{self._started_us}-{self._seq}"),
            session_id=self._session_id,
            tenant_id=refused.tenant,
            agent_id="",
            turn=0,
            seq=self._seq,
            occurred_at=self._clock.now_us(),
            kind=refused.kind,
            component=self._component,
            key_id=refused.key_id,
            role=refused.role,
            action=refused.action,
            target=refused.target,
            permission=refused.permission,
            reason=refused.reason,
            count=count,
        )
        log.info("refused", kind=refused.kind.value, reason=refused.reason, action=refused.action, count=count)
        if self._publish is None:
            return
        try:
            sent = asyncio.ensure_future(self._publish(event))
        except Exception as error:
            self._lost(error)
            return
        self._sending.add(sent)
        sent.add_done_callback(self._sent)

    def _sent(self, done: "asyncio.Future[Any]") -> None:
        self._sending.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            self._lost(error)

    def _lost(self, error: BaseException) -> None:
        log.warning("a refusal was not written", error=type(error).__name__)

"""Sessions whose callers are away: they cost a timer and what is known of them, and end when nobody comes back."""

import asyncio
from collections.abc import Callable

import structlog

from api.history import Marks
from api.journal import Journal
from api.session_router import LiveCall, SessionRouter, Summary, summary_of
from schemas.event import Event
from schemas.events import Control, ControlKind, Session, SessionKind
from streams.client import LogError

log = structlog.get_logger(__name__)

ADOPT_TRIES = 20
ADOPT_RETRY_S = 3.0
# What only the gateway of a session writes: the stages may be at work without one.
_SIGNS = ("voice.audio.in", "voice.control")
GOING_AWAY = "going_away"
RESUMED_ELSEWHERE = "resumed_elsewhere"


class Waiting:
    """A session that waits for its caller; see `LiveCall`. What its stages write meanwhile is kept by the log."""

    def __init__(self, router: SessionRouter, journal: Journal, summary: Summary) -> None:
        self._router = router
        self.journal = journal
        journal.failed = self._not_written
        self.summary = summary
        self._timer: asyncio.TimerHandle | None = None
        self.over = False

    def wait(self) -> None:
        """From now on it has the session, and ends it after `api.resume_grace_s`."""
        self._router.put(self)
        grace_s = self._router.settings.api.resume_grace_s
        self._timer = asyncio.get_running_loop().call_later(grace_s, self.end, "connection_lost")

    def hold(self) -> None:
        """As `wait`; somebody else will end it."""
        self._router.put(self)

    def deliver(self, event: Event) -> None:
        """See `LiveCall`."""
        if isinstance(event, Control) and event.kind is ControlKind.HANG_UP:
            self.end("hung_up")
        elif isinstance(event, Session) and (event.kind is SessionKind.ENDED or self._is_elsewhere(event)):
            self._let_go()

    def end(self, reason: str, close_code: int = 1000) -> None:
        """See `LiveCall`."""
        if self.over:
            return
        summary = self.summary
        summary.reason, summary.ended_at = reason, self._router.clock.now_us()
        summary.duration_ms = self.journal.ended(reason)
        self._stop()
        self._router.remove(self)
        log.info("call ended", session_id=summary.session_id, reason=reason, duration_ms=summary.duration_ms)

    def leave(self) -> None:
        """See `LiveCall`."""
        self._let_go()

    async def release(self) -> None:
        """See `LiveCall`."""
        self._let_go()
        await self.journal.settled()

    async def closed(self) -> None:
        """See `LiveCall`."""

    def depths(self) -> tuple[int, int, int]:
        """See `LiveCall`."""
        return self.journal.unacknowledged, 0, 0

    def _is_elsewhere(self, event: Session) -> bool:
        # Who comes back to this gateway takes the place of this object: its own claims are older, or came to nothing.
        return event.reason == "resumed" and event.gateway != self._router.name

    def _let_go(self) -> None:
        self._stop()
        self._router.forget(self)

    def _stop(self) -> None:
        self.over = True
        if self._timer is not None:
            self._timer.cancel()

    def _not_written(self, error: BaseException) -> None:
        log.error("event not written", session_id=self.summary.session_id, error=str(error))


class Arrival:
    """Holds the place of a session whose caller has just come back, while its log is read; see `LiveCall`.

    `on_gone` hears, once, why that is of no use any more: GOING_AWAY or RESUMED_ELSEWHERE. `holder` is who had the
    session before anybody came back, and has it again where nobody succeeds.
    """

    def __init__(self, summary: Summary, on_gone: Callable[[str], None]) -> None:
        self.summary = summary
        self.events: list[Event] = []
        self.gone = False
        self.holder: LiveCall | None = None
        self._on_gone = on_gone
        self._closed = asyncio.Event()

    async def replace(self, former: LiveCall | None) -> None:
        """Takes over from who had the session so far; returns when all that was written of it is in the log."""
        self.holder = former
        if isinstance(former, Arrival):
            self.holder, self.events = former.holder, [*former.events, *self.events]
        if former is not None:
            await former.release()

    def finished(self) -> None:
        """The socket is closed."""
        self._closed.set()

    def deliver(self, event: Event) -> None:
        """See `LiveCall`."""
        self.events.append(event)

    def end(self, reason: str, close_code: int = 1000) -> None:
        """See `LiveCall`: the caller learns it when it has been served, from the log."""

    def leave(self) -> None:
        """See `LiveCall`."""
        self._go(GOING_AWAY)

    async def release(self) -> None:
        """See `LiveCall`."""
        self._go(RESUMED_ELSEWHERE)
        if self.holder is not None:
            await self.holder.release()

    def _go(self, why: str) -> None:
        if not self.gone:
            self.gone = True
            self._on_gone(why)

    async def closed(self) -> None:
        """See `LiveCall`; of one that is not gone, the socket stays open."""
        if self.gone:
            await self._closed.wait()

    def depths(self) -> tuple[int, int, int]:
        """See `LiveCall`."""
        return 0, 0, 0


async def adopt(router: SessionRouter) -> None:
    """Ends sessions whose gateway died and whose callers do not come back; runs once, from the gateway's start.

    Those of this gateway's predecessor are held for the grace; those of others are left alone unless nothing has
    happened in them for so long that a living gateway would have ended them.
    """
    for _ in range(ADOPT_TRIES):
        try:
            await _adopt(router)
            return
        except LogError as error:
            log.warning("open sessions cannot be read, trying again", error=str(error))
            await router.clock.sleep(ADOPT_RETRY_S)


async def _adopt(router: SessionRouter) -> None:
    settings = router.settings.api
    began_us = router.clock.now_us()
    since_us = began_us - int((settings.session_max_s + settings.resume_grace_s) * 1_000_000)
    found = await router.histories.open_sessions(router.partitions, max(0, since_us))
    if router.closing:
        return  # what is open is its successor's, the calls that it has just left above all
    own: list[Waiting] = []
    foreign: list[Waiting] = []
    for started, latest in found:
        if router.find(started.session_id) is None:
            waiting = _waiting(router, started, latest)
            if latest.gateway == router.name:
                own.append(waiting)
                waiting.hold()
            else:
                foreign.append(waiting)
    if own:
        log.info("sessions wait for their callers", count=len(own))
    await router.clock.sleep(settings.resume_grace_s)
    await _end_silent(router, own, began_us // 1000)
    await router.clock.sleep(settings.session_idle_s)
    await _end_silent(router, foreign, began_us // 1000)


def _waiting(router: SessionRouter, started: Session, latest: Session) -> Waiting:
    summary = summary_of(started, latest.turn)
    marks = Marks(session=latest.seq + 1, turn=latest.turn)
    return Waiting(router, Journal(router, started, marks), summary)


async def _end_silent(router: SessionRouter, waiting: list[Waiting], since_ms: int) -> None:
    """Ends those that nobody has taken up and of which nothing was heard since then."""
    left = {one.summary.session_id: one for one in waiting if not one.over}
    if not left:
        return
    found = await router.histories.open_sessions(router.partitions, min(_since_us(left)))
    open_still = {started.session_id for started, _ in found} & left.keys()
    alive = await router.histories.active_since(open_still, since_ms, _SIGNS)
    for session_id, one in left.items():
        if session_id in open_still - alive:
            one.end("connection_lost")
        else:
            await one.release()


def _since_us(waiting: dict[str, Waiting]) -> list[int]:
    return [one.summary.started_at - 5_000_000 for one in waiting.values()]

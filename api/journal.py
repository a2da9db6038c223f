"""What a gateway writes of one session: the caller's audio, controls, the session's own life; ids and numbers.

A frame's id comes from its first sample, so a frame that is sent twice, to whichever gateway, is one event.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from api.dialects.dialect import Start
from api.history import Marks
from api.session_router import SessionRouter
from processors.stage import event_id
from schemas.event import Event
from schemas.events import AudioFrame, Control, ControlKind, Session, SessionKind
from streams.client import LogError, Position

UNACKNOWLEDGED_MAX = 250
LOG_TIMEOUT_S = 5.0


def opening(
    gateway: SessionRouter, channel: str, start: Start, tenant: str, agent_id: str, session_id: str = ""
) -> Session:
    """The first event of a new session."""
    session_id = session_id or gateway.mint()
    return Session(
        event_id=event_id(session_id, "session-started"),
        session_id=session_id,
        tenant_id=tenant,
        agent_id=agent_id,
        turn=0,
        seq=0,
        occurred_at=gateway.clock.now_us(),
        kind=SessionKind.STARTED,
        channel=channel,
        caller=start.caller,
        language=gateway.agents[agent_id].languages[0],
        context=dict(start.context),
        gateway=gateway.name,
    )


class Journal:
    """Writes a session's events. `failed`, set by who has the journal, hears of one that the log does not take."""

    def __init__(self, gateway: SessionRouter, started: Session, marks: Marks | None = None) -> None:
        self.started = started
        self.marks = marks or Marks(session=1)
        self.unacknowledged = 0
        self.acknowledged_samples = self.marks.sample_index
        self._gateway = gateway
        self.failed: Callable[[BaseException], None] = lambda error: None
        self._frame_ends: deque[int] = deque()
        self._settled: asyncio.Event | None = None

    async def begin(self) -> None:
        """Writes the session's first event; raises LogError when the log does not take it in time."""
        await self._surely(self.started)

    async def claim(self, claim_id: str) -> None:
        """Says in the log that this gateway has the caller now; raises LogError."""
        await self._surely(self._session(f"resumed-{claim_id}", SessionKind.UPDATED, reason="resumed"))

    def claimed_by(self, claim_id: str) -> str:
        """The id of the event that `claim` writes."""
        return event_id(self.started.session_id, f"session-resumed-{claim_id}")

    def lost(self, reason: str, name: str) -> None:
        """Says that the caller is away: `connection_lost`, or `going_away` where the gateway itself leaves."""
        self._write(self._session(f"away-{name}", SessionKind.UPDATED, reason=reason))

    def ended(self, reason: str) -> int:
        """Writes the session's last event; returns the length of the call in milliseconds."""
        duration_ms = max(0, self._gateway.clock.now_us() - self.started.occurred_at) // 1000
        self._write(self._session("ended", SessionKind.ENDED, reason=reason, duration_ms=duration_ms))
        return duration_ms

    def frame(self, pcm: bytes) -> None:
        """Writes a frame of the caller's audio; beyond UNACKNOWLEDGED_MAX it is dropped, and its time kept."""
        marks = self.marks
        sample_index = marks.sample_index
        marks.sample_index += len(pcm) // 2
        if self.unacknowledged >= UNACKNOWLEDGED_MAX:
            self._gateway.metrics.dropped.labels("incoming", "drop_newest").inc()
            return
        started = self.started
        now_us = self._gateway.clock.now_us()
        frame = AudioFrame(
            event_id=event_id(started.session_id, f"audio-{sample_index}"),
            session_id=started.session_id,
            tenant_id=started.tenant_id,
            agent_id=started.agent_id,
            turn=marks.turn,
            seq=marks.frame,
            occurred_at=now_us,
            pcm=pcm,
            sample_index=sample_index,
            captured_at=now_us,
        )
        marks.frame += 1
        self._gateway.metrics.frames_in.inc()
        self._frame_ends.append(marks.sample_index)
        self.unacknowledged += 1
        self._gateway.producer.publish(frame).add_done_callback(self._frame_acknowledged)

    def control(self, name: str, kind: ControlKind, **fields: Any) -> str:
        """Writes a control event; `name`, unique among them, makes its id, which is returned."""
        event = self._event(Control, f"control-{name}", self.marks.control, kind=kind, **fields)
        self.marks.control += 1
        self._write(event)
        return str(event.event_id)

    async def settled(self) -> None:
        """Returns when the log has everything, or does not take it."""
        if self.unacknowledged:
            if self._settled is None or self._settled.is_set():
                self._settled = asyncio.Event()
            await self._settled.wait()

    def _session(self, name: str, kind: SessionKind, **fields: Any) -> Session:
        started = self.started
        event: Session = self._event(
            Session,
            f"session-{name}",
            self.marks.session,
            kind=kind,
            channel=started.channel,
            caller=started.caller,
            language=started.language,
            context=started.context,
            gateway=self._gateway.name,
            **fields,
        )
        self.marks.session += 1
        return event

    def _event(self, event_class: type[Event], name: str, seq: int, **fields: Any) -> Any:
        started = self.started
        envelope: dict[str, Any] = {
            "event_id": event_id(started.session_id, name),
            "session_id": started.session_id,
            "tenant_id": started.tenant_id,
            "agent_id": started.agent_id,
            "turn": self.marks.turn,
            "seq": seq,
            "occurred_at": self._gateway.clock.now_us(),
        }
        return event_class(**{**envelope, **fields})

    async def _surely(self, event: Event) -> None:
        future = self._write(event)
        try:
            await asyncio.wait_for(asyncio.shield(future), LOG_TIMEOUT_S)
        except (LogError, TimeoutError) as error:
            raise LogError("the log does not take the session's events") from error

    def _write(self, event: Event) -> asyncio.Future[Position]:
        self.unacknowledged += 1
        future = self._gateway.producer.publish(event)
        future.add_done_callback(self._acknowledged)
        return future

    def _frame_acknowledged(self, future: asyncio.Future[Position]) -> None:
        # The log acknowledges a session's frames in the order in which they were written.
        end = self._frame_ends.popleft()
        if not future.cancelled() and future.exception() is None:
            self.acknowledged_samples = end
        self._acknowledged(future)

    def _acknowledged(self, future: asyncio.Future[Position]) -> None:
        self.unacknowledged -= 1
        if not self.unacknowledged and self._settled is not None:
            self._settled.set()
        if not future.cancelled() and (error := future.exception()) is not None:
            self._gateway.metrics.dropped.labels("incoming", "log_unavailable").inc()
            self.failed(error)

"""A call: socket frames become events of the log, events of the log become socket frames. The same for all dialects."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from starlette.websockets import WebSocket

from api.admission import Refusal
from api.audio import BYTES_PER_MS, Frames
from api.dialects.dialect import Audio, Bad, Command, Dialect, Dtmf, HangUp, Playout, Start, Started
from api.limits import Bucket
from api.line import Line
from api.playback import Act, Cut, Effect, Heard, Play, Playback, Tell
from api.session_router import Repeats, SessionRouter, Summary
from processors.stage import event_id
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Session,
    SessionKind,
    SpeechChunk,
    Transcript,
    TranscriptKind,
)
from streams.client import LogError, Position

log = structlog.get_logger(__name__)

UNACKNOWLEDGED_MAX = 250
AHEAD_MS_MAX = 5000
START_TIMEOUT_S = 30.0
LOG_TIMEOUT_S = 5.0
FLOODS_MAX = 2000
_FRAME_BYTES_MIN = 20 * BYTES_PER_MS

Authorise = Callable[[Start], bool]


class Call:
    """A session that lives in this gateway, from its first event to its last."""

    def __init__(
        self,
        router: SessionRouter,
        dialect: Dialect,
        line: Line,
        start: Start,
        agent_id: str,
        on_end: Callable[[], None],
    ) -> None:
        self._router = router
        self._on_end = on_end
        self._dialect = dialect
        self._line = line
        self._start = start
        self._clock = router.clock
        settings = router.settings.api
        self.summary = Summary(
            router.mint(), agent_id, dialect.channel, started_at=self._clock.now_us(), call_id=start.call_id
        )
        self._started_s = self._active_s = self._clock.monotonic_s()
        self._playback = Playback(settings.barge_in_ms)
        self._frames = Frames(settings.frame_ms)
        self._repeats = Repeats()
        # What a stage answers before the log's acknowledgement is here waits until the client is told of the start.
        self._early: list[Event] | None = []
        self._seqs = {"session": 0, "control": 0}
        self._frame_count = 0
        self._sample_count = 0
        self._unacknowledged = 0
        self._answered: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self._closed = asyncio.Event()
        self.close_code = 1000

    # From the socket.

    async def begin(self) -> None:
        """Writes the session's start and tells the client; raises LogError when the log does not take it."""
        agent = self._router.agents[self.summary.agent]
        started = self._event(
            Session,
            "started",
            kind=SessionKind.STARTED,
            channel=self.summary.channel,
            caller=self._start.caller,
            language=agent.languages[0],
            context=dict(self._start.context),
        )
        self._router.add(self)
        try:
            await asyncio.wait_for(asyncio.shield(self._router.producer.publish(started)), LOG_TIMEOUT_S)
        except (LogError, TimeoutError) as error:
            self.end("failed", 1011)
            raise LogError("the log does not take the call's first event") from error
        self._line.send(
            self._dialect.started(Started(self.summary.session_id, self.summary.agent, self._router.resume_token()))
        )
        early, self._early = self._early or [], None
        for event in early:
            self.deliver(event)
        if not self.ended.is_set():
            self._watch = asyncio.create_task(self._watch_limits())
        log.info("call started", session_id=self.summary.session_id, agent=self.summary.agent)

    def audio(self, pcm: bytes) -> float:
        """Takes a piece of the caller's audio; returns the seconds by which the client is too fast."""
        for frame in self._frames.add(pcm):
            self._write_frame(frame)
        ahead_ms = self._sample_count / 16 - (self._clock.monotonic_s() - self._started_s) * 1000
        return max(0.0, ahead_ms - AHEAD_MS_MAX) / 1000

    def dtmf(self, digit: str) -> None:
        """A key was pressed."""
        number = self._seqs["control"]
        self._control(f"dtmf-{number}", ControlKind.DTMF, digit=digit)

    def playout(self, heard: Playout) -> None:
        """The client tells what has been heard."""
        self._perform(self._playback.playout(heard.turn, heard.heard_ms, self._now_ms()))

    def end(self, reason: str, close_code: int = 1000) -> None:
        """See `LiveCall`."""
        if self.ended.is_set():
            return
        rest = self._frames.flush()
        if rest:
            self._write_frame(rest.ljust(_FRAME_BYTES_MIN, b"\0"))
        summary = self.summary
        summary.reason, summary.ended_at, summary.turn = reason, self._clock.now_us(), self._playback.turn
        summary.duration_ms = round((self._clock.monotonic_s() - self._started_s) * 1000)
        ended = {"channel": summary.channel, "reason": reason, "duration_ms": summary.duration_ms}
        self._write(self._event(Session, "ended", kind=SessionKind.ENDED, **ended))
        self.close_code = close_code
        self._line.send(self._dialect.ended(reason))
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self.ended.set()
        self._router.remove(self)
        self._on_end()
        log.info("call ended", session_id=summary.session_id, reason=reason, duration_ms=summary.duration_ms)

    def finished(self) -> None:
        """The socket is closed."""
        self._closed.set()

    async def closed(self) -> None:
        """See `LiveCall`."""
        await self._closed.wait()

    # From the log.

    def deliver(self, event: Event) -> None:
        """See `LiveCall`."""
        if self._early is not None:
            self._early.append(event)
            return
        if self.ended.is_set() or not self._repeats.add(event.event_id):
            return
        if isinstance(event, Control):
            self._controlled(event)
            return
        if isinstance(event, Transcript):
            self._active_s = self._clock.monotonic_s()
        self._perform(self._playback.event(event, self._now_ms()))
        self.summary.turn = self._playback.turn

    def _controlled(self, event: Control) -> None:
        """What somebody else wants of this call; what it wrote itself is among the repeats."""
        if event.kind is ControlKind.HANG_UP:
            self.end("hung_up")
        elif event.kind is ControlKind.TRANSFER:
            self._transfer(event.target)
        elif event.kind is ControlKind.BARGE_IN:
            self._perform(self._playback.interrupt(event.turn, event, self._now_ms()))

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Play):
                self._play(effect.chunk)
            elif isinstance(effect, Tell):
                self._tell(effect.event)
            elif isinstance(effect, Cut):
                self._cut(effect)
            elif isinstance(effect, Heard):
                self._heard(effect)
            else:
                self._act(effect)
            if self.ended.is_set():
                return
        if self._line.stuck:
            log.warning("client does not read", session_id=self.summary.session_id)
            self.end("failed", 1008)
            return
        self._set_timer()

    def _play(self, chunk: SpeechChunk) -> None:
        self._line.send(self._dialect.audio(chunk), turn=chunk.turn)
        self._router.metrics.audio_out.inc()
        if chunk.turn not in self._answered:
            self._answered.add(chunk.turn)
            if chunk.speech_ended_at is not None:
                waited_s = (self._clock.now_us() - chunk.speech_ended_at) / 1_000_000
                self._router.metrics.voice_to_voice.observe(waited_s)
                self._router.door.replied(waited_s)

    def _tell(self, event: Event) -> None:
        partial = isinstance(event, Transcript) and event.kind is TranscriptKind.PARTIAL
        self._line.send(self._dialect.event(event), sheddable=partial)

    def _cut(self, cut: Cut) -> None:
        self._line.drop(cut.turn)
        self._line.send(self._dialect.clear(cut.turn, cut.heard_ms))
        self._router.metrics.barge_ins.inc()
        if isinstance(cut.cause, Control):
            return
        self._control(
            f"barge-in-{cut.turn}",
            ControlKind.BARGE_IN,
            turn=cut.turn,
            sentence=cut.sentence,
            heard_ms=cut.heard_ms,
            causation_id=cut.cause.event_id,
        )

    def _heard(self, heard: Heard) -> None:
        self._active_s = self._clock.monotonic_s()
        self._control(
            f"playout-{heard.turn}-{heard.sentence}-{heard.end_of_turn}",
            ControlKind.PLAYOUT,
            turn=heard.turn,
            sentence=heard.sentence,
            heard_ms=heard.heard_ms,
            reason="end_of_turn" if heard.end_of_turn else "",
        )

    def _act(self, act: Act) -> None:
        if act.action == "transfer":
            self._control("transfer", ControlKind.TRANSFER, turn=act.turn, target=act.target, reason="agent")
            self._transfer(act.target)
        elif act.action == "hang_up":
            self._control("hang-up", ControlKind.HANG_UP, turn=act.turn, reason="agent")
            self.end("completed")
        else:
            log.warning("action not known", session_id=self.summary.session_id, action=act.action)

    def _transfer(self, target: str) -> None:
        self.summary.transfer_target = target
        self._line.send(self._dialect.transfer(target))
        self.end("transferred")

    # Time.

    def _now_ms(self) -> float:
        return self._clock.monotonic_s() * 1000

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ms = self._playback.due()
        if due_ms is not None:
            delay_s = max(0.001, (due_ms - self._now_ms()) / 1000)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        if not self.ended.is_set():
            self._perform(self._playback.tick(self._now_ms()))

    async def _watch_limits(self) -> None:
        """Ends the call after silence from both sides, and at its longest."""
        settings = self._router.settings.api
        while not self.ended.is_set():
            now_s = self._clock.monotonic_s()
            if self._playback.playing(now_s * 1000):
                self._active_s = now_s
            if now_s >= self._started_s + settings.session_max_s:
                self.end("too_long")
            elif now_s >= self._active_s + settings.session_idle_s:
                self.end("idle")
            next_s = min(self._started_s + settings.session_max_s, self._active_s + settings.session_idle_s)
            await self._clock.sleep(max(0.01, next_s - now_s))

    # To the log.

    def _write_frame(self, pcm: bytes) -> None:
        if self._unacknowledged >= UNACKNOWLEDGED_MAX:
            self._router.metrics.dropped.labels("incoming", "drop_newest").inc()
            self._sample_count += len(pcm) // 2
            return
        now_us = self._clock.now_us()
        session_id = self.summary.session_id
        frame = AudioFrame(
            event_id=event_id(session_id, f"audio-{self._frame_count}"),
            session_id=session_id,
            tenant_id=self._router.settings.tenant,
            agent_id=self.summary.agent,
            turn=self._playback.turn,
            seq=self._frame_count,
            occurred_at=now_us,
            pcm=pcm,
            sample_index=self._sample_count,
            captured_at=now_us,
        )
        self._frame_count += 1
        self._sample_count += len(pcm) // 2
        self._router.metrics.frames_in.inc()
        self._write(frame)

    def _control(self, name: str, kind: ControlKind, **fields: Any) -> None:
        self._write(self._event(Control, name, kind=kind, **fields))

    def _event(self, event_class: type[Event], name: str, **fields: Any) -> Any:
        """An event of this session; `name` is unique among those of its class and makes the id deterministic."""
        seq = self._seqs[event_class.NAME]
        self._seqs[event_class.NAME] += 1
        session_id = self.summary.session_id
        envelope: dict[str, Any] = {
            "event_id": event_id(session_id, f"{event_class.NAME}-{name}"),
            "session_id": session_id,
            "tenant_id": self._router.settings.tenant,
            "agent_id": self.summary.agent,
            "turn": self._playback.turn,
            "seq": seq,
            "occurred_at": self._clock.now_us(),
        }
        return event_class(**{**envelope, **fields})

    def _write(self, event: Event) -> None:
        if isinstance(event, Control):
            self._repeats.add(event.event_id)
        self._unacknowledged += 1
        self._router.producer.publish(event).add_done_callback(self._acknowledged)

    def _acknowledged(self, future: asyncio.Future[Position]) -> None:
        self._unacknowledged -= 1
        if not future.cancelled() and (error := future.exception()) is not None:
            self._router.metrics.dropped.labels("incoming", "log_unavailable").inc()
            log.error("event not written", session_id=self.summary.session_id, error=str(error))
            self.end("failed", 1011)

    def depths(self) -> tuple[int, int]:
        """See `LiveCall`."""
        return self._unacknowledged, self._line.waiting_bytes


class Connection:
    """A socket and, once it has started one, its call."""

    def __init__(
        self, websocket: WebSocket, dialect: Dialect, router: SessionRouter, authorise: Authorise | None = None
    ) -> None:
        self._websocket = websocket
        self._dialect = dialect
        self._router = router
        self._authorise = authorise
        self._line = Line(websocket, router.metrics)
        self._call: Call | None = None
        self._over = asyncio.Event()
        self._close = (1000, "")
        now_s = router.clock.monotonic_s()
        self._texts = Bucket(dialect.text_rate_per_s, 2 * dialect.text_rate_per_s, now_s)
        self._errors = Bucket(5, 20, now_s)
        self._floods = 0

    async def run(self) -> None:
        """Serves the socket until the call is over, and closes it."""
        offered = self._websocket.scope.get("subprotocols", [])
        await self._websocket.accept(subprotocol="trunkline" if "trunkline" in offered else None)
        self._line.start()
        try:
            self._router.connected(1)
            if crowded := self._router.door.crowded():
                self._refuse(crowded)
            else:
                await self._serve()
        finally:
            await self._finish()
            self._router.connected(-1)

    async def _serve(self) -> None:
        receiving = asyncio.create_task(self._receive())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({receiving, over}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if self._call is None and not receiving.done() and not over.done():
                self._error(Bad("start_timeout", "No call was started.", f"Send start within {START_TIMEOUT_S:.0f} s."))
                self._close = (1008, "start_timeout")
                return
            await asyncio.wait({receiving, over}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
        finally:
            receiving.cancel()
            over.cancel()

    async def _finish(self) -> None:
        if self._call is not None:
            self._call.end("failed", 1011)
            self._close = (self._call.close_code, self._call.summary.reason)
        await self._line.close(*self._close)
        if self._call is not None:
            self._call.finished()

    def _refuse(self, refusal: Refusal) -> None:
        self._router.door.refused(refusal)
        self._error(Bad(refusal.code, refusal.message, refusal.hint, refusal.retry_after_s))
        self._close = (1013, refusal.code)

    async def _receive(self) -> None:
        """Handles messages in order; returns when the socket is closed or the caller hangs up."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                if self._call is not None:
                    self._call.end("abandoned")
                return
            for command in self._commands(message):
                await self._handle(command)
            if self._over.is_set():
                return

    def _commands(self, message: Any) -> Iterable[Command]:
        data = message.get("bytes")
        if data is not None:
            return self._dialect.receive_bytes(data)
        if self._texts.take(self._router.clock.monotonic_s()):
            return self._dialect.receive_text(message.get("text") or "")
        self._floods += 1
        self._router.metrics.dropped.labels("text", "rate_limit").inc()
        if self._floods > FLOODS_MAX:
            self._stop(1008, "rate_limited")
        rate = self._dialect.text_rate_per_s
        return (Bad("rate_limited", "Too many text messages; this one was dropped.", f"Send at most {rate} a second."),)

    async def _handle(self, command: Command) -> None:
        if isinstance(command, Bad):
            self._error(command)
        elif isinstance(command, Start):
            await self._started(command)
        elif self._call is None:
            self._not_started(command)
        elif isinstance(command, Audio):
            ahead_s = self._call.audio(command.pcm)
            if ahead_s:
                # A client that sends faster than people speak is slowed down to their pace by its own socket.
                self._router.metrics.paused_seconds.inc(ahead_s)
                await self._router.clock.sleep(ahead_s)
        elif isinstance(command, Playout):
            self._call.playout(command)
        elif isinstance(command, Dtmf):
            self._call.dtmf(command.digit)
        else:
            self._call.end("hung_up")

    def _not_started(self, command: Command) -> None:
        if isinstance(command, HangUp):
            self._stop(1000, "hung_up")
        else:
            self._error(Bad("not_started", "No call has been started.", "Send a start message first."))

    async def _started(self, start: Start) -> None:
        if self._call is not None:
            self._error(Bad("already_started", "The call has been started.", "Open another socket for another call."))
            return
        agents = self._router.agents
        agent_id = start.agent or next(iter(agents))
        if agent_id not in agents:
            self._error(Bad("unknown_agent", "There is no such agent.", f"agent is one of {', '.join(agents)}."))
            return
        if self._authorise is not None and not self._authorise(start):
            self._error(Bad("unauthorized", "The call is not authorised.", "Start it through /v1/twilio/voice."))
            self._stop(1008, "unauthorized")
            return
        if refusal := self._router.door.refusal(start.call_id):
            self._refuse(refusal)
            self._over.set()
            return
        self._router.door.taken()
        self._call = Call(self._router, self._dialect, self._line, start, agent_id, self._over.set)
        try:
            await self._call.begin()
        except LogError:
            self._error(Bad("log_unavailable", "The call could not be recorded.", "Try again in a few seconds."))

    def _stop(self, code: int, reason: str) -> None:
        self._close = (code, reason)
        self._over.set()

    def _error(self, bad: Bad) -> None:
        self._router.metrics.errors.labels(self._dialect.channel, bad.code).inc()
        if self._errors.take(self._router.clock.monotonic_s()):
            self._line.send(self._dialect.error(bad.code, bad.message, bad.hint, bad.retry_after_s))

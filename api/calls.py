"""A call: socket frames become events of the log, events of the log become socket frames. The same for all dialects."""

import asyncio
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from api.audio import BYTES_PER_MS, QUIET_MARGIN_MS, FrameLengths, Frames
from api.beat import Patience, Wait
from api.dialects.dialect import Dialect, Playout, Resumed, Start, Started, resumed_elsewhere
from api.journal import UNACKNOWLEDGED_MAX, Journal, opening
from api.line import Line
from api.playback import Act, Cut, Effect, Heard, Hush, Play, Playback, Tell
from api.replay import Replayed
from api.session_router import Repeats, SessionRouter, Summary
from api.waiting import GOING_AWAY, RESUMED_ELSEWHERE, Waiting
from processors.agents import Pauses
from schemas.event import Event
from schemas.events import Control, ControlKind, Session, SessionKind, SpeechChunk, Transcript, TranscriptKind
from streams.client import LogError
from streams.settings import ApiSettings

log = structlog.get_logger(__name__)

AHEAD_MS_MAX = 5000
ACKNOWLEDGE_SAMPLES = 16_000
# A client that has been talking and from which nothing comes for so long has perhaps lost its network. What it was
# sent is not taken for heard meanwhile, nor acted upon; the rest is sent, since it may be one that sends no silence.
QUIET_S = 2.0
# Telephones send silence; a client may send nothing instead. Said in the log, so that stt need not tell it from a log
# or a gateway that is away.
SILENT_S = 1.0
# What waits for more to be a long frame is written so soon when none comes: well before SILENT_S is told.
REST_S = 0.5
# All calls look for that at the same times: by itself each would wake the gateway a few times a second.
LOOKS_EVERY_S = 0.25
# From the onset of a sound over the agent, after quiet: whether it is speech is certain after 128 ms of it, but it may
# begin softly. On a line that is never quiet nothing is urgent.
URGENT_S = 0.4
# That the log has not confirmed: half a second at least, where it takes some 10 ms.
BEHIND_FRAMES = 25
# stt takes a pause to begin so much after the gateway, which does not listen for a voice, until its finals tell: those
# that come in a pause, and mean no other. A pause that decides is measured closely for so long.
PAUSES_APART_MS = 60.0
PAUSES_APART_MS_MAX = 250.0
PAUSE_MS_MIN = 100.0
# Who is heard again after so much is perhaps going on after the end of a turn; on a line with noise nobody ever pauses.
GOES_ON_AFTER_MS = 200.0
DECIDES_FOR_MS = 100.0
BEGINS_FOR_MS = 40.0  # the same where only work ahead begins
WRITTEN_MAX = 64  # frames of which it is known when they were written
SELDOM_MS = 60  # of audio that is read at once, as where there are many calls
_LONGER = 2.5  # times a frame's usual length, amid speech: three beats need not have brought all of their last piece
_FRAME_BYTES_MIN = 20 * BYTES_PER_MS


class Call:
    """A session whose caller is connected to this gateway; ends, or lets go of it when the connection does.

    Made for a new session, and again each time that its caller comes back: what it needs to know is in the log.
    """

    def __init__(
        self,
        router: SessionRouter,
        dialect: Dialect,
        line: Line,
        journal: Journal,
        summary: Summary,
        on_end: Callable[[], None],
        playback: Playback | None = None,
    ) -> None:
        self._router = router
        self._on_end = on_end
        self._dialect = dialect
        self._line = line
        self.journal = journal
        journal.failed = self._not_written
        self._clock = router.clock
        settings = router.settings.api
        self.summary = summary
        now_s = self._clock.monotonic_s()
        self._started_s = now_s - max(0, self._clock.now_us() - summary.started_at) / 1_000_000
        self._spoke_s = self._heard_s = self._active_s = now_s
        self._playback = playback or Playback(settings.barge_in_ms, settings.lead_ms)
        agent = router.agents.get(summary.agent)
        pauses = agent.pauses if agent else Pauses()
        self._frames = caller_frames(settings, pauses, dialect.bytes_per_ms)
        self._turn_ms = pauses.turn_ms
        # Moments of a pause that are not to be missed, and how long it is measured closely from each on.
        self._decisive_ms = (
            (pauses.hesitation_ms, BEGINS_FOR_MS),
            (pauses.turn_ms, DECIDES_FOR_MS),
            (pauses.completion_ms, DECIDES_FOR_MS),
        )
        self._pauses_apart_ms = PAUSES_APART_MS
        self._read_bytes = 0
        self._written: deque[tuple[float, float]] = deque(maxlen=WRITTEN_MAX)
        self._writing: asyncio.Handle | None = None
        self._loud = False
        self._urgent_until_s = 0.0
        self._repeats = Repeats()
        # What a stage answers before the log's acknowledgement is here waits until the client is told of the start.
        self._early: list[Event] | None = []
        self._begins_at = self._told = journal.marks.sample_index
        # The event with which this gateway took the session up, until it is read back: what others wrote before it
        # is older.
        self._claim = ""
        self._answered_turn = -1  # the newest whose reply has begun
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()
        self._closed = asyncio.Event()
        self.close_code = 1000
        self.close_reason = ""

    # From the socket.

    async def begin(self) -> None:
        """Writes the session's start and tells the client; raises LogError when the log does not take it."""
        self._router.add(self)
        try:
            await self.journal.begin()
        except LogError:
            self.end("failed", 1011)
            raise
        started = Started(self.summary.session_id, self.summary.agent, self._token())
        self._line.send(self._dialect.started(started))
        self._go_on()
        log.info("call started", session_id=self.summary.session_id, agent=self.summary.agent)

    async def resume(self, replayed: Replayed, early: Iterable[Event], known_ids: Iterable[str]) -> None:
        """Takes the session up where its log ends; `early` came meanwhile. Raises LogError, and then it still waits."""
        for event_id in known_ids:
            self._repeats.add(event_id)
        self._early = list(early)
        claim_id = uuid.uuid4().hex
        self._claim = self.journal.claimed_by(claim_id)
        self._router.put(self)
        try:
            await self.journal.claim(claim_id)
        except LogError:
            self.lost()
            raise
        if self.ended.is_set():
            return
        position = self.journal.marks.sample_index
        resumed = Resumed(self.summary.session_id, self.summary.agent, self._token(), position)
        self._line.send(self._dialect.resumed(resumed))
        # Replies to what was said before the break are late by the break.
        self._answered_turn = max(self.summary.turn, self._playback.turn, *(event.turn for event in self._early))
        for turn, heard_ms in sorted(replayed.cut.items()):
            self._line.send(self._dialect.clear(turn, heard_ms))
        for event in replayed.missed:
            self._tell(event)
        self._perform(replayed.effects)
        if not self.ended.is_set():
            self._perform(self._playback.tick(self._now_ms()))
        self.journal.marks.turn = self.summary.turn = max(self.summary.turn, self._playback.turn)
        self._go_on()
        self._router.metrics.resumed.labels(self.summary.channel).inc()
        log.info("call resumed", session_id=self.summary.session_id, sample_index=position)

    def audio(self, *pieces: bytes) -> float:
        """Takes the next pieces of the caller's audio; returns the seconds by which the client is too fast."""
        if self.ended.is_set():
            return 0.0
        rises = heard = False
        paused_ms, read_bytes = self._frames.pause_ms, sum(map(len, pieces))
        for data in pieces:
            loud = self._frames.add(data, self._dialect.peak(data))
            rises |= loud and not self._loud
            heard |= loud
            self._loud = loud
        self._read_bytes += read_bytes
        if self._writing is None:
            # What else has been read of this socket by now belongs to the same frame.
            self._writing = asyncio.get_running_loop().call_soon(self._write_frames)
        self._spoke()
        if self.ended.is_set():
            return 0.0
        self._heard_s = self._spoke_s
        if rises and self._playback.playing(self._now_ms()):
            self._urgent_until_s = self._spoke_s + URGENT_S
        if heard and self._playback.hushed:
            self._playback.loud(self._now_ms())
        if self._frames.pause_ms * self._dialect.bytes_per_ms < read_bytes:
            self._playback.sounds(paused_ms >= GOES_ON_AFTER_MS, self._now_ms())
        if self._silence is None:
            self._look_in(REST_S)
        acknowledged = self.journal.acknowledged_samples
        if acknowledged >= self._told + ACKNOWLEDGE_SAMPLES:
            self._told = acknowledged
            self._line.send(self._dialect.acknowledged(acknowledged))
        ahead_ms = self._sent_ms - (self._spoke_s - self._started_s) * 1000
        return max(0.0, ahead_ms - AHEAD_MS_MAX) / 1000

    @property
    def _sent_ms(self) -> float:
        """How much audio the client has sent."""
        return self.journal.marks.sample_index / 16 + self._frames.waiting_ms

    def _write_rest(self) -> None:
        """Writes what waits for more, since no more comes."""
        self._write_frames()
        if rest := self._frames.take_rest():
            self.journal.frame(self._dialect.pcm(rest))

    def _write_frames(self) -> None:
        """Writes the frames that are due."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if not self.ended.is_set():
            spoken_over, behind = self._playback.playing(self._now_ms()), self.journal.unacknowledged > BEHIND_FRAMES
            measured = not spoken_over or self._playback.listening
            seldom = self._read_bytes >= SELDOM_MS * self._dialect.bytes_per_ms
            for frame in self._frames.take_due(spoken_over, measured, behind, seldom):
                self.journal.frame(self._dialect.pcm(frame))
                self._written.append((self.journal.marks.sample_index / 16, self._clock.monotonic_s()))
        self._read_bytes = 0

    def may_wait(self) -> Patience:
        """How long what the caller says next may wait to be read."""
        now_s = self._clock.monotonic_s()
        if self._router.lateness.lasts(now_s):
            return Patience(Wait.LONG)
        if now_s < self._urgent_until_s:
            return Patience(Wait.NONE)
        if self._playback.playing(now_s * 1000) and not self._playback.hushed:
            return Patience(Wait.MEDIUM)
        if self._frames.in_silence:
            return Patience(Wait.LONG)
        heard_ms = self._frames.pause_ms - self._pauses_apart_ms
        if self._frames.in_speech:
            # What was hushed goes on where nothing loud is read for a moment.
            return Patience(Wait.MEDIUM if self._playback.hushed else Wait.LONG, self._turn_ms - heard_ms)
        left_ms = next((ms - heard_ms for ms, for_ms in self._decisive_ms if heard_ms < ms + for_ms), math.inf)
        if left_ms <= 0:
            return Patience(Wait.SHORT)
        # From the turn pause on a turn may end at any time.
        return Patience(Wait.LONG if heard_ms < self._turn_ms else Wait.MEDIUM, left_ms)

    def _hears(self, transcript: Transcript) -> None:
        """Notes how stt hears what this gateway has sent."""
        self._active_s = self._clock.monotonic_s()
        if transcript.kind is TranscriptKind.SPEECH_STARTED:
            ends = (at_s for end_ms, at_s in self._written if end_ms > transcript.audio_start_ms)
            self._router.lateness.heard((self._active_s - next(ends, self._active_s)) * 1000, self._active_s)
        elif transcript.kind is TranscriptKind.FINAL and self._frames.pause_ms >= PAUSE_MS_MIN:
            apart_ms = transcript.audio_end_ms - (self._sent_ms - self._frames.pause_ms)
            if abs(apart_ms) <= PAUSES_APART_MS_MAX:
                self._pauses_apart_ms += (apart_ms - self._pauses_apart_ms) / 2

    @property
    def crowded(self) -> bool:
        """Whether the log is behind: audio that comes now may have to be dropped later."""
        return self.journal.unacknowledged > UNACKNOWLEDGED_MAX // 2

    def dtmf(self, digit: str, press_id: str = "") -> None:
        """A key was pressed."""
        if self.ended.is_set():
            return
        marks = self.journal.marks
        self._control(f"dtmf-{press_id or f'{marks.sample_index}-{marks.control}'}", ControlKind.DTMF, digit=digit)

    def playout(self, heard: Playout) -> None:
        """The client tells what has been heard."""
        if not self.ended.is_set():
            self._spoke()
        if not self.ended.is_set():
            self._perform(self._playback.playout(heard.turn, heard.heard_ms, self._now_ms()))

    def end(self, reason: str, close_code: int = 1000) -> None:
        """See `LiveCall`."""
        if self.ended.is_set():
            return
        self._write_frames()
        rest = self._frames.flush()
        if rest:
            self.journal.frame(self._dialect.pcm(rest).ljust(_FRAME_BYTES_MIN, b"\0"))
        if reason != "failed":  # which may be what would tell it
            self._tell_rest(gone=reason == "connection_lost")
        summary = self.summary
        summary.reason, summary.ended_at, summary.turn = reason, self._clock.now_us(), self._playback.turn
        summary.duration_ms = self.journal.ended(reason)
        self._line.send(self._dialect.ended(reason))
        self._let_go(close_code, reason)
        self._router.remove(self)
        log.info("call ended", session_id=summary.session_id, reason=reason, duration_ms=summary.duration_ms)

    def lost(self) -> None:
        """The connection broke: the session waits for its caller, for as long as the settings say."""
        if self.ended.is_set():
            return
        if not self._router.settings.api.resume_grace_s:
            self.end("connection_lost")
            return
        self._write_rest()
        self.journal.lost("connection_lost", uuid.uuid4().hex)
        self._let_go(1011, "connection_lost")
        waiting = Waiting(self._router, self.journal, self.summary)
        waiting.wait()
        for event in self._early or ():  # came while this gateway was about to take the session up
            waiting.deliver(event)
        log.info("connection lost", session_id=self.summary.session_id)

    def leave(self) -> None:
        """See `LiveCall`."""
        if self.ended.is_set():
            return
        self._write_rest()
        self.journal.lost(GOING_AWAY, uuid.uuid4().hex)
        self._line.send(self._dialect.going_away())
        self._let_go(1012, GOING_AWAY)
        self._router.forget(self)

    async def release(self) -> None:
        """See `LiveCall`."""
        self._superseded()
        await self.journal.settled()

    def finished(self) -> None:
        """The socket is closed."""
        self._closed.set()

    async def closed(self) -> None:
        """See `LiveCall`."""
        await self._closed.wait()

    def depths(self) -> tuple[int, int, int]:
        """See `LiveCall`."""
        return self.journal.unacknowledged, self._line.waiting_bytes, round(self._playback.waiting_ms)

    def _superseded(self) -> None:
        if self.ended.is_set():
            return
        error = resumed_elsewhere()
        self._line.send(self._dialect.error(error.code, error.message, error.hint))
        self._let_go(1008, RESUMED_ELSEWHERE)
        self._router.forget(self)

    def _let_go(self, close_code: int, reason: str) -> None:
        """Nothing more comes of this object; its socket closes."""
        self.close_code, self.close_reason = close_code, reason
        for timer in (self._timer, self._limit, self._silence):
            if timer is not None:
                timer.cancel()
        self.ended.set()
        self._on_end()

    def _token(self) -> str:
        summary = self.summary
        return self._router.resume_token(summary.session_id, summary.tenant, summary.started_at)

    def _go_on(self) -> None:
        early, self._early = self._early or [], None
        for event in early:
            self.deliver(event)
        if not self.ended.is_set():
            self._watch_limits()

    # From the log.

    def deliver(self, event: Event) -> None:
        """See `LiveCall`."""
        if self._early is not None:
            self._early.append(event)
            return
        if self.ended.is_set() or not self._repeats.add(event.event_id):
            return
        self._believe()
        if isinstance(event, Control):
            self._controlled(event)
            return
        if isinstance(event, Session):
            self._session_changed(event)
            return
        if isinstance(event, Transcript):
            self._hears(event)
        overflowed, truncated = self._playback.overflowed, self._playback.truncated
        self._perform(self._playback.event(event, self._now_ms()))
        self._router.metrics.dropped.labels("held", "drop_oldest").inc(self._playback.overflowed - overflowed)
        self._router.metrics.dropped.labels("speech", "drop_newest").inc(self._playback.truncated - truncated)
        self.journal.marks.turn = self.summary.turn = self._playback.turn

    def _controlled(self, event: Control) -> None:
        """What somebody else wants of this call; what it wrote itself is among the repeats."""
        if event.kind is ControlKind.HANG_UP:
            self.end("hung_up")
        elif event.kind is ControlKind.TRANSFER:
            self._transfer(event.target)
        elif event.kind is ControlKind.BARGE_IN:
            self._perform(self._playback.interrupt(event.turn, event, self._now_ms()))

    def _session_changed(self, event: Session) -> None:
        """The latest gateway to take a session up has it; one that was replaced learns it here."""
        if event.event_id == self._claim:
            self._claim = ""
        elif self._claim:
            return
        elif event.kind is SessionKind.ENDED or event.reason == "resumed":
            log.info("session was taken over", session_id=event.session_id, gateway=event.gateway)
            self._superseded()

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Play):
                self._play(effect.chunk)
            elif isinstance(effect, Tell):
                self._tell(effect.event)
            elif isinstance(effect, Hush):
                self._hush(effect)
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
        if chunk.turn > self._answered_turn:
            self._answered_turn = chunk.turn
            if chunk.speech_ended_at is not None:
                waited_s = (self._clock.now_us() - chunk.speech_ended_at) / 1_000_000
                self._router.metrics.voice_to_voice.observe(waited_s)
                self._router.door.replied(waited_s)

    def _tell(self, event: Event) -> None:
        partial = isinstance(event, Transcript) and event.kind is TranscriptKind.PARTIAL
        self._line.send(self._dialect.event(event), sheddable=partial)

    def _hush(self, hush: Hush) -> None:
        self._line.drop(hush.turn)
        self._line.send(self._dialect.clear(hush.turn, hush.heard_ms))
        self._router.metrics.hushes.inc()

    def _cut(self, cut: Cut) -> None:
        self._router.metrics.barge_ins.inc()
        if isinstance(cut.cause, Control):
            return
        self._control(
            f"barge-in-{cut.turn}",
            ControlKind.BARGE_IN,
            turn=cut.turn,
            sentence=cut.sentence,
            heard_ms=cut.heard_ms,
            heard_text=cut.words,
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
            heard_text=heard.words,
            reason="end_of_turn" if heard.end_of_turn else "",
        )

    def _tell_rest(self, gone: bool) -> None:
        """Says in the log what had been heard when the call ends, or when the last came of a client that is gone."""
        if self._line.stuck:
            return
        self._believe()
        at_s = self._spoke_s if gone or not self._playback.believes else self._clock.monotonic_s()
        for heard in self._playback.stop(at_s * 1000):
            self._heard(heard)

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
        if not self._playback.believes:
            grace_over_ms = (self._spoke_s + self._router.settings.api.resume_grace_s) * 1000
            due_ms = grace_over_ms if due_ms is None else min(due_ms, grace_over_ms)
        if due_ms is not None:
            delay_s = max(0.001, (due_ms - self._now_ms()) / 1000)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        if self.ended.is_set():
            return
        self._believe()
        self._perform(self._playback.tick(self._now_ms()))

    def _believe(self) -> None:
        """Takes what was sent for heard in its time, or not, by how long nothing has come of the client."""
        quiet_s = self._clock.monotonic_s() - self._spoke_s
        spoken = self.journal.marks.sample_index - self._begins_at >= ACKNOWLEDGE_SAMPLES
        self._playback.believes = not (spoken and QUIET_S < quiet_s < self._router.settings.api.resume_grace_s)

    def _spoke(self) -> None:
        """The client lives."""
        self._spoke_s = self._clock.monotonic_s()
        if not self._playback.believes:
            self._playback.believes, self._playback.believes_since = True, self._now_ms()
            self._perform(self._playback.tick(self._now_ms()))

    def _listen_for_silence(self) -> None:
        """Writes what waits for more once none comes, and says, once, that the client has stopped sending audio."""
        self._silence = None
        if self.ended.is_set():
            return
        silent_s = self._clock.monotonic_s() - self._heard_s
        if silent_s >= SILENT_S:
            self._control(f"quiet-{self.journal.marks.sample_index}", ControlKind.QUIET)
            return
        if silent_s >= REST_S:
            self._write_rest()
            self._silence = asyncio.get_running_loop().call_later(SILENT_S - silent_s, self._listen_for_silence)
        else:
            self._look_in(REST_S - silent_s)

    def _look_in(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        at_s = math.ceil((loop.time() + delay_s) / LOOKS_EVERY_S) * LOOKS_EVERY_S
        self._silence = loop.call_at(at_s, self._listen_for_silence)

    def _watch_limits(self) -> None:
        """Ends the call after silence from both sides, and at its longest; a timer that looks again when it may be."""
        settings = self._router.settings.api
        now_s = self._clock.monotonic_s()
        if self._playback.playing(now_s * 1000):
            self._active_s = now_s
        if now_s >= self._started_s + settings.session_max_s:
            self.end("too_long")
        elif now_s >= self._active_s + settings.session_idle_s:
            self.end("idle")
        else:
            next_s = min(self._started_s + settings.session_max_s, self._active_s + settings.session_idle_s)
            self._limit = asyncio.get_running_loop().call_later(max(0.01, next_s - now_s), self._watch_limits)

    # To the log.

    def _control(self, name: str, kind: ControlKind, **fields: object) -> None:
        self._repeats.add(self.journal.control(name, kind, **fields))

    def _not_written(self, error: BaseException) -> None:
        log.error("event not written", session_id=self.summary.session_id, error=str(error))
        self.end("failed", 1011)


def caller_frames(settings: ApiSettings, pauses: Pauses, bytes_per_ms: int) -> Frames:
    """How a caller's audio is cut, for a gateway whose beat is `frame_ms`.

    Pieces and beats need not meet in step, so that half of that is enough for a frame.
    """
    speech_ms, quiet_after_ms = round(_LONGER * settings.frame_ms), pauses.completion_ms + QUIET_MARGIN_MS
    lengths = FrameLengths(speech_ms, settings.quiet_frame_ms, quiet_after_ms)
    return Frames(settings.frame_ms // 2, lengths, bytes_per_ms)


def new_call(
    router: SessionRouter,
    dialect: Dialect,
    line: Line,
    start: Start,
    tenant: str,
    agent_id: str,
    on_end: Callable[[], None],
    session_id: str = "",
) -> Call:
    """A call of which nothing is in the log yet: `begin` it. Its session's id is minted, or the one announced."""
    started = opening(router, dialect.channel, start, tenant, agent_id, session_id)
    summary = Summary(
        started.session_id, tenant, agent_id, started.channel, started_at=started.occurred_at, call_id=start.call_id
    )
    return Call(router, dialect, line, Journal(router, started), summary, on_end)

"""The gateway in simulated time, around the real `Playback`, and callers of several turns.

Frames to a caller are events and chunks themselves.
"""

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from api.audio import Frames, peak_of
from api.playback import Cut, Effect, Heard, Hush, Play, Playback, Tell
from processors.stage import event_id
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Intent,
    Response,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.keys import Partition
from tests.simulation.log import Producer, SimulatedLog, Subscription, event_of
from tests.simulation.speech import cough, say, silence
from tests.simulation.world import Process

READ = (Transcript, Intent, Response, SpeechChunk, Control)
FRAME_MS = 100
QUIET_MS = 1200  # longer than any pause that ends a turn
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Cleared:
    """The caller's side empties what it was to play of the turn; it may go on from there."""

    turn: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """The turn was spoken over: nothing follows of it."""

    turn: int


@dataclass(frozen=True, slots=True)
class Over:
    """The call is over."""

    reason: str


class Call:
    """What `api.calls.Call` does with a `Playback`, without sockets, limits and resuming."""

    def __init__(self, gateway: "Gateway", caller: "Caller") -> None:
        self._gateway = gateway
        self._clock = gateway.process
        self._caller = caller
        self._playback = Playback()
        self._frames = Frames(FRAME_MS)
        self._seen: set[str] = set()
        self._sent_s = 0.0
        self._samples = 0
        self._counts = {"audio": 0, "session": 0, "control": 0}
        self._timer: asyncio.TimerHandle | None = None
        self.over = False
        self._write(self._event(Session, "started", kind=SessionKind.STARTED, caller="Ada", channel="simulated"))

    # From the caller.

    def audio(self, pcm: bytes) -> None:
        """The caller's microphone."""
        loud = self._frames.add(pcm, peak_of(pcm))
        if loud and self._playback.hushed:
            self._playback.loud(self._now_ms())
        for frame in self._frames.take_due() if not self.over else ():
            now_us = self._clock.now_us()
            fields = {"pcm": frame, "sample_index": self._samples, "captured_at": now_us}
            self._samples += len(frame) // 2
            self._write(self._event(AudioFrame, str(self._counts["audio"]), count="audio", **fields))

    def press(self, digit: str) -> None:
        """A key of the caller's telephone."""
        if not self.over:
            self._control(f"dtmf-{self._counts['control']}", ControlKind.DTMF, digit=digit)

    def playout(self, turn: int, heard_ms: int) -> None:
        """The caller's side says how much has been played."""
        if not self.over:
            self._perform(self._playback.playout(turn, heard_ms, self._now_ms()))

    def end(self, reason: str) -> None:
        """Hangs up, from either side."""
        if not self.over:
            self._write(self._event(Session, "ended", kind=SessionKind.ENDED, reason=reason))
            self.over = True
            self._send(Over(reason))
            if self._timer is not None:
                self._timer.cancel()

    # From the log.

    def deliver(self, event: Event) -> None:
        """An event of the session, perhaps again."""
        if not self.over and event.event_id not in self._seen:
            self._seen.add(event.event_id)
            self._perform(self._playback.event(event, self._now_ms()) if not isinstance(event, Control) else ())

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Play):
                self._send(effect.chunk)
            elif isinstance(effect, Tell):
                self._send(effect.event)
            elif isinstance(effect, Hush):
                self._send(Cleared(effect.turn, effect.heard_ms))
            elif isinstance(effect, Cut):
                self._send(Spoken(effect.turn))
                fields = {"sentence": effect.sentence, "heard_ms": effect.heard_ms, "heard_text": effect.words}
                self._control(f"barge-in-{effect.turn}", ControlKind.BARGE_IN, turn=effect.turn, **fields)
            elif isinstance(effect, Heard):
                name = f"playout-{effect.turn}-{effect.sentence}-{effect.end_of_turn}"
                fields = {"sentence": effect.sentence, "heard_ms": effect.heard_ms, "heard_text": effect.words}
                self._control(name, ControlKind.PLAYOUT, turn=effect.turn, **fields)
            elif not self.over:
                self._control("hang-up", ControlKind.HANG_UP, turn=effect.turn)
                self.end("completed")
        if self._timer is not None:
            self._timer.cancel()
        due_ms = self._playback.due()
        if due_ms is not None and not self.over:
            delay_s = max(0.001, (due_ms - self._now_ms()) / 1000)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._perform(self._playback.tick(self._now_ms()))

    def _now_ms(self) -> float:
        return self._clock.monotonic_s() * 1000

    # To the log and to the caller.

    def _control(self, name: str, kind: ControlKind, **fields: Any) -> None:
        event = self._event(Control, name, kind=kind, **fields)
        self._seen.add(event.event_id)
        self._write(event)

    def _event(self, event_class: type[Event], name: str, count: str = "", **fields: Any) -> Any:
        count = count or event_class.NAME
        seq, self._counts[count] = self._counts[count], self._counts[count] + 1
        session_id = self._caller.session_id
        envelope: dict[str, Any] = {
            "event_id": event_id(session_id, f"{count}-{name}"),
            "session_id": session_id,
            "tenant_id": "demo",
            "agent_id": "shop",
            "turn": self._playback.turn,
            "seq": seq,
            "occurred_at": self._clock.now_us(),
        }
        return event_class(**{**envelope, **fields})

    def _write(self, event: Event) -> None:
        self._gateway.producer.publish(event)

    def _send(self, frame: Any) -> None:
        """To the caller's side, in order, each frame after a moment."""
        world = self._clock.world
        self._sent_s = max(self._sent_s, world.now_s + world.random.uniform(0.001, 0.03))
        world.send(self._caller.process, self._sent_s - world.now_s, self._caller.take, frame)


class Gateway:
    """One reader and one producer for all calls."""

    def __init__(self, process: Process, log: SimulatedLog) -> None:
        self.process = process
        self.producer = Producer(log, process)
        self._log = log
        self._calls: dict[str, Call] = {}
        self._next: dict[Partition, int] = {}
        subscription = Subscription(process, self._read)
        for kind in READ:
            for number in range(log.partitions):
                self._next[Partition(kind.TOPIC, number)] = 0
                log.subscribe(subscription, Partition(kind.TOPIC, number))

    def connect(self, caller: "Caller") -> None:
        """A caller's socket opens."""
        self._calls[caller.session_id] = caller.call = Call(self, caller)

    def _read(self, partition: Partition) -> None:
        records = self._log.records[partition]
        while self._next[partition] < len(records):
            event = event_of(records[self._next[partition]])
            self._next[partition] += 1
            call = self._calls.get(event.session_id)
            if call is not None:
                call.deliver(event)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a caller does: says `text` (pausing after `pause_after` words), coughs, presses `digits`.

    Done once the reply to what was said before has been heard, or `over_ms` into it. `intent` is what it means.
    """

    text: str = ""
    intent: str = ""
    digits: str = ""
    pause_after: int = 0
    cough_ms: int = 0
    over_ms: int | None = None
    hang_up_ms: int | None = None


@dataclass(slots=True)
class Ear:
    """What reached a caller: audio by turn and sentence with what was cut, in the order of arrival."""

    chunks: list[SpeechChunk] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    texts: list[SpeechChunk] = field(default_factory=list)
    over: str = ""

    def clear(self, turn: int, heard_ms: int) -> None:
        """Forgets what came of the turn beyond that, its end included."""
        self.ended = [number for number in self.ended if number != turn]
        kept = []
        for chunk in self.chunks:
            samples = heard_ms * 16 - chunk.sample_index if chunk.turn == turn else len(chunk.pcm)
            kept.append(replace(chunk, pcm=chunk.pcm[: 2 * max(0, samples)]))
        self.chunks = kept


class Caller:
    """A person with a telephone: speaks, listens, talks over the agent, hangs up. Never crashes."""

    def __init__(
        self,
        process: Process,
        gateway: Gateway,
        session_id: str,
        script: Sequence[Line],
        mutes: bool,
        reports: bool,
    ) -> None:
        self.process = process
        self.gateway = gateway
        self.session_id = session_id
        self.script = script
        self.ear = Ear()
        self.call: Call | None = None
        self.done = False
        self.stuck = ""
        self.over_s = 0.0
        self.spoken: list[Line] = []
        self._mutes = mutes
        self._reports = reports
        self._clears = 0
        self._mouth: deque[bytes] = deque()
        self._quiet_ms = 0
        self._changed: asyncio.Event | None = None
        self._began_s: dict[int, float] = {}
        self._plays_until_s = 0.0
        self._finals: dict[int, str] = {}

    def start(self, after_s: float) -> None:
        """Calls, in so many seconds."""
        self.process.spawn(self._live(after_s))

    def take(self, frame: Any) -> None:
        """Something came from the gateway."""
        now_s = self.process.world.now_s
        ear = self.ear
        if isinstance(frame, SpeechChunk):
            if frame.kind is SpeechChunkKind.AUDIO:
                ear.chunks.append(frame)
                self._began_s.setdefault(frame.turn, max(now_s, self._plays_until_s))
                self._plays_until_s = max(now_s, self._plays_until_s) + len(frame.pcm) / 32_000
                if self._reports:
                    heard_ms = (frame.sample_index + len(frame.pcm) // 2) // 16
                    report = (frame.turn, heard_ms, self._clears)
                    self.process.loop.call_later(self._plays_until_s - now_s, self._played, *report)
            elif frame.kind is SpeechChunkKind.TEXT:
                ear.texts.append(frame)
            else:
                ear.ended.append(frame.turn)
        elif isinstance(frame, Transcript) and frame.kind is TranscriptKind.FINAL:
            self._finals[frame.turn] = frame.text
        elif isinstance(frame, Cleared):
            ear.clear(frame.turn, frame.heard_ms)
            self._clears += 1
            self._plays_until_s = now_s
        elif isinstance(frame, Spoken):
            ear.cut.add(frame.turn)
        elif isinstance(frame, Over):
            ear.over = frame.reason
            self.over_s = now_s
        if self._changed is not None:
            self._changed.set()

    async def _live(self, after_s: float) -> None:
        self._changed = asyncio.Event()
        await asyncio.sleep(after_s)
        self._to_gateway(self.gateway.connect, self)
        await self._until(lambda: bool(self._began_s or self.ear.ended), "greeting")
        microphone = asyncio.get_running_loop().create_task(self._microphone())
        for line in self.script:
            if self.ear.over or self.stuck:
                break
            await self._turn(line)
        await self._until(lambda: self._heard(len(self.spoken)), "last reply")
        if not self.ear.over:
            await asyncio.sleep(0.3)
            self._to_gateway(self._hang_up)
            await self._until(lambda: bool(self.ear.over), "end")
        microphone.cancel()
        self.done = True

    async def _turn(self, line: Line) -> None:
        turn = len(self.spoken)
        if line.over_ms is None and line.hang_up_ms is None:
            await self._until(lambda: self._heard(turn), f"reply {turn}")
            await asyncio.sleep(self.process.world.random.uniform(0.2, 0.6))
        else:
            over_s = (line.over_ms if line.over_ms is not None else line.hang_up_ms or 0) / 1000
            await self._until(lambda: turn in self._began_s or self._heard(turn), f"begin of reply {turn}")
            began_s = self._began_s.get(turn, 0.0)
            await asyncio.sleep(max(0.0, began_s + over_s - self.process.world.now_s))
        if line.hang_up_ms is not None:
            self._to_gateway(self._hang_up)
            await self._until(lambda: bool(self.ear.over), "end")
            return
        for digit in line.digits:
            self._to_gateway(self._press, digit)
            await asyncio.sleep(0.1)
        if line.cough_ms:
            self._mouth.extend(_frames(cough(line.cough_ms)))
        if line.text and not self.ear.over:
            await self._say(line)

    async def _say(self, line: Line) -> None:
        """Says it, and again when asked to, which is what an empty final leads to."""
        heard = False
        while not (heard or self.ear.over or self.stuck):
            self.spoken.append(line)
            turn = len(self.spoken)
            self._speak(line)
            await self._until(partial(self._finals.__contains__, turn), f"final {turn}")
            heard = bool(self._finals.get(turn))
            if not heard:
                await self._until(partial(self._heard, turn), f"reply {turn}")

    def _speak(self, line: Line) -> None:
        words = line.text.split()
        pcm = say(" ".join(words[: line.pause_after])) + silence(400) if line.pause_after else b""
        pcm += say(" ".join(words[line.pause_after :]))
        self._mouth.extend(_frames(pcm))
        self._quiet_ms = 0

    def _played(self, turn: int, heard_ms: int, clears: int) -> None:
        if clears == self._clears and not self.ear.over:
            self._to_gateway(self._report, turn, heard_ms)

    def _heard(self, turn: int) -> bool:
        """Whether the reply has come to its end at the ear."""
        over = turn in self.ear.ended or turn in self.ear.cut
        return bool(self.ear.over) or (over and self.process.world.now_s >= self._plays_until_s)

    async def _until(self, happened: Callable[[], bool], what: str) -> None:
        assert self._changed is not None
        give_up_s = self.process.world.now_s + PATIENCE_S
        while not (happened() or self.ear.over or self.stuck):
            if self.process.world.now_s > give_up_s:
                self.stuck = what
                return
            self._changed.clear()
            playing_s = self._plays_until_s - self.process.world.now_s
            wait_s = playing_s + 0.001 if playing_s > 0 else 5.0
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue

    async def _microphone(self) -> None:
        """Frames in real time; a caller who mutes sends nothing while there is nothing to hear."""
        while not self.ear.over:
            pcm = self._mouth.popleft() if self._mouth else b""
            if pcm:
                self._quiet_ms = 0
            else:
                self._quiet_ms += FRAME_MS
            if pcm or not self._mutes or self._quiet_ms <= QUIET_MS:
                self._to_gateway(self._audio, pcm.ljust(FRAME_MS * 32, b"\0"))
            await asyncio.sleep(FRAME_MS / 1000)

    # To the gateway, in its process.

    def _to_gateway(self, action: Callable[..., Any], *args: Any) -> None:
        self.process.world.send(self.gateway.process, 0.005, action, *args)

    def _audio(self, pcm: bytes) -> None:
        assert self.call is not None
        self.call.audio(pcm)

    def _press(self, digit: str) -> None:
        assert self.call is not None
        self.call.press(digit)

    def _hang_up(self) -> None:
        assert self.call is not None
        self.call.end("hung_up")

    def _report(self, turn: int, heard_ms: int) -> None:
        assert self.call is not None
        self.call.playout(turn, heard_ms)


def _frames(pcm: bytes) -> list[bytes]:
    return [pcm[at : at + FRAME_MS * 32] for at in range(0, len(pcm), FRAME_MS * 32)]


def session_ids(chance: random.Random, count: int) -> list[str]:
    """Session ids from the seed."""
    return [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(count)]

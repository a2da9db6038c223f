"""A caller made of WAV files, speaking the native dialect in real time: 20 ms frames, silence between its turns.

Times are milliseconds since the call started. End of speech is the caller's own measure: when the last frame with
speech in it (found by energy, in the file) was sent.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from api.link import CallError as CallError
from api.link import Inbox, Link
from api.wav import SAMPLE_RATE_HZ, Pcm, WavError, read_wav, speech_end, write_stereo
from streams.clock import Clock, SystemClock

FRAME_MS = 20
FRAME_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000

_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
_PLAYOUT_EVERY_FRAMES = 10
_AUDIBLE = 10 ** (-45 / 20) * 32768
_SETTLED_MS = 1500  # after that long without a new final, an earlier one has covered all speech


class RefusedError(CallError):
    """The gateway takes no more calls now; `retry_after_s` is when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Spoken:
    """One turn of the caller: what is played, and the index of its last frame with speech.

    `listens_ms` is how much of the reply the caller hears before the next turn is said over the rest; None: all of it.
    """

    name: str
    pcm: Pcm
    last_speech_frame: int
    listens_ms: int | None = None


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Something the server sent; for audio, `size_bytes` stands for the samples."""

    at_ms: float
    message: Mapping[str, Any]

    @property
    def type(self) -> str:
        """The message's type."""
        return str(self.message.get("type", ""))


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """What became of one file; None where it did not happen, and then `error` says what was missing.

    `turn` is the last turn that the file's speech made (one file may hold several utterances). `audible_after_ms` is
    the silence at the start of the reply's audio, which `voice_to_voice_ms` does not contain.
    """

    file: str
    turn: int | None
    transcript: str
    intent: str | None
    confidence: float | None
    reply: str
    end_of_speech_ms: float
    final_ms: float | None
    intent_ms: float | None
    first_sentence_ms: float | None
    first_audio_ms: float | None
    voice_to_voice_ms: float | None
    audible_after_ms: float | None
    error: str = ""


@dataclass(slots=True)
class CallResult:
    """A call that is over; the tracks are aligned in time, as caller and agent heard each other.

    `reconnects` counts how often the connection broke and the call went on.
    """

    session_id: str
    agent: str
    ended: str
    events: list[CallEvent]
    turns: list[TurnSummary]
    caller: Pcm
    reply: Pcm
    reconnects: int = 0

    def write(self, path: Path) -> None:
        """Writes the call as a stereo WAV: caller left, agent right."""
        write_stereo(path, self.caller, self.reply)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the caller waits, in seconds, for each thing that may not come."""

    start_s: float = 10.0
    greeting_s: float = 3.0
    final_s: float = 10.0
    reply_s: float = 30.0
    told_s: float = 5.0  # how a turn ended, once its speech has
    hang_up_s: float = 5.0
    resume_s: float = 30.0


@dataclass(slots=True)
class Onset:
    """How many samples of silence a turn's audio begins with; `found` once a sample was audible (-45 dBFS)."""

    silent: int = 0
    found: bool = False

    def add(self, pcm: Pcm) -> None:
        """The next piece of the turn's audio."""
        if not self.found:
            loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > _AUDIBLE)
            self.found = len(loud) > 0
            self.silent += int(loud[0]) if self.found else len(pcm)


@dataclass(slots=True)
class _Piece:
    start: int
    pcm: Pcm
    turn: int
    sentence: int
    sample_index: int


@dataclass(slots=True)
class Ear:
    """What the caller hears: audio plays when it arrives, or after what is still playing. Positions are samples."""

    pieces: list[_Piece] = field(default_factory=list)
    quiet_from: int = 0

    def add(self, at: int, pcm: Pcm, turn: int, sentence: int, sample_index: int) -> None:
        """Audio that arrived at position `at`, of the turn's speech from `sample_index` on."""
        start = max(at, self.quiet_from)
        self.pieces.append(_Piece(start, pcm, turn, sentence, sample_index))
        self.quiet_from = start + len(pcm)

    def clear(self, at: int) -> None:
        """Drops what has not been heard by then."""
        kept = [piece for piece in self.pieces if piece.start < at]
        for piece in kept:
            piece.pcm = piece.pcm[: at - piece.start]
        self.pieces, self.quiet_from = kept, min(self.quiet_from, at)

    def heard(self, at: int) -> tuple[int, int, int] | None:
        """Turn, sentence and milliseconds of that turn heard by then, of the last piece that has begun to play."""
        begun = [piece for piece in self.pieces if piece.start < at]
        if not begun:
            return None
        last = begun[-1]
        samples = last.sample_index + min(len(last.pcm), at - last.start)
        return last.turn, last.sentence, samples // _SAMPLES_PER_MS

    def track(self) -> Pcm:
        """Everything heard, from the start of the call."""
        track = np.zeros(max((piece.start + len(piece.pcm) for piece in self.pieces), default=0), np.int16)
        for piece in self.pieces:
            track[piece.start : piece.start + len(piece.pcm)] = piece.pcm
        return track


def load_turns(paths: Sequence[Path]) -> list[Spoken]:
    """The files as turns; raises CallError naming a file that is no audio or in which nobody speaks."""
    turns = []
    for path in paths:
        try:
            pcm = read_wav(path)
        except WavError as error:
            raise CallError(str(error)) from error
        last = speech_end(pcm, FRAME_SAMPLES)
        if last < 0:
            raise CallError(f"{path}: is silent; expected speech")
        turns.append(Spoken(str(path), pcm, last))
    return turns


def calls_url(base: str) -> str:
    """The WebSocket's address for the API's base, such as http://127.0.0.1:8080."""
    scheme, separator, rest = base.rstrip("/").partition("://")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if not separator or scheme not in schemes:
        raise CallError(f"{base}: is no address of an API; expected http://host:port")
    return f"{schemes[scheme]}://{rest}" + ("" if rest.endswith("/v1/calls") else "/v1/calls")


async def place_call(
    url: str,
    turns: Iterable[Spoken],
    *,
    agent: str = "",
    caller: str = "",
    key: str = "",
    on_event: Callable[[CallEvent], None] = lambda event: None,
    on_turn: Callable[[TurnSummary], None] = lambda turn: None,
    pause_ms: int = 300,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> CallResult:
    """Calls the API at base `url`, plays the turns, each after the reply to the one before, and hangs up.

    `on_event` gets every event as it comes, `on_turn` each turn's summary once its reply has been heard. A turn that
    is not answered in time is reported in its summary, and the call goes on. A connection that breaks is made anew and
    the call resumed, with all that was said meanwhile. Raises CallError.
    """
    clock, patience = clock or SystemClock(), patience or Patience()
    link = Link(calls_url(url), key, clock, patience.resume_s)
    await link.open()
    try:
        call = _Call(link, clock, patience, on_event)
        return await call.hold(turns, agent, caller, pause_ms, on_turn)
    finally:
        await link.close()


class _Call:
    """One call in progress: a task that listens, one that speaks, and the turns in between."""

    def __init__(self, link: Link, clock: Clock, patience: Patience, on_event: Callable[[CallEvent], None]) -> None:
        self._link = link
        self._inbox = Inbox()
        self._resume_token = ""
        self._clock = clock
        self._patience = patience
        self._on_event = on_event
        self._events: list[CallEvent] = []
        self._ear = Ear()
        self._began_s = clock.monotonic_s()
        # All that the caller has said; the server tells after a break how much of it has arrived.
        self._sent: list[Pcm] = []
        self._samples_sent = 0
        self._more = asyncio.Event()
        self._saying: Spoken | None = None
        self._said_frames = 0
        self._end_of_speech_ms = 0.0
        self._audio: Mapping[str, Any] | None = None
        self._onsets: dict[int, Onset] = {}
        self._utterance_open = False
        self._turns_over: set[int] = set()
        self._ended: str | None = None

    async def hold(
        self,
        turns: Iterable[Spoken],
        agent: str,
        caller: str,
        pause_ms: int,
        on_turn: Callable[[TurnSummary], None],
    ) -> CallResult:
        """The whole call."""
        started = await self._start(agent, caller)
        tasks = [asyncio.create_task(work) for work in (self._listen(), self._speak(), self._send_on())]
        talk = asyncio.create_task(self._converse(turns, pause_ms, on_turn))
        try:
            summaries = await self._outcome(talk, tasks)
        finally:
            for task in (talk, *tasks):
                task.cancel()
            await asyncio.gather(talk, *tasks, return_exceptions=True)
        sent = np.concatenate(self._sent) if self._sent else np.zeros(0, np.int16)
        return CallResult(
            session_id=str(started.get("session_id", "")),
            agent=str(started.get("agent", "")),
            ended=self._ended or "",
            events=self._events,
            turns=summaries,
            caller=sent,
            reply=self._ear.track(),
            reconnects=self._link.reconnects,
        )

    async def _outcome(
        self, talk: asyncio.Task[list[TurnSummary]], tasks: Sequence[asyncio.Task[None]]
    ) -> list[TurnSummary]:
        """The conversation's; raises at once when listening or speaking fails."""
        pending: set[asyncio.Task[Any]] = {talk, *tasks}
        while talk in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        return talk.result()

    async def _start(self, agent: str, caller: str) -> Mapping[str, Any]:
        message = {"type": "start", "sample_rate_hz": SAMPLE_RATE_HZ, "context": {}}
        message |= ({"agent": agent} if agent else {}) | ({"caller": caller} if caller else {})
        await self._link.send(json.dumps(message))
        try:
            async with asyncio.timeout(self._patience.start_s):
                data = await self._link.receive()
        except TimeoutError:
            raise CallError(
                f"the call was not accepted within {self._patience.start_s:g} s; see the API's log"
            ) from None
        if data is None:
            raise CallError("the connection broke before the call was accepted; see the API's log")
        answer = json.loads(data)
        if answer.get("type") != "started":
            said = " ".join(str(answer[name]) for name in ("message", "hint", "reason") if answer.get(name))
            text = f"the call was refused: {said or answer.get('type')}"
            if isinstance(retry_after_s := answer.get("retry_after_s"), int | float):
                raise RefusedError(text, float(retry_after_s))
            raise CallError(text)
        self._began_s = self._clock.monotonic_s()
        self._resume_token = str(answer.get("resume_token", ""))
        self._note(answer)
        return dict(answer)

    async def _converse(
        self, turns: Iterable[Spoken], pause_ms: int, on_turn: Callable[[TurnSummary], None]
    ) -> list[TurnSummary]:
        await self._hear_greeting()
        summaries: list[TurnSummary] = []
        for spoken in turns:
            await self._clock.sleep(pause_ms / 1000)
            if self._ended is not None:
                summary = summarise(spoken.name, (), 0.0, {}, f"the call had ended before ({self._ended})")
            else:
                summary = await self._take_turn(spoken)
            summaries.append(summary)
            on_turn(summary)
        await self._hang_up()
        return summaries

    async def _hear_greeting(self) -> None:
        """Waits until the agent has greeted, where it greets."""
        said = await self._until(lambda: self._heard_of(0) or 0 in self._turns_over, self._patience.greeting_s)
        if said:
            await self._until(lambda: 0 in self._turns_over, self._patience.reply_s)
            await self._until_quiet()

    async def _take_turn(self, spoken: Spoken) -> TurnSummary:
        """Speaks, hears the reply to its end, and says what happened."""
        first = len(self._events)
        self._said_frames, self._saying, self._end_of_speech_ms = 0, spoken, 0.0
        await self._until(lambda: self._saying is None, len(spoken.pcm) / SAMPLE_RATE_HZ + 10.0)
        error = ""
        if not await self._until(lambda: self._all_recognised(first), self._patience.final_s):
            error = f"no final transcript within {self._patience.final_s:g} s of the end of speech"
        elif not await self._until(lambda: self._listened(first, spoken.listens_ms), self._patience.reply_s):
            error = f"the reply did not end within {self._patience.reply_s:g} s"
        if spoken.listens_ms is None:
            await self._until_quiet()
            if not error:
                # Speech and words come by different topics, and the end of the speech may be there first.
                await self._until(lambda: self._told_of(self._last_turn(first)), self._patience.told_s)
        if not error and self._ended is not None and self._last_turn(first) is None:
            error = f"the call ended ({self._ended})"
        return summarise(spoken.name, self._events[first:], self._end_of_speech_ms, self._onsets, error)

    async def _hang_up(self) -> None:
        if self._ended is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience.hang_up_s):
                    await self._link.say(type="hang_up")
            await self._until(lambda: self._ended is not None, self._patience.hang_up_s)

    def _all_recognised(self, first: int) -> bool:
        """Whether a final covers everything said since event `first`."""
        finals = [event for event in self._events[first:] if event.type == "final"]
        if not finals or self._utterance_open:
            return False
        settled = self._now_ms() - self._end_of_speech_ms > _SETTLED_MS
        return finals[-1].at_ms >= self._end_of_speech_ms or settled

    def _last_turn(self, first: int) -> int | None:
        finals = [event for event in self._events[first:] if event.type == "final"]
        return finals[-1].message.get("turn") if finals else None

    def _listened(self, first: int, listens_ms: int | None) -> bool:
        """Whether the reply to what was said since event `first` is over, or so much of it was heard."""
        turn = self._last_turn(first)
        if listens_ms is None:
            return turn in self._turns_over
        heard = self._ear.heard(self._now())
        return heard is not None and heard[0] == turn and heard[2] >= listens_ms

    def _told_of(self, turn: int | None) -> bool:
        """Whether it is known how the turn ended, or that it was cut."""
        ends = ("completed", "cancelled", "clear")
        return any(event.type in ends and event.message.get("turn") == turn for event in self._events)

    def _heard_of(self, turn: int) -> bool:
        return any(event.type in ("sentence", "audio") and event.message.get("turn") == turn for event in self._events)

    async def _until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Waits for the condition, the call's end or the time; says whether the condition holds."""
        deadline_s = self._clock.monotonic_s() + within_s
        while not condition():
            if self._ended is not None or self._clock.monotonic_s() > deadline_s:
                return condition()
            await self._clock.sleep(FRAME_MS / 2000)
        return True

    async def _until_quiet(self) -> None:
        """Waits until everything received has been played."""
        while self._ear.quiet_from > self._now():
            await self._clock.sleep((self._ear.quiet_from - self._now()) / SAMPLE_RATE_HZ)

    async def _speak(self) -> None:
        """Says a frame every 20 ms, speech or silence, and tells how much has been heard."""
        silence = np.zeros(FRAME_SAMPLES, np.int16)
        told = None
        while self._ended is None:
            frame = self._next_frame()
            self._sent.append(silence if frame is None else frame)
            self._more.set()
            if frame is not None:
                self._frame_sent()
            if len(self._sent) % _PLAYOUT_EVERY_FRAMES == 0 and (heard := self._ear.heard(self._now())) != told:
                told = heard
                await self._tell_playout(heard)
            await self._clock.sleep(
                max(0.0, self._began_s + len(self._sent) * FRAME_MS / 1000 - self._clock.monotonic_s())
            )

    def _next_frame(self) -> Pcm | None:
        if self._saying is None:
            return None
        start = self._said_frames * FRAME_SAMPLES
        frame = self._saying.pcm[start : start + FRAME_SAMPLES]
        return np.pad(frame, (0, FRAME_SAMPLES - len(frame)))

    def _frame_sent(self) -> None:
        assert self._saying is not None
        if self._said_frames == self._saying.last_speech_frame:
            self._end_of_speech_ms = self._now_ms()
        self._said_frames += 1
        if self._said_frames * FRAME_SAMPLES >= len(self._saying.pcm):
            self._saying = None

    async def _tell_playout(self, heard: tuple[int, int, int] | None) -> None:
        if heard is not None:
            turn, sentence, heard_ms = heard
            message = {"type": "playout", "turn": turn, "sentence": sentence, "heard_ms": heard_ms}
            await self._link.send(json.dumps(message))

    async def _send_on(self) -> None:
        """Sends what has been said and not been sent, as fast as it goes: after a break, all that was said in it."""
        while self._ended is None:
            await self._more.wait()
            self._more.clear()
            while self._samples_sent < len(self._sent) * FRAME_SAMPLES:
                frame, offset = divmod(self._samples_sent, FRAME_SAMPLES)
                piece = self._sent[frame][offset:]
                self._samples_sent += len(piece)
                if not await self._link.send(piece.astype("<i2").tobytes()):
                    break

    async def _listen(self) -> None:
        while self._ended is None:
            data = await self._link.receive()
            if data is None:
                await self._resume()
            elif isinstance(data, bytes):
                self._hear(data)
            else:
                self._read(json.loads(data))

    async def _resume(self) -> None:
        self._audio = None
        self._note({"type": "reconnecting"})
        answer = await self._link.resume(self._where)
        if answer.get("type") == "resumed":
            self._samples_sent = int(answer.get("sample_index", 0))
            self._more.set()
        self._read(answer)

    def _where(self) -> Mapping[str, Any]:
        """What `resume` says."""
        heard = self._ear.heard(self._now())
        message = {"type": "resume", "resume_token": self._resume_token, **self._inbox.told()}
        if heard is not None:
            message["heard"] = {"turn": heard[0], "sentence": heard[1], "heard_ms": heard[2]}
        return message

    def _hear(self, data: bytes) -> None:
        audio, self._audio = self._audio or {}, None
        pcm = np.frombuffer(data, "<i2").astype(np.int16)
        self._inbox.audio(audio, len(pcm))
        turn = int(audio.get("turn", 0))
        self._onsets.setdefault(turn, Onset()).add(pcm)
        self._ear.add(self._now(), pcm, turn, int(audio.get("sentence", 0)), int(audio.get("sample_index", 0)))
        self._note({**audio, "type": "audio", "size_bytes": len(data)})

    def _read(self, message: Mapping[str, Any]) -> None:
        kind, turn = message.get("type"), message.get("turn")
        if kind == "audio":
            self._audio = message
            return
        if kind == "end_of_turn" and isinstance(turn, int):
            self._turns_over.add(turn)
        if not self._inbox.event(message):
            return
        if kind in ("speech_started", "speech_resumed", "final"):
            self._utterance_open = kind != "final"
        elif kind == "clear":
            self._turns_over.discard(int(message.get("turn", 0)))  # told again where the turn goes on
            self._ear.clear(self._now())
            self._inbox.cleared(message)
        elif kind == "ended":
            self._ended = str(message.get("reason", ""))
        self._note(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        event = CallEvent(round(self._now_ms(), 1), message)
        self._events.append(event)
        self._on_event(event)

    def _now_ms(self) -> float:
        return (self._clock.monotonic_s() - self._began_s) * 1000

    def _now(self) -> int:
        return int(self._now_ms() * _SAMPLES_PER_MS)


def summarise(
    name: str, events: Sequence[CallEvent], end_of_speech_ms: float, onsets: Mapping[int, Onset], error: str = ""
) -> TurnSummary:
    """What became of one file, from the events between its first frame and the end of its reply."""
    finals = [event for event in events if event.type == "final"]
    turns = [event.message.get("turn") for event in finals]
    turn = turns[-1] if turns else None

    def first(kind: str) -> CallEvent | None:
        return next((event for event in events if event.type == kind and event.message.get("turn") == turn), None)

    intent, sentence, audio = first("intent"), first("sentence"), first("audio")
    reply = [event.message.get("text", "") for event in events if event.type == "sentence" and _turn(event) in turns]
    onset = onsets.get(turn) if turn is not None else None
    if not error and audio is None:
        error = "no reply was heard"
    return TurnSummary(
        file=name,
        turn=turn,
        transcript=" ".join(event.message.get("text", "") for event in finals),
        intent=intent.message.get("intent") if intent else None,
        confidence=intent.message.get("confidence") if intent else None,
        reply=" ".join(reply),
        end_of_speech_ms=round(end_of_speech_ms, 1),
        final_ms=finals[-1].at_ms if finals else None,
        intent_ms=intent.at_ms if intent else None,
        first_sentence_ms=sentence.at_ms if sentence else None,
        first_audio_ms=audio.at_ms if audio else None,
        voice_to_voice_ms=round(audio.at_ms - end_of_speech_ms, 1) if audio else None,
        audible_after_ms=round(onset.silent / _SAMPLES_PER_MS, 1) if onset and onset.found else None,
        error=error,
    )


def _turn(event: CallEvent) -> int | None:
    return event.message.get("turn")

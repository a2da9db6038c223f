"""A caller who is heard and hears through a wire, in real time: Twilio's media stream, or the native WebSocket.

It knows nothing of the platform but the wire, so whatever speaks the wire can be called. It says a frame every 20 ms,
speech or silence, plays what it receives in real time, and notes what was audible when. Twilio's side of
the stream is played, too: marks come back when what was sent before them has been played, `clear` empties the buffer.
"""

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from api.audio import mulaw_to_pcm, pcm_to_mulaw
from api.wav import Pcm
from bench.utterances import FRAME_MS, Utterance

AUDIBLE = 184  # of a 16-bit sample: -45 dBFS
AUDIBLE_WITHIN_S = 0.2  # a gap between two chunks, or within a word, is no silence of the agent
_PAUSE_S = 1.2  # after the reply was heard, before the caller speaks again; a second answer begins within it
_PATIENCE_S = 20.0  # for an answer, and for the greeting
_OVER_S = 0.8  # a caller who interrupts does it so long after the reply became audible
_OPEN_S = 10.0

Manner = Literal["polite", "interrupting"]


class CallFailedError(Exception):
    """The call could not be held to its end; the text says at which step."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Audio from the agent; `label` tells its answer from another one where the wire says so."""

    pcm: Pcm
    label: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """To be sent back when what came before it has been played."""

    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """What has not been played is void."""


@dataclass(frozen=True, slots=True)
class Over:
    """The other side ended the call."""


Message = Heard | Mark | Clear | Over


class Wire(Protocol):
    """What a caller says and hears, as messages."""

    path: str
    rate_hz: int

    def opening(self) -> Sequence[str]:
        """The first messages."""
        ...

    def speech(self, frame: Pcm) -> str | bytes:
        """20 ms of the caller's audio."""
        ...

    def mark(self, name: str) -> str | None:
        """Says that everything up to the mark was played."""
        ...

    def closing(self) -> str:
        """The last message."""
        ...

    def read(self, data: str | bytes) -> Sequence[Message]:
        """What the other side says; nothing for what concerns no ear."""
        ...


class TwilioWire:
    """Twilio's media stream, bidirectional: mu-law at 8,000 Hz in base64; all numbers are strings."""

    rate_hz = 8000

    def __init__(self, agent: str, caller: str, path: str = "/v1/twilio/media") -> None:
        self.path = path
        self._parameters = {"agent": agent, "caller": caller}
        self._stream_sid = f"MZ{uuid.uuid4().hex}"
        self._call_sid = f"CA{uuid.uuid4().hex}"
        self._sequence = 1
        self._chunk = 0

    def opening(self) -> Sequence[str]:
        """See `Wire`."""
        start = {
            "accountSid": "ACbench",
            "streamSid": self._stream_sid,
            "callSid": self._call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": self._parameters,
        }
        connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        return json.dumps(connected), self._message("start", start)

    def speech(self, frame: Pcm) -> str:
        """See `Wire`."""
        payload = base64.b64encode(pcm_to_mulaw(frame.astype("<i2").tobytes())).decode()
        self._chunk += 1
        media = {"track": "inbound", "chunk": str(self._chunk), "timestamp": str(self._chunk * FRAME_MS)}
        return self._message("media", media | {"payload": payload})

    def mark(self, name: str) -> str | None:
        """See `Wire`."""
        return self._message("mark", {"name": name})

    def closing(self) -> str:
        """See `Wire`."""
        return self._message("stop", {"accountSid": "ACbench", "callSid": self._call_sid})

    def read(self, data: str | bytes) -> Sequence[Message]:
        """See `Wire`."""
        message = json.loads(data)
        match message.get("event"):
            case "media":
                pcm = mulaw_to_pcm(base64.b64decode(message["media"]["payload"]))
                return (Heard(np.frombuffer(pcm, "<i2").astype(np.int16)),)
            case "mark":
                return (Mark(str(message["mark"]["name"])),)
            case "clear":
                return (Clear(),)
        return ()

    def _message(self, event: str, content: Mapping[str, object]) -> str:
        self._sequence += 1
        envelope = {"event": event, "sequenceNumber": str(self._sequence), "streamSid": self._stream_sid}
        return json.dumps(envelope | {event: dict(content)})


class NativeWire:
    """The platform's own WebSocket: PCM16 at 16,000 Hz in binary messages, each one announced in JSON."""

    rate_hz = 16000
    path = "/v1/calls"

    def __init__(self, agent: str, caller: str) -> None:
        self._start = json.dumps({"type": "start", "agent": agent, "caller": caller})
        self._turn, self._sentence, self._heard_ms = "", "", 0.0

    def opening(self) -> Sequence[str]:
        """See `Wire`."""
        return (self._start,)

    def speech(self, frame: Pcm) -> bytes:
        """See `Wire`."""
        return frame.astype("<i2").tobytes()

    def mark(self, name: str) -> str | None:
        """See `Wire`."""
        turn, sentence, heard_ms = (int(part) for part in name.split("/"))
        return json.dumps({"type": "playout", "turn": turn, "sentence": sentence, "heard_ms": heard_ms})

    def closing(self) -> str:
        """See `Wire`."""
        return json.dumps({"type": "hang_up"})

    def read(self, data: str | bytes) -> Sequence[Message]:
        """See `Wire`."""
        if isinstance(data, bytes):
            pcm = np.frombuffer(data, "<i2").astype(np.int16)
            self._heard_ms += len(pcm) * 1000 / self.rate_hz
            name = f"{self._turn}/{self._sentence}/{round(self._heard_ms)}"
            return Heard(pcm, self._turn), Mark(name)
        message = json.loads(data)
        match message.get("type"):
            case "audio":
                if str(message["turn"]) != self._turn:
                    self._turn, self._heard_ms = str(message["turn"]), 0.0
                self._sentence = str(message["sentence"])
            case "clear":
                return (Clear(),)
            case "ended":
                return (Over(),)
        return ()


@dataclass(slots=True)
class Piece:
    """Agent audio that was, or would have been, played from `from_s` to `to_s`.

    `audible_s` is its first sample to be heard, `silent_s` the end of the last one; both None where it has none.
    """

    arrived_s: float
    from_s: float
    to_s: float
    audible_s: float | None
    silent_s: float | None
    label: str


@dataclass(slots=True)
class Phone:
    """Plays what arrives, one piece after the other; all times are seconds since the epoch."""

    rate_hz: int
    pieces: list[Piece] = field(default_factory=list)
    clears_s: list[float] = field(default_factory=list)
    marks: deque[tuple[float, str]] = field(default_factory=deque)
    free_s: float = 0.0

    def add(self, now_s: float, heard: Heard) -> None:
        """Audio that arrived now; it plays now, or after what is still playing."""
        from_s = max(now_s, self.free_s)
        self.free_s = from_s + len(heard.pcm) / self.rate_hz
        loud = np.flatnonzero(np.abs(heard.pcm.astype(np.int32)) > AUDIBLE)
        audible_s = from_s + int(loud[0]) / self.rate_hz if len(loud) else None
        silent_s = from_s + (int(loud[-1]) + 1) / self.rate_hz if len(loud) else None
        self.pieces.append(Piece(now_s, from_s, self.free_s, audible_s, silent_s, heard.label))

    def mark(self, now_s: float, name: str) -> None:
        """To be sent back when all before it has been played."""
        self.marks.append((max(now_s, self.free_s), name))
        self._label(name.partition("/")[0])

    def played(self, now_s: float) -> list[str]:
        """Marks that are due."""
        due = []
        while self.marks and self.marks[0][0] <= now_s:
            due.append(self.marks.popleft()[1])
        return due

    def clear(self, now_s: float) -> None:
        """Plays no more of what has arrived; marks that wait come back at once."""
        self.clears_s.append(now_s)
        self._label(f"cut off {len(self.clears_s)}")
        while self.pieces and self.pieces[-1].from_s >= now_s:
            self.pieces.pop()
        if self.pieces:
            last = self.pieces[-1]
            last.to_s = min(last.to_s, now_s)
            if last.audible_s is None or last.silent_s is None or last.audible_s >= now_s:
                last.audible_s = last.silent_s = None
            else:
                last.silent_s = min(last.silent_s, now_s)
        self.free_s = now_s
        self.marks = deque((now_s, name) for _, name in self.marks)

    def heard_until(self, now_s: float) -> float:
        """When a sound was last audible by now: now itself while one is, 0.0 before the first."""
        sounds = (one.silent_s for one in self.pieces if one.silent_s is not None and (one.audible_s or 0.0) <= now_s)
        return min(now_s, max(sounds, default=0.0))

    def _label(self, label: str) -> None:
        """Marks name the answer whose audio they follow."""
        for piece in reversed(self.pieces):
            if piece.label:
                break
            piece.label = label


@dataclass(slots=True)
class Said:
    """One utterance on its wire; seconds since the epoch. Speech ends where its last frame has been sent.

    `interrupts` is what the caller meant to do; `agent_heard_s` is when, by the onset of speech, the agent was last
    audible.
    """

    utterance: Utterance
    begins_s: float
    ends_s: float = 0.0
    interrupts: bool = False
    agent_heard_s: float = 0.0

    @property
    def over_agent(self) -> bool:
        """Whether the agent was audible at the onset of speech.

        What it has sent ahead does not count: a server that sends in real time has nothing of that.
        """
        return self.interrupts and self.begins_s - self.agent_heard_s <= AUDIBLE_WITHIN_S


@dataclass(slots=True)
class Call:
    """What a caller said and heard; `error` where it did not come to its end."""

    caller: str
    said: list[Said] = field(default_factory=list)
    phone: Phone = field(default_factory=lambda: Phone(8000))
    error: str = ""


class Caller:
    """One call: hears the greeting, says each utterance when the agent has finished, or over it, and hangs up."""

    def __init__(self, wire: Wire, caller: str, manner: Manner = "polite") -> None:
        self._wire = wire
        self._manner = manner
        self._call = Call(caller, phone=Phone(wire.rate_hz))
        self._saying: deque[Pcm] = deque()
        self._said: Said | None = None
        self._frames_sent = 0
        self._over = False

    async def call(self, url: str, utterances: Sequence[Utterance]) -> Call:
        """Holds the call at base `url` (ws://...); a call that fails says so in its result."""
        try:
            async with connect(url + self._wire.path, compression=None, open_timeout=_OPEN_S, max_size=None) as socket:
                for message in self._wire.opening():
                    await socket.send(message)
                await self._converse(socket, utterances)
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake, CallFailedError) as error:
            self._call.error = str(error) or type(error).__name__
        return self._call

    async def _converse(self, socket: ClientConnection, utterances: Sequence[Utterance]) -> None:
        tasks = [asyncio.create_task(self._speak(socket)), asyncio.create_task(self._listen(socket))]
        try:
            await self._follow(utterances)
            await socket.send(self._wire.closing())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, utterances: Sequence[Utterance]) -> None:
        await self._answered(time.time())
        await self._heard_out()
        for number, utterance in enumerate(utterances):
            over = self._manner == "interrupting" and number > 0
            await self._say(utterance, over)
            said = self._call.said[-1]
            last = number + 1 == len(utterances)
            if await self._answered(said.ends_s):
                await (self._heard_out() if last or self._manner == "polite" else self._heard_a_bit(said.ends_s))
            if self._over:
                raise CallFailedError(f"the agent ended the call after utterance {number + 1}")

    async def _say(self, utterance: Utterance, over: bool) -> None:
        said = Said(utterance, time.time(), interrupts=over)
        self._call.said.append(said)
        self._said = said
        self._saying.extend(utterance.frames)
        await self._until(lambda: not self._saying, len(utterance.frames) * FRAME_MS / 1000 + _PATIENCE_S)

    async def _answered(self, since_s: float) -> bool:
        return await self._until(lambda: self._audible_since(since_s) is not None, _PATIENCE_S)

    async def _heard_a_bit(self, since_s: float) -> None:
        audible_s = self._audible_since(since_s) or 0.0
        await asyncio.sleep(max(0.0, audible_s + _OVER_S - time.time()))

    async def _heard_out(self) -> None:
        """Until nothing has played for the caller's pause."""
        while not self._over and time.time() < self._call.phone.free_s + _PAUSE_S:  # noqa: ASYNC110  time itself is waited for
            await asyncio.sleep(FRAME_MS / 1000)

    def _audible_since(self, since_s: float) -> float | None:
        """When the first sound after that was heard."""
        return next((one.audible_s for one in self._call.phone.pieces if (one.audible_s or 0.0) > since_s), None)

    async def _until(self, condition: Callable[[], bool], within_s: float) -> bool:
        deadline_s = time.time() + within_s
        while not condition() and not self._over and time.time() < deadline_s:  # noqa: ASYNC110  conditions are of time, too
            await asyncio.sleep(FRAME_MS / 2000)
        return condition()

    async def _speak(self, socket: ClientConnection) -> None:
        silence = np.zeros(self._wire.rate_hz * FRAME_MS // 1000, np.int16)
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = self._saying.popleft() if self._saying else None
                await socket.send(self._wire.speech(silence if frame is None else frame))
                self._note(frame)
                for name in self._call.phone.played(time.time()):
                    if (message := self._wire.mark(name)) is not None:
                        await socket.send(message)
                self._frames_sent += 1
                await asyncio.sleep(max(0.0, began_s + self._frames_sent * FRAME_MS / 1000 - time.monotonic()))

    def _note(self, frame: Pcm | None) -> None:
        """Speech begins and ends with the frames that hold it."""
        if frame is None or self._said is None:
            return
        sent = len(self._said.utterance.frames) - len(self._saying) - 1
        first, last = self._said.utterance.speech
        if sent == first:
            self._said.begins_s = time.time()
            self._said.agent_heard_s = self._call.phone.heard_until(self._said.begins_s)
        if sent == last:
            self._said.ends_s = time.time()

    async def _listen(self, socket: ClientConnection) -> None:
        phone = self._call.phone
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                for message in self._wire.read(data):
                    match message:
                        case Heard():
                            phone.add(time.time(), message)
                        case Mark(name):
                            phone.mark(time.time(), name)
                        case Clear():
                            phone.clear(time.time())
                        case Over():
                            self._over = True
        self._over = True

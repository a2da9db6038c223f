"""Twilio Media Streams, bidirectional: JSON text both ways, mu-law at 8,000 Hz in base64, 20 ms a message.

Numbers travel as strings. Marks tell what the caller has heard; `clear` empties Twilio's buffer, after which the marks
that were waiting come back at once and count for nothing: their names say how many clears came before them.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from api.audio import (
    BYTES_PER_MS,
    MULAW_SILENCE,
    Doubler,
    Halver,
    mulaw_to_pcm,
    pcm_to_mulaw,
    peak_of_mulaw,
)
from api.dialects.dialect import (
    DIGITS,
    Audio,
    Bad,
    Command,
    Dtmf,
    HangUp,
    Message,
    Playout,
    Resumed,
    Start,
    Started,
    json_object,
    too_big,
)
from schemas.event import Event
from schemas.events import SpeechChunk, SpeechChunkKind

PAYLOAD_BYTES = 160
TEXT_BYTES_MAX = 32_768
PAYLOAD_BYTES_MAX = 16_000
TOKEN_PARAMETER = "trunkline_token"
SESSION_PARAMETER = "trunkline_session"
AGAIN_PARAMETER = "trunkline_again"
_OWN_PARAMETERS = frozenset({"agent", "caller", TOKEN_PARAMETER, SESSION_PARAMETER, AGAIN_PARAMETER})


class _Piece(msgspec.Struct, frozen=True):
    payload: bytes
    track: str = "inbound"


class _Media(msgspec.Struct, frozen=True):
    """Nearly every message is one: read as such it takes a fifth of what it takes as a dictionary."""

    event: Literal["media"]
    media: _Piece


_MEDIA = msgspec.json.Decoder(_Media)


class TwilioDialect:
    """See `Dialect`."""

    channel = "twilio"
    text_rate_per_s = 200
    bytes_per_ms = 8

    def __init__(self) -> None:
        self._prefix = ""
        self._wider = Doubler()
        self._narrower = Halver()
        self._rest = b""
        self._heard_ms: dict[int, float] = {}
        self._clears = 0

    def receive_text(self, text: str) -> Sequence[Command]:
        """See `Dialect`."""
        if len(text) <= TEXT_BYTES_MAX:
            try:
                return _audio(_MEDIA.decode(text).media)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass  # another event, or something is wrong with it
        message = json_object(text, TEXT_BYTES_MAX)
        if isinstance(message, Bad):
            return (message,)
        match message.get("event"):
            case "media":
                foreign = _part(message, "media").get("track", "inbound") != "inbound"
                return () if foreign else (_invalid("media.payload"),)
            case "start":
                return (self._start(message),)
            case "mark":
                return self._mark(_part(message, "mark").get("name"))
            case "dtmf":
                digit = _part(message, "dtmf").get("digit")
                return (Dtmf(digit),) if isinstance(digit, str) and digit in DIGITS else (_invalid("dtmf.digit"),)
            case "stop":
                return (HangUp(),)
            case "connected":
                return ()
        return (
            Bad(
                "unknown_type",
                "The message's event is not known.",
                "event is one of connected, start, media, dtmf, mark, stop.",
            ),
        )

    def receive_bytes(self, data: bytes) -> Sequence[Command]:
        """See `Dialect`."""
        return (Bad("unexpected_binary", "Media Streams carry text messages only.", "Send audio as media messages."),)

    def pcm(self, data: bytes) -> bytes:
        """See `Dialect`."""
        return self._wider.process(mulaw_to_pcm(data))

    def peak(self, data: bytes) -> int:
        """See `Dialect`."""
        return peak_of_mulaw(data)

    def started(self, started: Started) -> Sequence[Message]:
        """See `Dialect`."""
        return ()

    def resumed(self, resumed: Resumed) -> Sequence[Message]:
        """See `Dialect`."""
        return ()

    def acknowledged(self, sample_index: int) -> Sequence[Message]:
        """See `Dialect`: Twilio keeps no audio."""
        return ()

    def going_away(self) -> Sequence[Message]:
        """See `Dialect`: closing the socket makes Twilio ask what to do next, and the answer is another stream."""
        return ()

    def event(self, event: Event) -> Sequence[Message]:
        """See `Dialect`: a telephone shows nothing; at the end of a turn what is left of its audio is sent."""
        if isinstance(event, SpeechChunk) and event.kind is SpeechChunkKind.END_OF_TURN:
            return self._rest_of_sentence(event.turn)
        return ()

    def audio(self, chunk: SpeechChunk) -> Sequence[Message]:
        """See `Dialect`: messages of 20 ms, and a mark after each sentence."""
        if chunk.turn not in self._heard_ms:
            # A stream on which a call goes on begins within the turn, and so does what follows a clear.
            self._heard_ms = {chunk.turn: chunk.sample_index * 2 / BYTES_PER_MS}
        self._heard_ms[chunk.turn] += len(chunk.pcm) / BYTES_PER_MS
        data = self._rest + pcm_to_mulaw(self._narrower.process(chunk.pcm))
        whole = len(data) - len(data) % PAYLOAD_BYTES
        self._rest = data[whole:]
        frames: list[Message] = [
            self._payload(data[start : start + PAYLOAD_BYTES]) for start in range(0, whole, PAYLOAD_BYTES)
        ]
        if chunk.last_of_sentence:
            frames += self._rest_of_sentence(chunk.turn)
            name = f"{chunk.turn}/{chunk.sentence}/{round(self._heard_ms[chunk.turn])}/{self._clears}"
            frames.append(f'{{"event":"mark",{self._prefix},"mark":{{"name":"{name}"}}}}')
        return frames

    def clear(self, turn: int, heard_ms: int) -> Sequence[Message]:
        """See `Dialect`."""
        self._clears += 1
        self._heard_ms.clear()
        self._rest = b""
        self._narrower = Halver()
        return (f'{{"event":"clear",{self._prefix}}}',)

    def transfer(self, target: str) -> Sequence[Message]:
        """See `Dialect`: the call goes on with the TwiML that Twilio asks for when the stream has ended."""
        return ()

    def error(self, code: str, message: str, hint: str, retry_after_s: int | None = None) -> Sequence[Message]:
        """See `Dialect`: Twilio takes no such message; the call loop logs and counts it."""
        return ()

    def ended(self, reason: str) -> Sequence[Message]:
        """See `Dialect`: closing the socket ends the stream."""
        return ()

    def _start(self, message: Mapping[str, Any]) -> Command:
        start = _part(message, "start")
        stream_sid, call_sid = start.get("streamSid") or message.get("streamSid"), start.get("callSid")
        if not isinstance(stream_sid, str) or not stream_sid:
            return _invalid("start.streamSid")
        media = _part(start, "mediaFormat")
        if media.get("encoding", "audio/x-mulaw") != "audio/x-mulaw" or str(media.get("sampleRate", "8000")) != "8000":
            return Bad("unsupported_media", "The stream's format is not supported.", "Expected audio/x-mulaw at 8000.")
        given = {name: str(value) for name, value in _part(start, "customParameters").items()}
        self._prefix = f'"streamSid":{msgspec.json.encode(stream_sid).decode()}'
        return Start(
            agent=given.get("agent", ""),
            caller=given.get("caller"),
            context={name: value for name, value in given.items() if name not in _OWN_PARAMETERS},
            call_id=call_sid if isinstance(call_sid, str) else "",
            token=given.get(TOKEN_PARAMETER, ""),
            session_token=given.get(SESSION_PARAMETER, ""),
            again=given.get(AGAIN_PARAMETER) == "1",
        )

    def _mark(self, name: Any) -> Sequence[Command]:
        """Marks that were not set here, or that a `clear` sent back, say nothing."""
        parts = name.split("/") if isinstance(name, str) else []
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            return ()
        turn, sentence, heard_ms, clears = map(int, parts)
        return (Playout(turn, sentence, heard_ms),) if clears == self._clears else ()

    def _rest_of_sentence(self, turn: int) -> list[Message]:
        """What does not fill a message, filled up with silence."""
        if not self._rest:
            return []
        data, self._rest = self._rest.ljust(PAYLOAD_BYTES, MULAW_SILENCE), b""
        return [self._payload(data)]

    def _payload(self, data: bytes) -> str:
        return f'{{"event":"media",{self._prefix},"media":{{"payload":"{base64.b64encode(data).decode()}"}}}}'


def _part(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = message.get(name)
    return value if isinstance(value, dict) else {}


def _audio(piece: _Piece) -> Sequence[Command]:
    if piece.track != "inbound" or not piece.payload:
        return ()
    size = len(piece.payload)
    return (Audio(piece.payload) if size <= PAYLOAD_BYTES_MAX else too_big(size, PAYLOAD_BYTES_MAX),)


def _invalid(name: str) -> Bad:
    return Bad("invalid_field", f"The field {name} is not usable.", f"{name}: expected what Media Streams define.")

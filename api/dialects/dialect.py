"""What the call loop and a media dialect say to each other.

A dialect is pure: it holds the state of its codec and counters, does no I/O, reads no clock and never raises on what
the other side sends. The call loop (`api/calls.py`) is the same for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from schemas.event import Event
from schemas.events import SpeechChunk

Message = str | bytes
"""A WebSocket message: text or binary."""

AUDIO_BYTES_MAX = 64_000
"""The longest piece of audio taken in one message: 2 s."""
DIGITS = frozenset("0123456789*#ABCD")
"""The keys of a telephone."""


# From the socket.


@dataclass(frozen=True, slots=True)
class Start:
    """The caller is there; an empty agent is the gateway's only or first one."""

    agent: str = ""
    caller: str | None = field(default=None, repr=False)
    context: Mapping[str, str] = field(default_factory=dict, repr=False)
    call_id: str = ""
    token: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    """Of a caller whose session was minted beforehand. With `again`, it may have been begun, and is then resumed."""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """What the caller's side has: the speech of turns before `turn`, and so many samples of that one's."""

    turn: int
    sample_index: int


@dataclass(frozen=True, slots=True)
class Audio:
    """A piece of the caller's audio, as the dialect codes it (`Dialect.pcm`)."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Dtmf:
    """A key was pressed; one that is told twice with the same `press_id` was pressed once."""

    digit: str = field(repr=False)
    press_id: str = ""


@dataclass(frozen=True, slots=True)
class Playout:
    """The caller has heard this much of the turn's speech."""

    turn: int
    sentence: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Resume:
    """The caller is back after its connection broke.

    `received` and `event_ids` say what it has, `heard` what has been played of it, None where it does not know.
    `kept_from` is the index of the oldest sample of the caller's audio that can still be sent.
    """

    token: str = field(repr=False)
    received: Received | None = None
    heard: Playout | None = None
    event_ids: frozenset[str] = frozenset()
    kept_from: int = 0


@dataclass(frozen=True, slots=True)
class HangUp:
    """The caller ends the call."""


@dataclass(frozen=True, slots=True)
class Bad:
    """What was sent cannot be used: the error to be told, while the call goes on.

    `retry_after_s` comes with a refusal that may be over by then.
    """

    code: str
    message: str
    hint: str
    retry_after_s: int | None = None


Command = Start | Resume | Audio | Dtmf | Playout | HangUp | Bad


@dataclass(frozen=True, slots=True)
class Started:
    """What the other side is told when its call has been taken."""

    session_id: str
    agent: str
    resume_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the other side is told when its call goes on; `sample_index` is of the first sample that the log lacks."""

    session_id: str
    agent: str
    resume_token: str = field(repr=False)
    sample_index: int


class Dialect(Protocol):
    """One kind of media socket; an instance serves one connection."""

    channel: str
    """The session's channel, such as websocket or twilio."""
    text_rate_per_s: int
    """Text messages a second that an honest peer stays below."""
    bytes_per_ms: int
    """Of the caller's audio as it comes."""

    def receive_text(self, text: str) -> Sequence[Command]:
        """What a text message says."""
        ...

    def receive_bytes(self, data: bytes) -> Sequence[Command]:
        """What a binary message says."""
        ...

    def pcm(self, data: bytes) -> bytes:
        """The caller's audio, whose pieces come in their order, as PCM16 little-endian mono at 16,000 Hz."""
        ...

    def peak(self, data: bytes) -> int:
        """The largest sample in a piece of the caller's audio, of 32,767, roughly."""
        ...

    def started(self, started: Started) -> Sequence[Message]:
        """The call has been taken."""
        ...

    def resumed(self, resumed: Resumed) -> Sequence[Message]:
        """The call goes on; what was missed follows."""
        ...

    def acknowledged(self, sample_index: int) -> Sequence[Message]:
        """The log has the caller's audio up to that sample; it need not be kept any longer."""
        ...

    def going_away(self) -> Sequence[Message]:
        """The gateway leaves, the call does not: the socket closes next, and another one resumes."""
        ...

    def event(self, event: Event) -> Sequence[Message]:
        """An event of the session other than audio."""
        ...

    def audio(self, chunk: SpeechChunk) -> Sequence[Message]:
        """A piece of the agent's speech, in order."""
        ...

    def clear(self, turn: int, heard_ms: int) -> Sequence[Message]:
        """There is a sound over the turn: what is buffered of it is to be dropped. It may go on from `heard_ms`."""
        ...

    def transfer(self, target: str) -> Sequence[Message]:
        """The caller is handed on; `ended` follows."""
        ...

    def error(self, code: str, message: str, hint: str, retry_after_s: int | None = None) -> Sequence[Message]:
        """Something that the other side sent could not be used."""
        ...

    def ended(self, reason: str) -> Sequence[Message]:
        """The call is over; the socket closes next."""
        ...


def odd_length(size: int) -> Bad:
    """The error for audio that cannot be 16-bit samples."""
    return Bad("odd_length", f"The audio message has {size} bytes.", "Send PCM16: an even number of bytes.")


def bad_token() -> Bad:
    """The error for any token that is not valid here; it says no more about why."""
    return Bad("bad_resume_token", "The resume token is not valid.", "Start a new call.")


def resumed_elsewhere() -> Bad:
    """The error for a connection whose call another one has now."""
    hint = "The call goes on there. Do not resume it here."
    return Bad("resumed_elsewhere", "The call was resumed on another connection.", hint)


def too_big(size: int, size_max: int) -> Bad:
    """The error for a message beyond the limit."""
    return Bad("message_too_big", f"The message has {size} bytes.", f"Send at most {size_max} bytes in one message.")


def json_object(text: str, size_max: int) -> dict[str, Any] | Bad:
    """The JSON object in a text message of at most that size, or the error for what is none."""
    if len(text) > size_max:
        return too_big(len(text), size_max)
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        message = None
    if isinstance(message, dict):
        return message
    return Bad("invalid_json", "The text message is not a JSON object.", "Send one JSON object in each text message.")


def whole_number(message: Mapping[str, Any], name: str, limit: int = 2**31 - 1) -> int | None:
    """The field as an int from 0 to `limit`; None where it is missing or anything else."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        return None
    return value

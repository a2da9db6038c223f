"""What the caller's ear got, as time: when each piece of a reply played, and where nothing played. Pure.

Audio plays when it arrives, or after what is still playing, as `api.client.Ear` does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from api.client import CallEvent, TurnSummary
from api.wav import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from bench.faults.reference import Reference

_BYTES_PER_MS = SAMPLE_RATE_HZ * 2 // 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the agent's speech as it played."""

    turn: int
    starts_ms: float
    ends_ms: float


@dataclass(frozen=True, slots=True)
class Silence:
    """The longest silence that was added to a call: before a reply, and inside one."""

    before_ms: float
    inside_ms: float

    @property
    def longest_ms(self) -> float:
        """The larger of the two."""
        return max(self.before_ms, self.inside_ms)


def pieces(events: Iterable[CallEvent]) -> list[Piece]:
    """How the call's audio played; what was cleared did not."""
    played: list[Piece] = []
    for event in events:
        if event.type == "clear":
            heard = [piece for piece in played if piece.starts_ms < event.at_ms]
            played = [Piece(one.turn, one.starts_ms, min(one.ends_ms, event.at_ms)) for one in heard]
        elif event.type == "audio":
            starts_ms = max(event.at_ms, played[-1].ends_ms if played else 0.0)
            length_ms = event.message["size_bytes"] / _BYTES_PER_MS
            played.append(Piece(int(event.message.get("turn", 0)), starts_ms, starts_ms + length_ms))
    return played


def reply_ms(events: Iterable[CallEvent], turn: int | None) -> float:
    """From the first sample of the turn's speech to its last."""
    own = [piece for piece in pieces(events) if piece.turn == turn]
    return own[-1].ends_ms - own[0].starts_ms if own else 0.0


def gap_inside_ms(events: Iterable[CallEvent], turn: int | None = None) -> float:
    """The longest silence between two pieces of one turn: of the turn given, or of any."""
    played = [piece for piece in pieces(events) if turn is None or piece.turn == turn]
    pairs = ((before, after) for before, after in pairwise(played) if before.turn == after.turn)
    return max((after.starts_ms - before.ends_ms for before, after in pairs), default=0.0)


def added(events: Sequence[CallEvent], turns: Sequence[TurnSummary], reference: "Reference") -> Silence:
    """What a call had more of than its undisturbed counterparts; a reply that never came is counted elsewhere."""
    before_ms = 0.0
    for turn, usual in zip(turns, reference.turns, strict=True):
        if turn.voice_to_voice_ms is not None:
            before_ms = max(before_ms, turn.voice_to_voice_ms - usual.voice_to_voice_ms)
    usual_gap_ms = max(usual.gap_ms for usual in reference.turns)
    return Silence(round(before_ms, 1), round(max(0.0, gap_inside_ms(events) - usual_gap_ms), 1))

"""What undisturbed calls were like: the measure for those that are disturbed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from api.client import CallResult
from bench.faults.silence import gap_inside_ms, reply_ms
from bench.words import normalise

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnReference:
    """One file of a conversation, undisturbed: every transcript that it had, and what its replies sounded like."""

    transcripts: frozenset[Words]
    voice_to_voice_ms: float
    gap_ms: float
    reply_ms: float


@dataclass(frozen=True, slots=True)
class Reference:
    """A conversation, undisturbed; `tickets` is what it leaves in the ERP."""

    turns: tuple[TurnReference, ...]
    tickets: int


class UnfitSpeechError(ValueError):
    """Calls differ that nobody disturbed, or fail: nothing can be measured against them."""


def words(text: str) -> Words:
    """What is compared of a transcript."""
    return tuple(normalise(text))


def refer(results: Sequence[CallResult], tickets: Sequence[int]) -> Reference:
    """From undisturbed calls of one conversation and the tickets that each left; raises UnfitSpeechError."""
    for result in results:
        for turn in result.turns:
            if turn.error or turn.voice_to_voice_ms is None:
                raise UnfitSpeechError(f"{turn.file}: not answered, though nothing was broken: {turn.error}")
    if len(set(tickets)) != 1:
        raise UnfitSpeechError(f"undisturbed calls left different numbers of tickets: {sorted(tickets)}")
    columns = zip(*(result.turns for result in results), strict=True)
    return Reference(tuple(_turn(results, number) for number, _ in enumerate(columns)), tickets[0])


def _turn(results: Sequence[CallResult], number: int) -> TurnReference:
    turns = [(result, result.turns[number]) for result in results]
    return TurnReference(
        transcripts=frozenset(words(turn.transcript) for _, turn in turns),
        voice_to_voice_ms=median(turn.voice_to_voice_ms or 0.0 for _, turn in turns),
        gap_ms=max(gap_inside_ms(result.events, turn.turn) for result, turn in turns),
        reply_ms=median(reply_ms(result.events, turn.turn) for result, turn in turns),
    )

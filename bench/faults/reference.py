"""What undisturbed calls were like: the measure for those that are disturbed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from api.client import CallResult
from bench.faults.silence import gap_inside_ms, reply_ms
from bench.words import edit_distance, normalise

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnReference:
    """One file of a conversation, undisturbed: every transcript that it had, and what its replies sounded like.

    `said` are the words in it, empty where nobody knows them.
    """

    transcripts: frozenset[Words]
    said: Words
    voice_to_voice_ms: float
    gap_ms: float
    reply_ms: float

    def is_right(self, heard: Words) -> bool:
        """Whether the file was heard as when nothing is broken, or at least as well.

        Recognition of the same speech differs a little from call to call, with where its frames begin.
        """
        if heard in self.transcripts or not self.said:
            return heard in self.transcripts
        return edit_distance(self.said, heard) <= max(edit_distance(self.said, one) for one in self.transcripts)


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


def refer(results: Sequence[CallResult], tickets: Sequence[int], said: Sequence[str] = ()) -> Reference:
    """From undisturbed calls of one conversation and the tickets that each left; raises UnfitSpeechError.

    `said` are the words of each file, where they are known.
    """
    for result in results:
        for turn in result.turns:
            if turn.error or turn.voice_to_voice_ms is None:
                raise UnfitSpeechError(f"{turn.file}: not answered, though nothing was broken: {turn.error}")
    if len(set(tickets)) != 1:
        raise UnfitSpeechError(f"undisturbed calls left different numbers of tickets: {sorted(tickets)}")
    count = min(len(result.turns) for result in results)
    known = [words(text) for text in said] or [()] * count
    return Reference(tuple(_turn(results, number, known[number]) for number in range(count)), tickets[0])


def _turn(results: Sequence[CallResult], number: int, said: Words) -> TurnReference:
    turns = [(result, result.turns[number]) for result in results]
    return TurnReference(
        transcripts=frozenset(words(turn.transcript) for _, turn in turns),
        said=said,
        voice_to_voice_ms=median(turn.voice_to_voice_ms or 0.0 for _, turn in turns),
        gap_ms=max(gap_inside_ms(result.events, turn.turn) for result, turn in turns),
        reply_ms=median(reply_ms(result.events, turn.turn) for result, turn in turns),
    )

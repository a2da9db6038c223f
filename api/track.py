"""A turn's speech on its way to the caller's ear, pure: what waits, what was handed over, what of it has been heard.

Positions are milliseconds of the turn's speech from its beginning, times are monotonic milliseconds.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace

from api.audio import BYTES_PER_MS
from schemas.events import SpeechChunk, SpeechChunkKind

# What was heard longer ago is let go: other sides that turn out to be further behind than believed are not.
KEPT_MS = 5000
# About how fast voices speak: how long a sentence will be whose end has not been made yet.
SPOKEN_CHARS_PER_S = 15.0
SAMPLES_PER_MS = BYTES_PER_MS // 2


@dataclass(slots=True)
class Sentence:
    """The words of a sentence and where in the turn's speech they are: made so far, all of it once it is `whole`."""

    text: str
    begin_ms: float
    made_ms: float
    whole: bool = False

    def heard_until(self, heard_ms: float) -> str:
        """The words that were heard when so much of the turn had been."""
        expected_ms = self.begin_ms + 1000 * len(self.text) / SPOKEN_CHARS_PER_S
        end_ms = self.made_ms if self.whole else max(self.made_ms, expected_ms)
        return words_within(self.text, (heard_ms - self.begin_ms) / max(1.0, end_ms - self.begin_ms))


@dataclass(slots=True)
class Track:
    """The speech of one turn: `made_ms` of it came, `sent_ms` was handed over.

    `waiting` was not handed over yet, `kept` was and may be needed again, each with its position. `sentence` is the one
    at `sent_ms`, `sentence_ends` are those handed over that nobody knows to be heard yet, `told_ms` is where the last
    one ends that was: one whose voice failed amid it ends where the next begins. `sentences` are those with a voice.
    `ended` once the end of the turn was handed over. `echoes` where the caller's side sent the agent's own words back.
    """

    number: int
    made_ms: float = 0.0
    sent_ms: float = 0.0
    ends_at: float = 0.0
    report: tuple[float, float] | None = None
    waiting: deque[SpeechChunk] = field(default_factory=deque)
    kept: deque[tuple[float, SpeechChunk]] = field(default_factory=deque)
    sentence: int = 0
    sentence_ends: deque[tuple[int, float]] = field(default_factory=deque)
    told_ms: float = 0.0
    sentences: dict[int, Sentence] = field(default_factory=dict)
    ended: bool = False
    echoes: bool = False
    action: tuple[str, str] | None = None
    action_at: float = 0.0

    def heard_ms(self, now: float) -> float:
        """How much has been heard: as the other side reported and since then by the clock, else by the clock alone."""
        if self.report is not None:
            heard_ms, at = self.report
            return min(self.sent_ms, heard_ms + now - at)
        return self.sent_ms - min(self.sent_ms, max(0.0, self.ends_at - now))

    def heard_at(self, position_ms: float) -> float:
        """When the speech will have been heard up to there."""
        if self.report is not None:
            heard_ms, at = self.report
            return at + position_ms - heard_ms
        return self.ends_at - (self.sent_ms - position_ms)

    def reported(self, heard_ms: float, now: float) -> None:
        """The other side says how much has been heard; never less than before, never more than was handed over."""
        known_ms = self.report[0] if self.report is not None else 0.0
        self.report = (min(max(heard_ms, known_ms), self.sent_ms), now)

    def active(self, now: float) -> bool:
        """Whether it is being heard, or more of it is to come."""
        return self.made_ms > 0 and not (self.ended and self.heard_ms(now) >= self.sent_ms)

    def add(self, chunk: SpeechChunk) -> None:
        """A chunk was made; it waits."""
        self.waiting.append(chunk)
        if chunk.kind is not SpeechChunkKind.AUDIO:
            return
        if chunk.text and chunk.sentence not in self.sentences:
            self.sentences[chunk.sentence] = Sentence(chunk.text, self.made_ms, self.made_ms)
        self.made_ms += length_ms(chunk)
        if sentence := self.sentences.get(chunk.sentence):
            sentence.made_ms = self.made_ms
            sentence.whole |= chunk.last_of_sentence

    def hand_over(self, now: float, free_at: float) -> SpeechChunk:
        """The chunk that has waited longest; the other side will have played all that it has by `free_at`."""
        chunk = self.waiting.popleft()
        self._let_go(now)
        self.kept.append((self.sent_ms, chunk))
        if chunk.kind is SpeechChunkKind.END_OF_TURN:
            self.ended = True
        elif chunk.kind is SpeechChunkKind.AUDIO:
            if chunk.sentence != self.sentence:
                self._end_sentence()
            if self.report is not None and self.heard_ms(now) >= self.sent_ms:
                self.report = (self.sent_ms, now)  # it ran dry: nothing was heard meanwhile
            self.ends_at = max(now, free_at) + length_ms(chunk)
            self.sent_ms += length_ms(chunk)
            self.sentence = chunk.sentence
            if chunk.last_of_sentence:
                self._end_sentence()
        return chunk

    def tell(self) -> tuple[int, float]:
        """The first of `sentence_ends`: it is known to be heard."""
        sentence, self.told_ms = self.sentence_ends.popleft()
        return sentence, self.told_ms

    def rewind(self, now: float) -> int:
        """Takes back what has not been heard, to be handed over anew; returns how much was heard, in whole ms.

        A chunk of which a part was heard is cut in two.
        """
        oldest_ms = self.kept[0][0] if self.kept else self.sent_ms
        heard_ms = max(math.ceil(oldest_ms), math.floor(self.heard_ms(now)))
        rest = [_from(chunk, heard_ms - at_ms) for at_ms, chunk in self.kept if _is_left(chunk, at_ms, heard_ms)]
        if rest:
            self.sentence = rest[0].sentence
        self.ended = self.ended and all(chunk.kind is not SpeechChunkKind.END_OF_TURN for chunk in rest)
        self.waiting.extendleft(reversed(rest))
        self.kept.clear()
        self.sent_ms, self.ends_at = min(self.sent_ms, heard_ms), now
        self.report = None if self.report is None else (self.sent_ms, now)
        self.sentence_ends = deque((number, end_ms) for number, end_ms in self.sentence_ends if end_ms <= heard_ms)
        return heard_ms

    def words_until(self, sentence: int, heard_ms: float) -> str:
        """The words of the sentence that were heard when so much of the turn had been; empty where none are known."""
        known = self.sentences.get(sentence)
        return "" if known is None else known.heard_until(heard_ms)

    def running_at(self, heard_ms: float) -> int | None:
        """The sentence amid which the caller was when so much of the turn had been heard; None where that is told."""
        begun = [number for number, one in self.sentences.items() if one.begin_ms < heard_ms]
        return begun[-1] if begun and self.sentences[begun[-1]].made_ms > self.told_ms else None

    def words_at(self, now: float) -> str:
        """The sentence that is being heard and the one before it: what an echo consists of."""
        begun = [one.text for one in self.sentences.values() if one.begin_ms <= self.heard_ms(now)]
        return " ".join(begun[-2:])

    def _end_sentence(self) -> None:
        """What was handed over since the last end is a sentence."""
        ended_ms = self.sentence_ends[-1][1] if self.sentence_ends else self.told_ms
        if self.sent_ms > ended_ms:
            self.sentence_ends.append((self.sentence, self.sent_ms))

    def _let_go(self, now: float) -> None:
        heard_ms = self.heard_ms(now) - KEPT_MS
        while self.kept and self.kept[0][0] + length_ms(self.kept[0][1]) <= heard_ms:
            self.kept.popleft()


def length_ms(chunk: SpeechChunk) -> float:
    """How long the chunk plays."""
    return len(chunk.pcm) / BYTES_PER_MS


def words_within(text: str, share: float) -> str:
    """The whole words within that share (0 to 1) of a sentence's sound: letters are taken to last equally long."""
    if share >= 1.0:
        return text
    heard = round(max(0.0, share) * len(text))
    return text[:heard] if text[heard : heard + 1].isspace() else text[:heard].rpartition(" ")[0]


def _is_left(chunk: SpeechChunk, at_ms: float, heard_ms: float) -> bool:
    """Whether a chunk at that position was not, or not all, heard."""
    if chunk.kind is SpeechChunkKind.AUDIO:
        return at_ms + length_ms(chunk) > heard_ms
    return at_ms > heard_ms


def _from(chunk: SpeechChunk, heard_ms: float) -> SpeechChunk:
    """The chunk without its beginning; its words were shown with that."""
    samples = round(heard_ms * SAMPLES_PER_MS)
    if samples <= 0 or chunk.kind is not SpeechChunkKind.AUDIO:
        return chunk
    return replace(chunk, pcm=chunk.pcm[2 * samples :], sample_index=chunk.sample_index + samples, text="")

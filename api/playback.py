"""What the caller's ear gets, pure: holding back, playing, barge-in, what was heard. Times are monotonic milliseconds.

The agent's speech is handed to the caller's side as it comes, faster than it plays, so what has been heard is known
from the other side's playout reports or marks, and between them from the clock.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from api.audio import BYTES_PER_MS
from schemas.event import Event
from schemas.events import (
    Control,
    ControlKind,
    Intent,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)

HELD_MAX = 2000
TURNS_MAX = 256  # kept in mind; what concerns older ones has long been read
NO_REVISION = -1
TALKING_MS = 1000
REPORT_GRACE_MS = 2000
ACTION_GRACE_MS = 10_000
# About how fast voices speak: how long a sentence will be whose end has not been made yet.
SPOKEN_CHARS_PER_S = 15.0


@dataclass(frozen=True, slots=True)
class Play:
    """Send the audio."""

    chunk: SpeechChunk


@dataclass(frozen=True, slots=True)
class Tell:
    """Show the event to the other side."""

    event: Event


@dataclass(frozen=True, slots=True)
class Cut:
    """The caller spoke over the turn: empty the other side's buffer and say in the log what had been heard.

    `words` are those of the sentence, up to where it was cut.
    """

    turn: int
    sentence: int
    heard_ms: int
    cause: Event
    words: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """The caller heard the sentence to its end, its `words`, and with `end_of_turn` all that the turn had to say."""

    turn: int
    sentence: int
    heard_ms: int
    end_of_turn: bool
    words: str = ""


@dataclass(frozen=True, slots=True)
class Act:
    """What the agent decided for when this turn has been heard: hang_up or transfer."""

    turn: int
    action: str
    target: str


Effect = Play | Tell | Cut | Heard | Act


@dataclass(slots=True)
class _Sentence:
    """The words of a sentence and where in the turn's speech they are; `end_ms` once its last chunk was sent."""

    text: str
    begin_ms: float
    end_ms: float | None = None

    def heard_until(self, heard_ms: float, sent_ms: float) -> str:
        """The words that were heard when so much of the turn had been, of so much that was sent."""
        expected_ms = self.begin_ms + 1000 * len(self.text) / SPOKEN_CHARS_PER_S
        end_ms = max(sent_ms, expected_ms) if self.end_ms is None else self.end_ms
        return words_within(self.text, (heard_ms - self.begin_ms) / max(1.0, end_ms - self.begin_ms))


@dataclass(slots=True)
class _Turn:
    number: int
    sent_ms: float = 0.0
    ends_at: float = 0.0
    report: tuple[float, float] | None = None
    sentence: int = 0
    sentence_ends: deque[tuple[int, float]] = field(default_factory=deque)
    sentences: dict[int, _Sentence] = field(default_factory=dict)
    ended: bool = False
    action: tuple[str, str] | None = None
    action_at: float = 0.0

    def heard_ms(self, now: float) -> float:
        if self.report is not None:
            heard_ms, at = self.report
            return min(self.sent_ms, heard_ms + now - at)
        return self.sent_ms - min(self.sent_ms, max(0.0, self.ends_at - now))

    def heard_at(self, position_ms: float) -> float:
        """When the turn's speech will have been heard up to there."""
        if self.report is not None:
            heard_ms, at = self.report
            return at + position_ms - heard_ms
        return self.ends_at - (self.sent_ms - position_ms)

    def words_of(self, sentence: int) -> str:
        """The words of the sentence, empty where none are known."""
        return self.sentences[sentence].text if sentence in self.sentences else ""

    def words_until(self, sentence: int, heard_ms: float) -> str:
        """The words of the sentence that were heard when so much of the turn had been."""
        known = self.sentences.get(sentence)
        return "" if known is None else known.heard_until(heard_ms, self.sent_ms)


@dataclass(slots=True)
class _Speaking:
    utterance: int
    last_at: float
    cause: Event
    talking: bool = True


def words_within(text: str, share: float) -> str:
    """The whole words within that share (0 to 1) of a sentence's sound: letters are taken to last equally long."""
    if share >= 1.0:
        return text
    heard = round(max(0.0, share) * len(text))
    return text[:heard] if text[heard : heard + 1].isspace() else text[:heard].rpartition(" ")[0]


def committed_revision(reading: Transcript | None, final: Transcript) -> int:
    """The revision whose replies may be heard, now that the final is there; NO_REVISION where it has other words.

    `reading` is the newest partial of the turn. Two readers of the same audio may find other words in it, one of them a
    straggler, and the log may have the partial of one with the final of the other.
    """
    other = reading is not None and reading.revision == final.revision and reading.text != final.text
    return NO_REVISION if other else final.revision


class Playback:
    """The playing side of one call. Every method returns what is to be done now, in order."""

    def __init__(self, barge_in_ms: int = 250) -> None:
        self._barge_in_ms = barge_in_ms
        self._turns: dict[int, _Turn] = {}
        self._over: set[int] = set()
        self._cut: set[int] = set()
        self._utterances: dict[int, int] = {0: -1}
        self._committed: dict[int, int] = {}
        self._void: dict[int, int] = {}
        self._readings: dict[int, Transcript] = {}
        self._held: deque[Response | SpeechChunk] = deque(maxlen=HELD_MAX)
        self._speaking: _Speaking | None = None
        self._barge_in_at: float | None = None
        self._free_at = 0.0
        self._reports = False
        self.turn = 0
        self.overflowed = 0

    @property
    def held(self) -> int:
        """Events that wait for the caller to end, at most HELD_MAX; what came on top is in `overflowed`."""
        return len(self._held)

    def event(self, event: Event, now: float) -> list[Effect]:
        """An event of the session from the log."""
        if isinstance(event, Transcript):
            return [Tell(event), *self._transcript(event, now)]
        if isinstance(event, Response | SpeechChunk):
            return self._gate(event, now)
        if isinstance(event, Intent) and not event.committed:
            return []
        return [Tell(event)]

    def playout(self, turn: int, heard_ms: int, now: float) -> list[Effect]:
        """The other side says how much of the turn has been heard; more than was sent counts as all of it."""
        self._reports = True
        state = self._turns.get(turn)
        if state is None:
            return []
        known_ms = state.report[0] if state.report is not None else 0.0
        state.report = (min(max(float(heard_ms), known_ms), state.sent_ms), now)
        return list(self._heard(state, now, confirmed=True))

    def tick(self, now: float) -> list[Effect]:
        """Time has come to `due`, or past it."""
        effects: list[Effect] = []
        if self._barge_in_at is not None and now >= self._barge_in_at and self._speaking is not None:
            effects += self._barge_in(self._speaking.utterance, self._speaking.cause, now)
        if self._speaking is not None and now >= self._speaking.last_at + TALKING_MS:
            self._speaking.talking = False
        for state in list(self._turns.values()):
            effects += self._heard(state, now, confirmed=False)
        return effects + self._release(now)

    def interrupt(self, turn: int, cause: Event, now: float) -> list[Effect]:
        """Somebody else stops the turn's speech."""
        return list(self._cut_turn(turn, cause, now)) if turn in self._turns else []

    def settle(self, over: Iterable[int], cut: Iterable[int]) -> None:
        """Before anything is recalled: turns that the caller has heard, and turns that were spoken over."""
        self._over.update(over)
        self._cut.update(cut)

    def recall(self, event: Event, at: float) -> list[Effect]:
        """An event that happened then, of which the caller's side knows; returns what should have come of it.

        That is done again, if it was done: ids make it harmless. Recall in the order of time, before anything else.
        """
        if isinstance(event, Transcript):
            return self._transcript(event, at)
        if isinstance(event, Response):
            return self._response(event, at)
        if isinstance(event, SpeechChunk):
            self._recall_speech(event, at)
        elif isinstance(event, Control) and event.kind is ControlKind.PLAYOUT and event.turn in self._turns:
            ends = self._turns[event.turn].sentence_ends
            while ends and ends[0][1] <= event.heard_ms + 1:
                ends.popleft()
        return []

    def _recall_speech(self, event: SpeechChunk, at: float) -> None:
        self.turn = max(self.turn, event.turn)
        if event.turn in self._cut or event.turn in self._over:
            return
        if event.kind is SpeechChunkKind.AUDIO:
            self._play(event, at)
        elif event.kind is SpeechChunkKind.END_OF_TURN:
            self._turns.setdefault(event.turn, _Turn(event.turn, ends_at=at)).ended = True

    def resume(self, now: float) -> None:
        """The caller is back: what the agent does after its words waits for them anew."""
        for state in self._turns.values():
            state.action_at = max(state.action_at, now + ACTION_GRACE_MS)

    def heard_until(self, at: float) -> tuple[int, float] | None:
        """The turn being said and how many milliseconds of it had been heard by then; None while nothing is."""
        for number in sorted(self._turns):
            state = self._turns[number]
            if self._active(state, at):
                return number, state.heard_ms(at)
        return None

    def due(self) -> float | None:
        """When `tick` is to be called next; None while nothing depends on time."""
        times = [] if self._barge_in_at is None else [self._barge_in_at]
        if self._held and self._speaking is not None and self._speaking.talking:
            times.append(self._speaking.last_at + TALKING_MS)
        for state in self._turns.values():
            if state.sentence_ends:
                times.append(self._believed_at(state, state.sentence_ends[0][1]))
            elif state.ended:
                times.append(self._believed_at(state, state.sent_ms))
            elif state.action is not None:
                times.append(state.action_at)
        return min(times, default=None)

    def playing(self, now: float) -> bool:
        """Whether the agent is being heard or about to say more."""
        return any(self._active(state, now) for state in self._turns.values())

    def _transcript(self, event: Transcript, now: float) -> list[Effect]:
        if event.kind is TranscriptKind.FINAL:
            return self._final(event, now)
        if event.kind is TranscriptKind.SPEECH_RESUMED:
            self._resumed(event)
        speaking = self._speaking
        if speaking is None or speaking.utterance != event.utterance:
            speaking = self._speaking = _Speaking(event.utterance, now, event)
            self._barge_in_at = None
        speaking.last_at = now
        speaking.talking = event.kind is not TranscriptKind.PARTIAL or bool(event.text)
        if event.kind is TranscriptKind.SPEECH_STARTED:
            if any(self._spoken_over(state, event.utterance, now) for state in self._turns.values()):
                self._barge_in_at = now + self._barge_in_ms
        elif event.kind is TranscriptKind.PARTIAL:
            self._barge_in_at = None
            self._readings[event.turn] = event
            if not event.text:  # it was a noise
                return self._release(now)
            speaking.cause = event
            return self._barge_in(event.utterance, event, now)
        return []

    def _final(self, event: Transcript, now: float) -> list[Effect]:
        self._utterances[event.turn] = event.utterance
        self._committed[event.turn] = committed_revision(self._readings.pop(event.turn, None), event)
        self._void.pop(event.turn, None)
        self.turn = max(self.turn, event.turn)
        self._forget(event.turn - TURNS_MAX)
        effects = self._barge_in(event.utterance, event, now)
        effects += self._supersede(event, now)
        self._speaking = self._barge_in_at = None
        return effects + self._release(now)

    def _forget(self, turn: int) -> None:
        """A call of days must not grow for ever."""
        self._utterances.pop(turn, None)
        self._committed.pop(turn, None)
        self._void.pop(turn, None)
        self._over.discard(turn)
        self._cut.discard(turn)

    def _supersede(self, final: Transcript, now: float) -> list[Effect]:
        """Replies that waited while the caller went on talking are never said."""
        waiting = {held.turn for held in self._held if isinstance(held, SpeechChunk)}
        overtaken = sorted(turn for turn in waiting if self._utterance_of(turn) < final.utterance)
        return [effect for turn in overtaken for effect in self._cut_turn(turn, final, now)]

    def _barge_in(self, utterance: int, cause: Event, now: float) -> list[Effect]:
        self._barge_in_at = None
        turns = [state.number for state in self._turns.values() if self._spoken_over(state, utterance, now)]
        return [effect for turn in turns for effect in self._cut_turn(turn, cause, now)]

    def _spoken_over(self, state: _Turn, utterance: int, now: float) -> bool:
        return self._active(state, now) and self._utterance_of(state.number) < utterance

    def _active(self, state: _Turn, now: float) -> bool:
        return state.sent_ms > 0 and not (state.ended and state.heard_ms(now) >= state.sent_ms)

    def _utterance_of(self, turn: int) -> int:
        """The utterance that the turn answers; one whose final was not seen yet counts as the newest."""
        return self._utterances.get(turn, 2**31)

    def _cut_turn(self, turn: int, cause: Event, now: float) -> list[Effect]:
        state = self._turns.pop(turn, None)
        self._cut.add(turn)
        self._held = deque((held for held in self._held if held.turn != turn), HELD_MAX)
        self._free_at = max((other.ends_at for other in self._turns.values()), default=now)
        if state is None:
            return [Cut(turn, 0, 0, cause)]
        heard_ms = state.heard_ms(now)
        sentence = next((number for number, end_ms in state.sentence_ends if end_ms > heard_ms), state.sentence)
        return [Cut(turn, sentence, round(heard_ms), cause, state.words_until(sentence, heard_ms))]

    def _gate(self, event: Response | SpeechChunk, now: float) -> list[Effect]:
        """Nothing speculative reaches the caller, and no reply begins while the caller is talking or seems to begin."""
        if self._is_void(event):
            return []
        if self._held and any(held.turn == event.turn and type(held) is type(event) for held in self._held):
            self._hold(event)
            return self._release(now)
        if self._may_pass(event, now):
            return self._pass(event, now)
        self._hold(event)
        return []

    def _hold(self, event: Response | SpeechChunk) -> None:
        """The oldest goes when there are too many."""
        self.overflowed += len(self._held) == HELD_MAX
        self._held.append(event)

    def _may_pass(self, event: Response | SpeechChunk, now: float) -> bool:
        if event.turn in self._cut:
            return True
        if not event.committed and self._committed.get(event.turn) != event.revision:
            return False
        if isinstance(event, Response) or event.turn in self._turns:
            return True
        speaking = self._speaking
        if speaking is None or not speaking.talking or now >= speaking.last_at + TALKING_MS:
            return True
        return self._utterance_of(event.turn) >= speaking.utterance

    def _release(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        waiting: deque[Response | SpeechChunk] = deque(maxlen=HELD_MAX)
        blocked: set[tuple[int, type[Event]]] = set()
        for event in self._held:
            line = (event.turn, type(event))
            if self._is_void(event):
                continue
            if line in blocked or not self._may_pass(event, now):
                blocked.add(line)
                waiting.append(event)
            else:
                effects += self._pass(event, now)
        self._held = waiting
        return effects

    def _resumed(self, event: Transcript) -> None:
        """The caller went on: what was made for the revisions so far is void, also what is still on its way."""
        self._void[event.turn] = max(event.revision, self._void.get(event.turn, event.revision))
        self._readings.pop(event.turn, None)
        self._held = deque((held for held in self._held if not self._is_void(held)), HELD_MAX)

    def _is_void(self, event: Response | SpeechChunk) -> bool:
        """Whether it was made for words that were not, or not yet, all that the caller wanted to say."""
        if event.committed:
            return False
        if event.turn in self._committed:
            return self._committed[event.turn] != event.revision
        return event.revision <= self._void.get(event.turn, NO_REVISION)

    def _pass(self, event: Response | SpeechChunk, now: float) -> list[Effect]:
        if isinstance(event, Response):
            return [Tell(event), *self._response(event, now)]
        self.turn = max(self.turn, event.turn)
        if event.kind is SpeechChunkKind.AUDIO:
            return [] if event.turn in self._cut else self._play(event, now)
        if event.kind is not SpeechChunkKind.END_OF_TURN or event.turn in self._cut or event.turn in self._over:
            return [Tell(event)]
        state = self._turns.setdefault(event.turn, _Turn(event.turn, ends_at=now))
        state.ended = True
        return [Tell(event), *self._heard(state, now, confirmed=False)]

    def _play(self, chunk: SpeechChunk, now: float) -> list[Effect]:
        state = self._turns.setdefault(chunk.turn, _Turn(chunk.turn))
        duration_ms = len(chunk.pcm) / BYTES_PER_MS
        if state.report is not None and state.heard_ms(now) >= state.sent_ms:
            state.report = (state.sent_ms, now)  # it ran dry: nothing was heard meanwhile
        self._free_at = state.ends_at = max(now, self._free_at) + duration_ms
        state.action_at = state.ends_at + ACTION_GRACE_MS
        if chunk.text:
            state.sentences[chunk.sentence] = _Sentence(chunk.text, state.sent_ms)
        state.sent_ms += duration_ms
        state.sentence = chunk.sentence
        if chunk.last_of_sentence:
            state.sentence_ends.append((chunk.sentence, state.sent_ms))
            if chunk.sentence in state.sentences:
                state.sentences[chunk.sentence].end_ms = state.sent_ms
        return [Play(chunk)]

    def _response(self, event: Response, now: float) -> list[Effect]:
        if event.kind is not ResponseKind.COMPLETED or not event.action or event.turn in self._cut:
            return []
        if event.turn in self._over:
            return [Act(event.turn, event.action, event.action_target)]
        state = self._turns.setdefault(event.turn, _Turn(event.turn, ends_at=now))
        state.action = (event.action, event.action_target)
        state.action_at = max(state.ends_at, now) + ACTION_GRACE_MS
        return []

    def _believed_at(self, state: _Turn, position_ms: float) -> float:
        """When a position counts as heard without a report of it."""
        return state.heard_at(position_ms) + (REPORT_GRACE_MS if self._reports and state.sent_ms else 0)

    def _heard(self, state: _Turn, now: float, confirmed: bool) -> Iterator[Effect]:
        """The sentences, and the turn, that have been heard to their ends."""
        reported_ms = state.report[0] + 1 if confirmed and state.report is not None else -1.0
        last: tuple[int, float] | None = None
        while state.sentence_ends:
            sentence, end_ms = state.sentence_ends[0]
            if reported_ms < end_ms and now < self._believed_at(state, end_ms):
                break
            last = state.sentence_ends.popleft()
            if state.sentence_ends or not state.ended:
                yield Heard(state.number, sentence, round(end_ms), False, state.words_of(sentence))
        all_heard = reported_ms >= state.sent_ms or now >= self._believed_at(state, state.sent_ms)
        ended = state.ended and (last is not None or all_heard)
        overdue = state.action is not None and now >= state.action_at
        if not state.sentence_ends and (ended or overdue):
            words = state.words_of(state.sentence)
            yield from self._finish(state, Heard(state.number, state.sentence, round(state.sent_ms), True, words))

    def _finish(self, state: _Turn, heard: Heard) -> Iterator[Effect]:
        self._turns.pop(state.number, None)
        self._over.add(state.number)
        yield heard
        if state.action is not None:
            yield Act(state.number, *state.action)

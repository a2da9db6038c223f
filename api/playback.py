"""What the caller's ear gets, pure: holding back, playing, barge-in, what was heard. Times are monotonic milliseconds.

The agent's speech is handed to the caller's side faster than it plays, by a bounded lead, so what has been heard is
known from the other side's playout reports or marks, and between them from the clock.

A sound over the agent hushes it at once, before anyone knows what it is: what has not been heard is taken back. Words
make it a barge-in, and the turn is cut. A cough, a "mm-hm" or an echo of the agent does not: it goes on where the
caller stopped hearing it.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from api.track import Track, length_ms
from processors.backchannel import is_backchannel, is_echo
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
WAITING_MS_MAX = 300_000
TURNS_MAX = 256  # kept in mind; what concerns older ones has long been read
NO_REVISION = -1
TALKING_MS = 1000
REPORT_GRACE_MS = 2000
ACTION_GRACE_MS = 10_000
# A caller's side on which there was a sound so lately is still making it.
LOUD_MS = 300
# Who is heard again after a pause is perhaps going on: stt has told so long after the first of it, where it is speech,
# and what was no more than a click is over so long after the last.
SOUND_MS_MAX = 220
SOUND_LASTS_MS = 100


@dataclass(frozen=True, slots=True)
class Play:
    """Send the audio."""

    chunk: SpeechChunk


@dataclass(frozen=True, slots=True)
class Tell:
    """Show the event to the other side."""

    event: Event


@dataclass(frozen=True, slots=True)
class Hush:
    """There is a sound over the turn: empty the other side's buffer of it. More of the turn may follow."""

    turn: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The caller spoke over the turn, which is hushed: say in the log what had been heard. Nothing follows of it.

    `words` are those of the sentence, up to where it was cut.
    """

    turn: int
    sentence: int
    heard_ms: int
    cause: Event
    words: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """The caller heard the sentence to its end, and with `end_of_turn` all that the turn had to say.

    `words` are those that had a voice: fewer than the sentence has where its voice failed, or the call ended, amid it;
    none where all of it went out as text. Whether a client shows that, and anybody reads it, is not known here.
    """

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


Effect = Play | Tell | Hush | Cut | Heard | Act


@dataclass(slots=True)
class _Speaking:
    utterance: int
    last_at: float
    talking: bool = True


@dataclass(frozen=True, slots=True)
class _Hushed:
    """By which utterance, and until when at the latest: what it is must be known by then."""

    utterance: int
    cause: Event
    until: float


def committed_revision(reading: Transcript | None, final: Transcript) -> int:
    """The revision whose replies may be heard, now that the final is there; NO_REVISION where it has other words.

    `reading` is the newest partial of the turn. Two readers of the same audio may find other words in it, one of them a
    straggler, and the log may have the partial of one with the final of the other.
    """
    other = reading is not None and reading.revision == final.revision and reading.text != final.text
    return NO_REVISION if other else final.revision


class Playback:
    """The playing side of one call. Every method returns what is to be done now, in order."""

    def __init__(self, barge_in_ms: int = 1500, lead_ms: int = 5000) -> None:
        """Speech over the agent that lasts `barge_in_ms` is a barge-in without words, too.

        Speech is handed over up to a chunk more than `lead_ms` before it is heard; the rest waits here. Where the other
        side is perhaps gone, set `believes` to False: nothing counts as heard by the clock then, and no action is due.
        """
        self.believes = True
        self.believes_since = -math.inf  # again, after the other side was perhaps gone: what it reports comes first
        self._barge_in_ms = barge_in_ms
        self._lead_ms = lead_ms
        self._tracks: dict[int, Track] = {}
        self._over: set[int] = set()
        self._cut: set[int] = set()
        self._utterances: dict[int, int] = {0: -1}
        self._committed: dict[int, int] = {}
        self._void: dict[int, int] = {}
        self._readings: dict[int, Transcript] = {}
        self._held: deque[Response | SpeechChunk] = deque(maxlen=HELD_MAX)
        self._speaking: _Speaking | None = None
        self._hushed: _Hushed | None = None
        self._loud_at = -math.inf
        self._sound_at = self._sound_until = -math.inf
        self._reports = False
        self._recalling = False
        self.turn = 0
        self.overflowed = 0
        self.truncated = 0

    @property
    def held(self) -> int:
        """Events that wait for the caller to end, at most HELD_MAX; what came on top is in `overflowed`."""
        return len(self._held)

    @property
    def waiting_ms(self) -> float:
        """Speech that waits to be handed over, at most WAITING_MS_MAX; chunks that came on top are in `truncated`."""
        return sum(track.made_ms - track.sent_ms for track in self._tracks.values())

    @property
    def hushed(self) -> bool:
        """Whether speech is held back until it is known what the caller's side is saying."""
        return self._hushed is not None

    @property
    def listening(self) -> bool:
        """Whether the caller has begun an utterance whose end has not been told."""
        return self._speaking is not None

    def event(self, event: Event, now: float) -> list[Effect]:
        """An event of the session from the log."""
        if isinstance(event, Transcript):
            return [Tell(event), *self._transcript(event, now)]
        if isinstance(event, Response | SpeechChunk):
            return self._gate(event, now)
        if isinstance(event, Intent) and not event.committed:
            return []
        return [Tell(event)]

    def loud(self, now: float) -> None:
        """There is a sound on the caller's side; worth saying while speech is hushed."""
        self._loud_at = now

    def sounds(self, begins: bool, now: float) -> None:
        """There is what may be a voice on the caller's side; `begins` after a pause.

        A reply that has not begun waits for as long as nobody knows what it is, and is never said where it is words.
        """
        if begins:
            self._sound_at = now
        until = min(self._sound_at + SOUND_MS_MAX, now + SOUND_LASTS_MS)
        if until > now:
            self._sound_until = until

    def playout(self, turn: int, heard_ms: int, now: float) -> list[Effect]:
        """The other side says how much of the turn has been heard; more than was sent counts as all of it."""
        self._reports = True
        track = self._tracks.get(turn)
        if track is None:
            return []
        track.reported(float(heard_ms), now)
        return list(self._heard(track, now, confirmed=True))

    def tick(self, now: float) -> list[Effect]:
        """Time has come to `due`, or past it."""
        effects: list[Effect] = []
        if self._hushed is not None and now >= self._hushed.until:
            utterance, cause = self._hushed.utterance, self._hushed.cause
            lasts = now <= self._loud_at + LOUD_MS
            effects += self._barge_in(utterance, cause, now) if lasts else self._go_on(utterance, now)
        if self._speaking is not None and now >= self._speaking.last_at + TALKING_MS:
            self._speaking.talking = False
        if now >= self._sound_until:
            self._sound_until = -math.inf
        effects += self._hand_over(now)
        for track in list(self._tracks.values()):
            effects += self._heard(track, now, confirmed=False)
        return effects + self._release(now)

    def stop(self, now: float) -> list[Heard]:
        """The call has ended by then: what of its speech was heard and is not told yet, to a word amid a sentence.

        What was handed over is forgotten.
        """
        told: list[Heard] = []
        for number in sorted(self._tracks):
            track = self._tracks.pop(number)
            heard_ms = track.heard_ms(now)
            while track.sentence_ends and track.sentence_ends[0][1] <= heard_ms:
                told.append(_next_heard(track))
            sentence = track.running_at(heard_ms)
            if sentence is not None and (words := track.words_until(sentence, heard_ms)):
                told.append(Heard(number, sentence, round(heard_ms), False, words))
        return told

    def interrupt(self, turn: int, cause: Event, now: float) -> list[Effect]:
        """Somebody else stops the turn's speech."""
        return [*self._cut_turn(turn, cause, now), *self._hand_over(now)] if turn in self._tracks else []

    def settle(self, over: Iterable[int], cut: Iterable[int]) -> None:
        """Before anything is recalled: turns that the caller has heard, and turns that were spoken over."""
        self._over.update(over)
        self._cut.update(cut)
        self._recalling = True  # what is recalled was handed over, whenever that was

    def recall(self, event: Event, at: float) -> list[Effect]:
        """An event that happened then, of which the caller's side knows; returns what should have come of it.

        That is done again, if it was done: ids make it harmless. Recall in the order of time, before anything else.
        What was hushed and went on since then is where the caller's side has it, and nothing of it is sent again.
        """
        if self._hushed is not None and at >= self._hushed.until:
            self._go_on(self._hushed.utterance, at)
        effects: list[Effect] = []
        if isinstance(event, Transcript):
            effects = self._transcript(event, at)
        elif isinstance(event, Response):
            effects = self._response(event, at)
        elif isinstance(event, SpeechChunk):
            self._recall_speech(event, at)
        elif isinstance(event, Control) and event.kind is ControlKind.PLAYOUT and event.turn in self._tracks:
            track = self._tracks[event.turn]
            while track.sentence_ends and track.sentence_ends[0][1] <= event.heard_ms + 1:
                track.tell()
        return [again for effect in effects for again in _done_again(effect)]

    def _recall_speech(self, event: SpeechChunk, at: float) -> None:
        self.turn = max(self.turn, event.turn)
        if event.turn not in self._cut and event.turn not in self._over:
            self._track(event.turn, at).add(event)
            self._hand_over(at)

    def resume(self, now: float) -> list[Effect]:
        """The caller is back, all is recalled: what is hushed is cleared, and actions wait anew for their words."""
        self._recalling = False
        for track in self._tracks.values():
            track.action_at = max(track.action_at, now + ACTION_GRACE_MS)
        hushed = [track for track in self._tracks.values() if self._is_hushed(track)]
        return [Hush(track.number, round(track.sent_ms)) for track in hushed]

    def heard_until(self, at: float) -> tuple[int, float] | None:
        """The turn being said and how many milliseconds of it had been heard by then; None while nothing is."""
        for number in sorted(self._tracks):
            track = self._tracks[number]
            if track.active(at):
                return number, track.heard_ms(at)
        return None

    def due(self) -> float | None:
        """When `tick` is to be called next; None while nothing depends on time."""
        times = [] if self._hushed is None else [self._hushed.until]
        if self._held and self._speaking is not None and self._speaking.talking:
            times.append(self._speaking.last_at + TALKING_MS)
        if self._held and self._sound_until > -math.inf:
            times.append(self._sound_until)
        for track in self._tracks.values():
            if track.waiting and not self._is_hushed(track):
                times.append(self._room_at())
            if track.sentence_ends:
                times.append(self._believed_at(track, track.sentence_ends[0][1]))
            elif track.ended:
                times.append(self._believed_at(track, track.sent_ms))
            else:
                times.append(self._action_due(track))
        return min((at for at in times if at < math.inf), default=None)

    def playing(self, now: float) -> bool:
        """Whether the agent is being heard or about to say more."""
        return any(track.active(now) for track in self._tracks.values())

    # What the caller says.

    def _transcript(self, event: Transcript, now: float) -> list[Effect]:
        if event.kind is TranscriptKind.FINAL:
            return self._final(event, now)
        if self._speaking is None:
            self._speaking = _Speaking(event.utterance, now)
        speaking = self._speaking
        speaking.utterance, speaking.last_at, speaking.talking = event.utterance, now, True
        if event.kind is not TranscriptKind.PARTIAL:
            if event.kind is TranscriptKind.SPEECH_RESUMED:
                self._resumed(event)
            return self._hush(event, now)
        self._readings[event.turn] = event
        if event.text and self._means(event, now):
            return self._barge_in(event.utterance, event, now)
        speaking.talking = False
        return self._go_on(event.utterance, now) + self._release(now)

    def _final(self, event: Transcript, now: float) -> list[Effect]:
        self._utterances[event.turn] = event.utterance
        self._committed[event.turn] = committed_revision(self._readings.pop(event.turn, None), event)
        self._void.pop(event.turn, None)
        self.turn = max(self.turn, event.turn)
        self._forget(event.turn - TURNS_MAX)
        if self._means(event, now):
            effects = self._barge_in(event.utterance, event, now) + self._supersede(event, now)
        else:
            effects = self._go_on(event.utterance, now)
        self._speaking = None
        return effects + self._release(now)

    def _means(self, event: Transcript, now: float) -> bool:
        """Whether the caller wants to say something; one whom nobody could read is asked to say it again."""
        if is_backchannel(event.text):
            return False
        for track in self._spoken_over(event.utterance, now):
            if is_echo(event.text, track.words_at(now)):
                track.echoes = True
                return False
        return True

    def _forget(self, turn: int) -> None:
        """A call of days must not grow for ever."""
        self._utterances.pop(turn, None)
        self._committed.pop(turn, None)
        self._void.pop(turn, None)
        self._over.discard(turn)
        self._cut.discard(turn)

    def _supersede(self, final: Transcript, now: float) -> list[Effect]:
        """Replies that waited while the caller went on talking are never said, nor is done what was to follow them."""
        waiting = {held.turn for held in self._held if isinstance(held, SpeechChunk)}
        waiting |= {track.number for track in self._tracks.values() if track.action is not None and not track.made_ms}
        overtaken = sorted(turn for turn in waiting if self._utterance_of(turn) < final.utterance)
        return [effect for turn in overtaken for effect in self._cut_turn(turn, final, now)]

    # Hushing, and what comes of it.

    def _hush(self, event: Transcript, now: float) -> list[Effect]:
        """There is speech over the agent, or a cough. Where the line sends echoes, only words tell one from another."""
        over = self._spoken_over(event.utterance, now)
        if not over or any(track.echoes for track in over):
            return []
        fresh = [track for track in over if not self._is_hushed(track)]
        self._hushed = _Hushed(event.utterance, event, now + self._barge_in_ms)
        return [Hush(track.number, track.rewind(now)) for track in fresh]

    def _is_hushed(self, track: Track) -> bool:
        return self._hushed is not None and self._utterance_of(track.number) < self._hushed.utterance

    def _go_on(self, utterance: int, now: float) -> list[Effect]:
        """The utterance was nothing to stop for: what it hushed is said."""
        if self._hushed is not None and self._hushed.utterance <= utterance:
            self._hushed = None
        return self._hand_over(now)

    def _barge_in(self, utterance: int, cause: Event, now: float) -> list[Effect]:
        over = self._spoken_over(utterance, now)
        effects = [effect for track in over for effect in self._cut_turn(track.number, cause, now)]
        return effects + self._go_on(utterance, now)

    def _spoken_over(self, utterance: int, now: float) -> list[Track]:
        tracks = self._tracks.values()
        return [track for track in tracks if track.active(now) and self._utterance_of(track.number) < utterance]

    def _utterance_of(self, turn: int) -> int:
        """The utterance that the turn answers; one whose final was not seen yet counts as the newest."""
        return self._utterances.get(turn, 2**31)

    def _cut_turn(self, turn: int, cause: Event, now: float) -> list[Effect]:
        track = self._tracks.pop(turn, None)
        self._cut.add(turn)
        self._held = deque((held for held in self._held if held.turn != turn), HELD_MAX)
        if track is None:
            return [Hush(turn, 0), Cut(turn, 0, 0, cause)]
        effects: list[Effect] = [] if self._is_hushed(track) else [Hush(turn, track.rewind(now))]
        for sentence, end_ms in track.sentence_ends:
            effects.append(Heard(turn, sentence, round(end_ms), False, track.words_until(sentence, end_ms)))
        words = track.words_until(track.sentence, track.sent_ms)
        return [*effects, Cut(turn, track.sentence, round(track.sent_ms), cause, words)]

    # What may pass.

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
        if not self._is_final(event):
            return False
        track = self._tracks.get(event.turn)
        begun = track is not None and track.made_ms > 0
        return isinstance(event, Response) or begun or now >= self._may_begin_at(event.turn)

    def _is_final(self, event: Response | SpeechChunk) -> bool:
        """Whether it was made for words that are known to be all that the caller said."""
        return event.committed or self._committed.get(event.turn) == event.revision

    def _may_begin_at(self, turn: int) -> float:
        """When a reply may begin, and what follows one without words be done, if no more is heard of the caller."""
        speaking = self._speaking
        if speaking is None or not speaking.talking or self._utterance_of(turn) >= speaking.utterance:
            return self._sound_until
        return max(self._sound_until, speaking.last_at + TALKING_MS)

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

    # What is said.

    def _pass(self, event: Response | SpeechChunk, now: float) -> list[Effect]:
        if isinstance(event, Response):
            return [Tell(event), *self._response(event, now)]
        self.turn = max(self.turn, event.turn)
        audio = event.kind is SpeechChunkKind.AUDIO
        if event.turn in self._cut or (event.turn in self._over and not audio):
            return [] if audio else [Tell(event)]
        if audio and self.waiting_ms + length_ms(event) > WAITING_MS_MAX:
            self.truncated += 1
            return []
        self._track(event.turn, now).add(event)
        return self._hand_over(now)

    def _track(self, turn: int, now: float) -> Track:
        return self._tracks.setdefault(turn, Track(turn, ends_at=now))

    def _hand_over(self, now: float) -> list[Effect]:
        """All that the other side may have by now, in order."""
        effects: list[Effect] = []
        for number in sorted(self._tracks):
            track = self._tracks[number]
            if self._is_hushed(track):
                continue
            while track.waiting and (track.waiting[0].kind is not SpeechChunkKind.AUDIO or now >= self._room_at()):
                chunk = track.hand_over(now, self._busy_until())
                track.action_at = max(track.action_at, track.ends_at + ACTION_GRACE_MS)
                effects.append(Play(chunk) if chunk.kind is SpeechChunkKind.AUDIO else Tell(chunk))
            if track.waiting:
                break
            if track.ended and not self._recalling:
                effects += self._heard(track, now, confirmed=False)
        return effects

    def _busy_until(self) -> float:
        """When the other side will have played all that it was given."""
        return max(
            (track.heard_at(track.sent_ms) for track in self._tracks.values() if track.sent_ms), default=-math.inf
        )

    def _room_at(self) -> float:
        return -math.inf if self._recalling else self._busy_until() - self._lead_ms

    def _response(self, event: Response, now: float) -> list[Effect]:
        if event.kind is not ResponseKind.COMPLETED or not event.action or event.turn in self._cut:
            return []
        if event.turn in self._over:
            return [Act(event.turn, event.action, event.action_target)]
        track = self._track(event.turn, now)
        track.action = (event.action, event.action_target)
        track.action_at = max(track.ends_at, now) + ACTION_GRACE_MS
        return []

    # What was heard.

    def _believed_at(self, track: Track, position_ms: float) -> float:
        """When a position counts as heard without a report of it."""
        if not self.believes:
            return math.inf
        if not (self._reports and track.sent_ms):
            return track.heard_at(position_ms)
        return max(track.heard_at(position_ms), self.believes_since) + REPORT_GRACE_MS

    def _action_due(self, track: Track) -> float:
        """When the track's action is done though the end of its speech has not come; inf while it is not to be."""
        if track.action is None or track.waiting or not self.believes:
            return math.inf
        if any(held.turn == track.number and self._is_final(held) for held in self._held):
            return math.inf  # its words wait for the caller to be silent
        return max(track.action_at, self._may_begin_at(track.number))

    def _heard(self, track: Track, now: float, confirmed: bool) -> Iterator[Effect]:
        """The sentences, and the turn, that have been heard to their ends."""
        reported_ms = track.report[0] + 1 if confirmed and track.report is not None else -1.0

        def is_heard(position_ms: float) -> bool:
            return reported_ms >= position_ms or now >= self._believed_at(track, position_ms)

        while track.sentence_ends and is_heard(track.sentence_ends[0][1]):
            heard = _next_heard(track)
            if heard.end_of_turn:
                yield from self._finish(track, heard)
                return
            yield heard
        all_heard = track.ended and is_heard(track.sent_ms)
        if not track.sentence_ends and (all_heard or now >= self._action_due(track)):
            words = track.words_until(track.sentence, track.sent_ms)
            yield from self._finish(track, Heard(track.number, track.sentence, round(track.sent_ms), True, words))

    def _finish(self, track: Track, heard: Heard) -> Iterator[Effect]:
        self._tracks.pop(track.number, None)
        self._over.add(track.number)
        yield heard
        if track.action is not None:
            yield Act(track.number, *track.action)


def _next_heard(track: Track) -> Heard:
    """Of the track's first sentence that nobody was told to be heard; there is one."""
    sentence, end_ms = track.tell()
    is_last = track.ended and not track.sentence_ends and end_ms >= track.sent_ms
    return Heard(track.number, sentence, round(end_ms), is_last, track.words_until(sentence, end_ms))


def _done_again(effect: Effect) -> list[Effect]:
    """What is done of something that was due in the past: who was not cleared then is cleared now."""
    if isinstance(effect, Cut):
        return [Hush(effect.turn, effect.heard_ms), effect]
    return [effect] if isinstance(effect, Heard | Act) else []

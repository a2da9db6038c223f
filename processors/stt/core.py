"""The ear of a call: audio frames in, transcripts out.

Time is counted in samples of the caller's stream, never by the clock, so that the same audio gives the same utterances
however it was cut into frames and however often it is heard. While somebody speaks, partials are asked for; as the
voice fades the best reading is, and published at the hesitation pause as a partial with `pause_ms`; at the turn-taking
pause (if the words sound complete, see `endpoint.py`) or else at the completion pause it becomes the final. Speech
before that makes the revision void (`speech_resumed`) and the utterance goes on.

Who has paused in thought once will do so again: after such a pause, the next in the same utterance may be twice as
long. One who was taken for finished and went on is also listened to with that patience in the turns that follow.

The best reading comes as provisional words first: they are published, and end no turn until a settled reading has come,
which takes the revision over where it has the same words, and is the next revision where it has others.

An utterance without words ends with a partial of empty text, and takes no turn. One that no engine could read ends with
a final of empty text that says so (`failure`): it is a turn, in which the caller is asked to say it again.

Every window from an utterance's pre-roll on is heard again after a crash. Ids derive from the frame with which the
onset was certain (a final's from its turn), so the second hearing emits the same events; a recorded final is adopted
without asking anyone, and a recorded reading is what others go on with until it is settled anew.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol

from msgspec.structs import replace

from processors.backchannel import is_backchannel
from processors.engine import Transcribe, Transcribed
from processors.stage import (
    ABANDONED,
    ABANDONED_US,
    LOADED,
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    End,
    Failed,
    Happening,
    Hold,
    Outcome,
    Position,
    Received,
    Refuse,
    Release,
    Step,
    Wake,
    Woken,
    abandonment,
    caused,
    event_id,
    turn_event_id,
)
from processors.stt.endpoint import SttRules, pause_needed_ms
from processors.stt.pace import PartialPace
from processors.stt.state import (
    ONSET_WINDOWS,
    PAUSE_BELOW,
    PRE_ROLL_WINDOWS,
    SAMPLE_RATE_HZ,
    SPEECH_ABOVE,
    WINDOW_BYTES,
    WINDOW_SAMPLES,
    Asked,
    Cut,
    Heard,
    Hearing,
    Reading,
    Utterance,
    Window,
    advanced,
    from_bytes,
    ms,
    samples,
    to_bytes,
)
from schemas.events import AudioFrame, Control, ControlKind, Session, SessionKind, Transcript, TranscriptKind, Word

GAP_MS_MAX = 1000  # lost audio up to this is heard as silence; past it the stream starts anew
FRAME_MS_MAX = 2000
SAMPLE_INDEX_MAX = samples(2**31 - 1 - FRAME_MS_MAX)  # times of a call, in ms, are 32-bit numbers in the log: 24 days
UTTERANCE_MS_MAX = 28_000  # with pre-roll within the 30 s that an engine reads at once
PARTIAL_FIRST_MS = 600
PARTIAL_EVERY_MS = 600
MISSED_MS_MAX = 100  # shorter than a word
PARTIAL_LOAD_MAX = 3  # a partial may take at most one part in so many of the time
FINAL_DEADLINE_S = 4.0  # the host serves the earliest deadline first, so finals overtake partials
PARTIAL_DEADLINE_S = 8.0
ATTEMPTS_MAX = 1  # each goes through all engines and waits for their return, so more would only be silence
ATTEMPTS_MAX_SEALED = 2
PATIENCE = 2  # times the pause after which the caller went on before
GONE_ON_MS_MAX = 900  # after the end of speech; who speaks later may be answering the agent
CERTAIN_MS_MAX = 500  # from the onset of speech to the time of the frame that makes it certain
UNHEARD_MS_MIN = 400  # what was shorter was hardly a word: nobody is asked to repeat it
# Frames stop when a gateway, a broker or a caller's network is away for a while; they go on in mid-word afterwards.
STALLED_S = 8.0
# The topics have no common order: after the end of the call, or of what the caller's side sends, there may be more.
LAST_WORDS_S = 1.0
LAST_FRAMES_S = 0.2  # where the last of it seems to be there

# From these lengths on, an ever shorter pause ends the utterance, so that it is cut where it hurts least.
_IMPATIENCE = ((24_000, 1), (20_000, 64), (15_000, 300))
_HALF_WINDOW = WINDOW_SAMPLES // 2
_STALLED = "stalled"


class Detector(Protocol):
    """Tells speech from silence."""

    def __call__(self, state: bytes, windows: bytes) -> tuple[list[float], bytes]:
        """The probability of speech in each 512 samples of PCM16 at 16,000 Hz, and the state for what comes after.

        `state` is empty before the first window. Deterministic: equal arguments give equal results, and windows
        together what they give one after the other.
        """
        ...


class SttCore:
    """The pure core of the stage; see `processors.stage.Core`. Its detector is the one thing that computes."""

    def __init__(
        self,
        detector: Detector,
        rules: Callable[[str], SttRules] = lambda agent_id: SttRules(),
        partials_apart: Callable[[], int] = lambda: 1,
        pace: PartialPace | None = None,
    ) -> None:
        """`rules` gives what the agent of that id says about listening, and defaults for one that is unknown.

        `partials_apart` says by how many times partials are further apart than usual: more under load; `pace` bounds
        what all sessions' partials take together. They are a convenience, and those already in the log are adopted, so
        that a repeated step may find another value.
        """
        self._detector = detector
        self._rules = rules
        self._partials_apart = partials_apart
        self._pace = pace

    def start(self, session_id: str) -> Hearing:
        """See `Core`."""
        return Hearing(session_id)

    def apply(self, state: Hearing, happening: Happening, now_us: int) -> Step[Hearing]:
        """See `Core`."""
        work = _Work(state, self._detector, self._rules, now_us, self._partials_apart(), self._pace)
        match happening:
            case Received(AudioFrame() as frame, position, recorded):
                work.hear(frame, position, recorded)
            case Received(Control() as control):
                work.control(control)
            case Received(Session() as session):
                work.session(session)
            case Answered(ask_id, reply):
                work.answered(ask_id, reply)
            case Failed(ask_id, reason):
                work.failed(ask_id, reason)
            case Woken(name):
                work.woken(name)
        work.release()
        return Step(work.state, tuple(work.outcomes))

    def save(self, state: Hearing) -> bytes:
        """See `Core`."""
        return to_bytes(state)

    def load(self, session_id: str, data: bytes) -> Hearing:
        """See `Core`."""
        return from_bytes(session_id, data) if data else self.start(session_id)


class _Work:
    """One step in the making: the state so far and the outcomes so far."""

    def __init__(
        self,
        state: Hearing,
        detector: Detector,
        rules: Callable[[str], SttRules],
        now_us: int,
        partials_apart: int = 1,
        pace: PartialPace | None = None,
    ) -> None:
        self.state = state
        self.outcomes: list[Outcome] = []
        self._partials_apart = partials_apart
        self._pace = pace
        self._detector = detector
        self._rules = rules
        self._now_us = now_us

    # ---- what happens

    def hear(self, frame: AudioFrame, position: Position, recorded: tuple[Any, ...]) -> None:
        """Cuts the frame's new samples into windows and judges each."""
        if (reason := _wrong(frame)) is not None:
            self.outcomes.append(Refuse("bad_frame", reason))
            return
        gap = frame.sample_index - self.state.next_sample
        if gap + len(frame.pcm) // 2 <= 0:
            self.outcomes.append(Drop("repeated"))
            return
        self.outcomes.append(Hold())
        heard = Heard(dataclasses.replace(frame, pcm=b""), position, recorded)
        if not self.state.frame_at_us:
            self.outcomes.append(abandonment(self._now_us))
        if gap > samples(GAP_MS_MAX):
            self._jump(frame.sample_index)
            audio = frame.pcm
        elif gap > 0:
            self.outcomes.append(Drop("gap_filled"))
            audio = bytes(2 * gap) + frame.pcm
        else:
            audio = frame.pcm[-2 * gap :]
        self._cut(audio, heard)
        if self.state.speech is not None or self.state.ending:
            self._stall()

    def control(self, control: Control) -> None:
        """A hang-up ends the call once no more audio comes, an erasure at once; quiet ends what was being said."""
        if control.kind in (ControlKind.ERASE, ControlKind.ERASED):
            self.outcomes.append(End())
        elif control.kind is ControlKind.HANG_UP:
            self._end_soon()
        elif control.kind is ControlKind.QUIET and control.occurred_at >= self.state.captured_at:
            self.state = replace(self.state, quiet_at=control.occurred_at)
            if self.state.speech is not None:
                self._wake(_STALLED, LAST_FRAMES_S)

    def session(self, session: Session) -> None:
        """Audio may still be on its way when the session's end is read: the topics have no common order."""
        if session.kind is SessionKind.ENDED:
            self._end_soon()
        else:
            self.state = replace(self.state, language=self.state.language or session.language)

    def answered(self, ask_id: str, reply: Any) -> None:
        """A reading came: of all speech so far, or of a part that speech has overtaken.

        A provisional one of all speech is worked on ahead; of a part it will do, since nobody waits for a surer one.
        """
        speech = self.state.speech
        if speech is None or speech.asked is None or speech.asked.ask_id != ask_id:
            return
        asked = speech.asked
        if not isinstance(reply, Transcribed):
            self.failed(ask_id, "invalid")
            return
        whole = asked.best and asked.covers == speech.end
        reading = _reading(reply, speech.windows[0].start, asked.covers)
        if reply.provisional and whole:
            self._begin_with(speech, reading)
            self._judge()
            return
        if reply.provisional:
            self.outcomes.append(Cancel(ask_id))
        if self._pace is not None and not asked.best:
            self._pace.took(reply.compute_ms)
        speech = self._set(asked=None, failures=0, doubtful=reply.doubtful)
        if whole:
            self._take(speech, reading)
        else:
            self._set(partial_due=self._partial_due(speech.position, reply.compute_ms))
            self._show(reading)
        self._judge()

    def failed(self, ask_id: str, reason: str) -> None:
        """A partial that failed is not missed; the best reading is asked for again, a bounded number of times.

        Where a provisional one is there, that is the best.
        """
        speech = self.state.speech
        if speech is None or speech.asked is None or speech.asked.ask_id != ask_id:
            return
        if speech.asked.best and speech.reading is not None:
            self._set(asked=None, reading=_counting(speech.reading, speech))
        elif speech.asked.best:
            self._set(asked=None, failures=speech.failures + 1, failure=reason)
        else:
            self._set(asked=None, partial_due=speech.position + 2 * samples(PARTIAL_EVERY_MS))
        self._judge()

    def woken(self, name: str) -> None:
        """Frames stopped coming, for a moment or for good, or the session's state was just loaded."""
        if name == _STALLED and self.state.speech is not None:
            self._seal()
        elif name == _STALLED and self.state.ending:
            self.outcomes.append(End())
        elif name == ABANDONED:
            self._let_go()
        elif name == LOADED and self.state.ending:
            self._stall()

    def release(self) -> None:
        """Frames that nobody needs again are let go once the step is over: some of one may still be to be heard."""
        before = self.state.needed_offset
        if before > self.state.released:
            self.outcomes.append(Release(self.state.topic, before))
            self.state = replace(self.state, released=before)

    def _begin_with(self, speech: Utterance, reading: Reading) -> None:
        """A provisional reading of all speech so far; what others work on already, they go on with."""
        if speech.reading is not None:
            reading = replace(speech.reading, compute_ms=speech.reading.compute_ms + reading.compute_ms)
        self._set(reading=reading)

    def _take(self, speech: Utterance, reading: Reading) -> None:
        """A reading of all speech so far: where it says what the one before it said, it is the same revision."""
        before = speech.reading
        if before is not None:
            took_ms = reading.compute_ms
            if not reading.text:  # words that were heard once count for more than silence
                reading = _counting(before, speech)
            same = before.text == reading.text
            if same or not speech.published:  # else a revision of its own has told it
                took_ms += before.compute_ms
            reading = replace(reading, compute_ms=took_ms, revision=before.revision if same else 0)
            self._set(published=speech.published and same)
        self._set(reading=reading)

    # ---- from frames to windows

    def _jump(self, sample_index: int) -> None:
        """Too much was lost to bridge: what was being said ends here."""
        self.outcomes.append(Drop("gap"))
        if self.state.speech is not None:
            self._seal()
        self.state = replace(self.state, next_sample=sample_index, pending=b"", detector=b"")
        if self.state.speech is None:
            self.state = replace(self.state, ring=(), ring_run=0, run=0)

    def _let_go(self) -> None:
        """What was heard last might have been the beginning of a word, but none has followed for so long.

        Frames that are held hold back all sessions of their partition. The caller may still come back: the stream goes
        on at its next sample.
        """
        if self.state.speech is not None or self._now_us - self.state.frame_at_us < ABANDONED_US:
            self.outcomes.append(abandonment(self._now_us))
            return
        self.state = replace(self.state, pending=b"", ring=(), ring_run=0, run=0, frame_at_us=0)

    def _cut(self, audio: bytes, heard: Heard) -> None:
        state = self.state
        offset = heard.position.offset
        first_offset = state.pending_offset if state.pending else offset
        start = state.next_sample - len(state.pending) // 2
        buffer = state.pending + audio
        whole = len(buffer) // WINDOW_BYTES * WINDOW_BYTES
        probabilities, detector = self._detector(state.detector, buffer[:whole]) if whole else ([], state.detector)
        cut = Cut(start, state.detector, first_offset)
        windows = [
            Window(start + at // 2, buffer[at : at + WINDOW_BYTES], probability, cut, heard)
            for at, probability in zip(range(0, whole, WINDOW_BYTES), probabilities, strict=True)
            if start + at // 2 >= state.judged_from
        ]
        self.state = replace(
            state,
            next_sample=state.next_sample + len(audio) // 2,
            pending=buffer[whole:],
            pending_offset=offset if whole else first_offset,
            detector=detector,
            topic=heard.position.topic,
            offset_next=offset + 1,
            frame_at_us=self._now_us,
            captured_at=heard.event.captured_at,
            quiet_at=state.quiet_at if state.quiet_at >= heard.event.captured_at else 0,
        )
        self._feed(windows)
        self._read_ahead()

    def _feed(self, windows: Iterable[Window]) -> None:
        left = iter(windows)
        for window in left:
            if self.state.speech is None:
                self._idle(window, left)
            else:
                self._speaking(self.state.speech, window)

    def _idle(self, first: Window, left: Iterator[Window]) -> None:
        """Takes windows until speech is certain; what is left then belongs to it."""
        state = self.state
        ring, ring_run, run = deque(state.ring), state.ring_run, state.run
        for window in chain((first,), left):
            if ring and ring[-1].end != window.start:
                ring, ring_run, run = deque(), 0, 0
            run = advanced(run, window.probability)
            ring.append(window)
            if len(ring) > PRE_ROLL_WINDOWS + ONSET_WINDOWS:
                ring_run = advanced(ring_run, ring.popleft().probability)
            if run >= ONSET_WINDOWS:
                break
        self.state = replace(state, ring=tuple(ring), ring_run=ring_run, run=run)
        if run >= ONSET_WINDOWS:
            self._begin(window, run)

    def _begin(self, window: Window, run: int) -> None:
        """Speech is certain: the utterance began with the run, and reading it with the ring."""
        index = self.state.utterance
        recorded = tuple(event for event in window.frame.recorded if event.utterance == index)
        partials = [event for event in recorded if event.kind is TranscriptKind.PARTIAL]
        start = window.end - run * WINDOW_SAMPLES
        first_ms = self._partials_apart * PARTIAL_FIRST_MS
        due = max([ms(start) + first_ms, *(event.audio_end_ms + PARTIAL_EVERY_MS for event in partials)])
        closed_id = event_id(window.frame.event.event_id, f"closed-{index}")
        ends = (event for event in recorded if event.kind is TranscriptKind.FINAL or event.event_id == closed_id)
        speech = Utterance(
            cause=window.frame,
            windows=self.state.ring,
            start=start,
            end=window.end,
            ended_at=window.frame.event.captured_at,
            partial_due=samples(due),
            revision=max((event.revision for event in recorded), default=self.state.revision),
            recorded=recorded,
            closing=next(ends, None),
            thinking=self._gone_on_after(start, window.frame.event),
        )
        self.state = replace(self.state, speech=speech, ring=(), run=0)
        self._emit(speech, TranscriptKind.SPEECH_STARTED, f"started-{index}")

    def _gone_on_after(self, start: int, frame: AudioFrame) -> int:
        """The pause since the last turn, where speech begins so soon that the turn was ended too early; else 0.

        `frame` is the one with which it was certain. Its time counts beside the samples, which stand still while a
        client sends nothing. `processors.intent.core.JOIN_MS` is shorter than what is soon here: what begins later is
        understood by itself all the same.
        """
        soon_ms = min(self._rules(frame.agent_id).completion_ms, GONE_ON_MS_MAX)
        pause = start - self.state.spoke_until
        passed_ms = (frame.captured_at - self.state.spoke_at) // 1000
        gone_on = pause <= samples(soon_ms) and passed_ms <= soon_ms + CERTAIN_MS_MAX
        return pause if self.state.spoke_until and gone_on else 0

    def _speaking(self, speech: Utterance, window: Window) -> None:
        if speech.sealed or window.start != speech.position:
            self._set(later=(*speech.later, window))
            self._seal()
            return
        if window.probability < (SPEECH_ABOVE if speech.paused else PAUSE_BELOW):
            begins = not speech.paused
            speech = self._set(windows=(*speech.windows, window), paused=True)
            if begins:
                self._adopt_recorded(speech)
        else:
            if speech.published and speech.reading is not None and speech.closing is None:
                revision = speech.reading.revision
                name = f"resumed-{self.state.utterance}-{revision}"
                self._emit(speech, TranscriptKind.SPEECH_RESUMED, name, revision=revision)
            self._go_on(speech, window)
        self._judge()

    def _go_on(self, speech: Utterance, window: Window) -> None:
        """Speech is added; where its words so far were heard provisionally, nobody waits for surer ones of them.

        What was begun in a gap within words is let go on where a partial is due, and then is one.
        """
        reading, due = speech.reading, window.end >= speech.partial_due
        open_ = speech.closing is None
        if open_ and reading is not None and (due or speech.published):
            if not speech.published:
                self._show(reading)
            self._set(partial_due=max(speech.partial_due, self._partial_due(window.end, reading.compute_ms)))
        unwanted = reading is not None or not due
        if open_ and unwanted and speech.asked is not None and speech.asked.best:
            self.outcomes.append(Cancel(speech.asked.ask_id))
            self._set(asked=None)
        thought = speech.paused and _lasted(speech, self._rules_of(speech).turn_ms)
        self._set(
            thinking=max(speech.thinking, speech.pause) if thought else speech.thinking,
            windows=(*speech.windows, window),
            paused=False,
            end=window.end,
            ended_at=window.frame.event.captured_at,
            reading=None,
            published=False,
            failures=0,
        )

    # ---- when is a turn over?

    def _judge(self) -> None:
        """Decides, after each window and each reading, whether to ask, to publish, to go on listening or to finish."""
        speech = self.state.speech
        if speech is None:
            return
        if speech.closing is not None:
            closing = speech.closing
            if speech.sealed or ms(speech.position) >= closing.audio_end_ms + closing.pause_ms:
                self._close(closing.audio_end_ms, closing.kind is TranscriptKind.FINAL, closing.language, closing.text)
            return
        rules = self._rules_of(speech)
        completion_ms = _completion_ms(speech, rules)
        if not speech.paused and not speech.sealed:
            if ms(speech.position - speech.windows[0].start) >= UTTERANCE_MS_MAX:
                self._seal()
            elif speech.asked is None and speech.position >= speech.partial_due and self._may_ask_partial(speech):
                self._ask(speech, best=False)
            return
        hesitation_ms = min(rules.hesitation_ms, completion_ms)
        if speech.sealed or _lasted(speech, hesitation_ms):
            speech = self._have_best(speech)
        reading = speech.reading
        if reading is not None and self._is_over(speech, reading):
            # Where it comes so late, there is nothing to be done ahead.
            self._finish(speech, reading)
            return
        if reading is not None and reading.text and not speech.published and _lasted(speech, hesitation_ms):
            self._publish(reading, ms(speech.pause))
        if speech.sealed and speech.asked is None:
            self._give_up(speech)
        elif not speech.sealed and _lasted(speech, completion_ms):
            self._seal()

    def _read_ahead(self) -> None:
        """While there is time to spare, begins the reading before it is certain that it will be wanted.

        That is in the first moment of silence, or before: the last of speech is mostly a voice that fades. Decided once
        for all that has come, since a long frame tells how it went on.
        """
        speech = self.state.speech
        if speech is None or speech.sealed or speech.closing is not None or self._partials_apart > 1:
            return
        begun = speech.reading is not None or (speech.asked is not None and speech.asked.best)
        begins = speech.fades and not begun and not speech.failures
        if speech.paused or (begins and self._pays(first=False)):
            self._have_best(speech)

    def _is_over(self, speech: Utterance, reading: Reading) -> bool:
        """Whether the pause is long enough for the words."""
        if not reading.settled:
            return False
        rules = self._rules_of(speech)
        sure = reading.words[-1].confidence if reading.words else 1.0
        patience_ms = PATIENCE * ms(max(speech.thinking, self.state.halting))
        needed_ms = pause_needed_ms(reading.text, rules, sure, reading.complete, patience_ms)
        needed_ms = min(needed_ms, _completion_ms(speech, rules))
        return speech.sealed or _lasted(speech, needed_ms)

    def _have_best(self, speech: Utterance) -> Utterance:
        """Sees to it that the best reading of all speech so far is there, or asked for; returns what is so then."""
        settled = speech.reading is not None and speech.reading.settled
        if settled or (speech.asked and speech.asked.best and speech.asked.covers == speech.end):
            return speech
        if speech.failures >= (ATTEMPTS_MAX_SEALED if speech.sealed else ATTEMPTS_MAX):
            return speech
        if speech.asked is not None:
            self.outcomes.append(Cancel(speech.asked.ask_id))
        return self._ask(speech, best=True)

    def _adopt_recorded(self, speech: Utterance) -> None:
        """What others were given to work on in this pause before a crash, they go on with; it is settled anew."""
        readings = [
            _recorded_reading(event, speech.end)
            for event in speech.recorded
            if event.kind is TranscriptKind.PARTIAL and event.pause_ms and event.audio_end_ms == ms(speech.end)
        ]
        if not readings:
            return
        mine, speech = speech.reading, self._set(reading=readings[-1], published=True)
        if mine is not None and mine.settled:
            self._take(speech, mine)

    def _may_ask_partial(self, speech: Utterance) -> bool:
        return self._pays(first=speech.partials == 0)

    def _pays(self, first: bool) -> bool:
        return self._pace is None or self._pace.take(self._now_us, first)

    def _partial_due(self, since: int, compute_ms: float) -> int:
        """When the next partial may be asked for, after one that was told then and took so long."""
        return since + self._partials_apart * max(samples(PARTIAL_EVERY_MS), PARTIAL_LOAD_MAX * samples(compute_ms))

    def _seal(self) -> None:
        """Nothing more belongs to the utterance; it ends as soon as it has been read."""
        if self.state.speech is not None and not self.state.speech.sealed:
            self._set(sealed=True)
            self._judge()

    def _give_up(self, speech: Utterance) -> None:
        """No engine could read it: a partial that missed next to nothing will do, else the caller is asked again."""
        partial = speech.partial
        if partial is not None and speech.end - partial.covers <= samples(MISSED_MS_MAX):
            self._finish(speech, replace(_counting(partial, speech), covers=speech.end))
            return
        self.outcomes.append(Drop("unheard"))
        nothing = Reading("", (), 0.0, self._language(speech), "", 0.0, speech.end, speech.revision + 1)
        self._finish(speech, nothing, failure=ms(speech.end - speech.start) >= UNHEARD_MS_MIN)

    def _finish(self, speech: Utterance, reading: Reading, failure: bool = False) -> None:
        index = self.state.utterance
        if not reading.revision:
            reading = replace(reading, revision=speech.revision + 1)
        why = (speech.failure or "crashed") if failure else ""
        if reading.text or failure:
            self._emit_reading(speech, TranscriptKind.FINAL, "final", reading, ms(speech.pause), why)
        else:
            self._emit_reading(speech, TranscriptKind.PARTIAL, f"closed-{index}", reading, ms(speech.pause))
            self._set(revision=max(speech.revision, reading.revision))
        self._close(ms(speech.end), bool(reading.text) or failure, reading.language, reading.text)

    def _close(self, end_ms: int, final: bool, language: str, text: str) -> None:
        """The utterance is over; what was heard after it is judged anew, as the beginning of what comes next.

        The language of a final is what the caller probably goes on with, where the agent understands several.
        """
        speech = self.state.speech
        assert speech is not None
        if final and self._rules_of(speech).languages:
            self.state = replace(self.state, language=language)
        if speech.asked is not None:
            self.outcomes.append(Cancel(speech.asked.ask_id))
        if text and not is_backchannel(text):
            self._remember_pauses(speech, end_ms)
        rest = [window for window in (*speech.windows, *speech.later) if ms(window.start) >= end_ms]
        self.state = replace(
            self.state,
            speech=None,
            utterance=self.state.utterance + 1,
            turn=self.state.turn + final,
            revision=0 if final else speech.revision,
            ring=(),
            ring_run=0,
            run=0,
        )
        if self.state.ending:
            self._stall()
        else:
            self.outcomes.append(Wake(_STALLED, None))
        self._feed(rest)
        if self.state.speech is not None:
            self._stall()

    def _remember_pauses(self, speech: Utterance, end_ms: int) -> None:
        """At the end of a turn: how this caller pauses, if one of the last turns was ended too early.

        A turn with such pauses renews it; where the next ones have none, it fades until it is below the turn pause.
        Who was cut short for having talked so long was not taken for finished.
        """
        rules = self._rules_of(speech)
        mistaken = self._gone_on_after(speech.start, speech.cause.event) > 0
        faded = self.state.halting * 3 // 4
        halting = max(speech.thinking, faded) if mistaken or self.state.halting else 0
        lasts = halting + _HALF_WINDOW >= samples(rules.turn_ms)
        in_time = _completion_ms(speech, rules) == rules.completion_ms
        self.state = replace(
            self.state,
            spoke_until=samples(end_ms) if in_time else 0,
            spoke_at=speech.ended_at,
            halting=halting if lasts else 0,
        )

    # ---- outcomes

    def _ask(self, speech: Utterance, best: bool) -> Utterance:
        rules = self._rules_of(speech)
        asked = Asked(f"{self.state.utterance}-{speech.asks}", speech.end, best)
        request = Transcribe(
            speech.pcm,
            self._language(speech),
            rules.vocabulary,
            partial=not best,
            languages=rules.languages,
            doubtful=speech.doubtful,
        )
        deadline_s = FINAL_DEADLINE_S if best else PARTIAL_DEADLINE_S
        self.outcomes.append(Ask(asked.ask_id, "stt", request, deadline_s, self.state.turn + 1))
        return self._set(asked=asked, asks=speech.asks + 1, partials=speech.partials + (not best))

    def _show(self, reading: Reading) -> None:
        """Emits the words as a partial, unless the last one said the same."""
        speech = self.state.speech
        assert speech is not None
        if reading.text and not speech.sealed and (speech.partial is None or speech.partial.text != reading.text):
            self._publish(reading, 0)

    def _publish(self, reading: Reading, pause_ms: int) -> None:
        """Emits the reading as the utterance's next revision."""
        speech = self.state.speech
        assert speech is not None
        reading = replace(reading, revision=speech.revision + 1)
        speech = self._set(revision=reading.revision, partial=reading)
        if pause_ms:
            self._set(reading=reading, published=True)
        name = f"partial-{self.state.utterance}-{reading.revision}"
        self._emit_reading(speech, TranscriptKind.PARTIAL, name, reading, pause_ms)

    def _emit_reading(
        self, speech: Utterance, kind: TranscriptKind, name: str, reading: Reading, pause_ms: int, failure: str = ""
    ) -> None:
        self._emit(
            speech,
            kind,
            name,
            revision=reading.revision,
            text=reading.text,
            words=reading.words,
            confidence=reading.confidence,
            language=reading.language,
            pause_ms=pause_ms,
            audio_end_ms=ms(reading.covers),
            model=reading.model,
            compute_ms=reading.compute_ms,
            failure=failure,
        )

    def _emit(self, speech: Utterance, kind: TranscriptKind, name: str, **fields: Any) -> None:
        values = {
            "kind": kind,
            "utterance": self.state.utterance,
            "turn": self.state.turn + 1,
            "language": self._language(speech),
            "audio_start_ms": ms(speech.start),
            "audio_end_ms": ms(speech.end),
            "speech_ended_at": None if kind is TranscriptKind.SPEECH_STARTED else speech.ended_at,
            **fields,
        }
        if kind is TranscriptKind.FINAL:  # wherever it was cut
            values["event_id"] = turn_event_id(self.state.session_id, self.state.turn + 1, name)
        self.outcomes.append(Emit(caused(speech.cause.event, Transcript, name, self._now_us, **values)))

    def _end_soon(self) -> None:
        self.state = replace(self.state, ending=True)
        self._stall()

    def _stall(self) -> None:
        """Waits for the next frame; not for long where the caller's side has said that it sends no more."""
        last = self.state.ending or self.state.quiet_at
        self._wake(_STALLED, LAST_WORDS_S if last else STALLED_S)

    def _wake(self, name: str, after_s: float) -> None:
        self.outcomes.append(Wake(name, self._now_us + math.ceil(after_s * 1e6)))

    # ---- the utterance

    def _set(self, **fields: Any) -> Utterance:
        assert self.state.speech is not None
        speech = replace(self.state.speech, **fields)
        self.state = replace(self.state, speech=speech)
        return speech

    def _rules_of(self, speech: Utterance) -> SttRules:
        return self._rules(speech.cause.event.agent_id)

    def _language(self, speech: Utterance) -> str:
        return self.state.language or self._rules_of(speech).language


def _wrong(frame: AudioFrame) -> str | None:
    """What is wrong with the frame, for people."""
    if frame.sample_rate_hz != SAMPLE_RATE_HZ:
        return f"sample_rate_hz: expected {SAMPLE_RATE_HZ}, found {frame.sample_rate_hz}"
    if not frame.pcm or len(frame.pcm) % 2:
        return f"pcm: expected whole 16-bit samples, found {len(frame.pcm)} bytes"
    if len(frame.pcm) > 2 * samples(FRAME_MS_MAX):
        return f"pcm: expected at most {FRAME_MS_MAX} ms, found {ms(len(frame.pcm) // 2)} ms"
    if not 0 <= frame.sample_index <= SAMPLE_INDEX_MAX:
        return f"sample_index: expected 0 to {SAMPLE_INDEX_MAX}, found {frame.sample_index}"
    return None


def _lasted(speech: Utterance, pause_ms: int) -> bool:
    """Whether the pause has lasted that long, to the nearest window."""
    return speech.pause + _HALF_WINDOW >= samples(pause_ms)


def _completion_ms(speech: Utterance, rules: SttRules) -> int:
    length_ms = ms(speech.position - speech.windows[0].start)
    for from_ms, pause_ms in _IMPATIENCE:
        if length_ms >= from_ms:
            return min(pause_ms, rules.completion_ms)
    return rules.completion_ms


def _reading(reply: Transcribed, origin: int, covers: int) -> Reading:
    begin_ms = ms(origin)
    words = tuple(
        Word(word.word, begin_ms + word.start_ms, begin_ms + word.end_ms, word.confidence) for word in reply.words
    )
    text = reply.text.strip()
    return Reading(
        text,
        words,
        reply.confidence,
        reply.language,
        reply.model,
        reply.compute_ms,
        covers,
        complete=reply.complete,
        settled=not reply.provisional,
    )


def _counting(reading: Reading, speech: Utterance) -> Reading:
    """A rough reading that has to do. When its words were said is not known: each may fill all of the speech.

    So what hides a word from those who are not to hear it hides too much rather than another one.
    """
    begin_ms, end_ms = ms(speech.windows[0].start), ms(speech.end)
    words = tuple(Word(word.word, begin_ms, end_ms, word.confidence) for word in reading.words)
    return replace(reading, words=words, settled=True)


def _recorded_reading(event: Transcript, covers: int) -> Reading:
    return Reading(
        event.text,
        event.words,
        event.confidence,
        event.language,
        event.model,
        event.compute_ms,
        covers,
        event.revision,
        settled=False,
    )

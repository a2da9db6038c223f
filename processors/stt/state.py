"""What the ear keeps of a call: windows of audio, the utterance in progress, and the part that survives a crash.

Structs, not dataclasses: a window replaces several, which took `dataclasses.replace` an eighth of the stage's time.
"""

import msgspec

from processors.stage import Position
from schemas.events import AudioFrame, Transcript, Word

SAMPLE_RATE_HZ = 16000
WINDOW_SAMPLES = 512
WINDOW_BYTES = 2 * WINDOW_SAMPLES

SPEECH_ABOVE = 0.5  # probability at which speech begins, and resumes after a pause
PAUSE_BELOW = 0.35  # probability at which it pauses
ONSET_WINDOWS = 4  # 128 ms of speech in a row make an utterance
PRE_ROLL_WINDOWS = 10  # 320 ms before the onset are read with it


def samples(milliseconds: float) -> int:
    """That many milliseconds in samples."""
    return int(milliseconds * SAMPLE_RATE_HZ / 1000)


def ms(sample: int) -> int:
    """The time of a sample, or the length of so many, in whole milliseconds."""
    return sample * 1000 // SAMPLE_RATE_HZ


def advanced(run: int, probability: float) -> int:
    """How many windows in a row are speech, after one more of that probability."""
    return run + 1 if probability >= (PAUSE_BELOW if run else SPEECH_ABOVE) else 0


class Heard(msgspec.Struct, frozen=True):
    """A frame as it is remembered: its event without the audio, and what was recorded for it before a crash."""

    event: AudioFrame
    position: Position
    recorded: tuple[Transcript, ...]


class Cut(msgspec.Struct, frozen=True):
    """Windows that the detector judged together: the first sample of them, and its state before them.

    `first_offset` is the offset of the frame that holds the first sample.
    """

    start: int
    detector: bytes
    first_offset: int


class Window(msgspec.Struct, frozen=True):
    """512 samples and their probability of speech; `frame` is the one that holds the last of them."""

    start: int
    pcm: bytes
    probability: float
    cut: Cut
    frame: Heard

    @property
    def end(self) -> int:
        """The sample after its last."""
        return self.start + WINDOW_SAMPLES


class Asked(msgspec.Struct, frozen=True):
    """An ask that is open: for the best reading of the speech up to `covers`, or for a partial one."""

    ask_id: str
    covers: int
    best: bool


class Reading(msgspec.Struct, frozen=True):
    """A reading of the utterance up to the sample `covers`; word times count from the call's first sample.

    `complete` is as in `Transcribed`; the log does not have it. One that is not `settled` is worked on ahead, but ends
    no turn: a surer one of the same speech is on its way.
    """

    text: str
    words: tuple[Word, ...]
    confidence: float
    language: str
    model: str
    compute_ms: float
    covers: int
    revision: int = 0
    complete: float | None = None
    settled: bool = True


class Utterance(msgspec.Struct, frozen=True):
    """Speech from its onset until its final.

    `windows` start with the pre-roll; `end` is the sample after the last speech, which `ended_at` is the arrival of.
    Once `sealed`, as by a gap in the stream, what comes belongs to the next utterance and waits in `later`. Of the
    `asks`, `partials` were for no more than a partial. `doubtful` is what the last answer to an ask said of itself, for
    the next one. `thinking` is the longest pause, in samples, that was as long as the turn pause and after which the
    caller went on; also the one before it, where that was taken for the end of a turn.
    """

    cause: Heard
    windows: tuple[Window, ...]
    start: int
    end: int
    ended_at: int
    partial_due: int
    paused: bool = False
    sealed: bool = False
    later: tuple[Window, ...] = ()
    revision: int = 0
    asks: int = 0
    partials: int = 0
    asked: Asked | None = None
    doubtful: bool = False
    thinking: int = 0
    failures: int = 0
    failure: str = ""
    reading: Reading | None = None
    partial: Reading | None = None
    published: bool = False
    recorded: tuple[Transcript, ...] = ()
    closing: Transcript | None = None

    @property
    def position(self) -> int:
        """The sample after the last that was judged."""
        return self.windows[-1].end

    @property
    def pause(self) -> int:
        """Samples since the last speech."""
        return self.position - self.end

    @property
    def fades(self) -> bool:
        """Whether the last window was less certainly speech than what speech begins with: often it is the last one."""
        return self.windows[-1].probability < SPEECH_ABOVE

    @property
    def pcm(self) -> bytes:
        """All its audio so far."""
        return b"".join(window.pcm for window in self.windows)


class Hearing(msgspec.Struct, frozen=True):
    """The state of the stage for one call.

    `ring` are the latest windows while nobody speaks, the first of them preceded by `ring_run` windows of speech in a
    row, the last followed by `run`. `pending` is audio that does not fill a window yet. `revision` is the last
    reading's of an utterance that held no words: the next one is of the same turn, where revisions only grow.
    `spoke_until` is the sample after the last turn's speech, which `spoke_at` is the arrival of; 0 where that was cut
    short. `halting` is how long, in samples, this caller pauses in thought; 0 for one who was not taken for finished
    too early, or not lately.
    `frame_at_us` is when the latest of the frames that are held arrived, 0 while none are; `captured_at` is the
    gateway's time of the last one. `quiet_at` is when the gateway said that no more audio comes, 0 once some has come
    that is younger. What comes before the sample `judged_from` was judged before a crash, and is heard again for the
    detector's sake alone.
    """

    session_id: str
    language: str = ""
    ending: bool = False
    utterance: int = 0
    turn: int = 0
    revision: int = 0
    spoke_until: int = 0
    spoke_at: int = 0
    halting: int = 0
    next_sample: int = 0
    pending: bytes = b""
    pending_offset: int = 0
    detector: bytes = b""
    judged_from: int = 0
    ring: tuple[Window, ...] = ()
    ring_run: int = 0
    run: int = 0
    speech: Utterance | None = None
    topic: str = ""
    offset_next: int = 0
    released: int = 0
    frame_at_us: int = 0
    captured_at: int = 0
    quiet_at: int = 0

    @property
    def oldest(self) -> Window | None:
        """The first window that is needed again after a crash."""
        windows = self.speech.windows if self.speech is not None else self.ring
        return windows[0] if windows else None

    @property
    def needed_offset(self) -> int:
        """The first offset that is needed again after a crash."""
        oldest = self.oldest
        if oldest is not None:
            return oldest.cut.first_offset
        return self.pending_offset if self.pending else self.offset_next


class Durable(msgspec.Struct, frozen=True, array_like=True):
    """The state as of the oldest window that is heard again after a crash: the first one of `judged_from` and later.

    The detector hears from `next_sample` on.
    """

    language: str
    ending: bool
    utterance: int
    turn: int
    next_sample: int
    run: int
    detector: bytes
    revision: int = 0
    spoke_until: int = 0
    spoke_at: int = 0
    halting: int = 0
    judged_from: int = 0
    quiet_at: int = 0


def to_bytes(state: Hearing) -> bytes:
    """The part of the state that frames heard again do not bring back."""
    oldest = state.oldest
    if oldest is None:
        start, detector = state.next_sample - len(state.pending) // 2, state.detector
        run, judged_from = state.run, state.judged_from
    else:
        start, detector = oldest.cut.start, oldest.cut.detector
        run, judged_from = state.ring_run, oldest.start
    return msgspec.msgpack.encode(
        Durable(
            state.language,
            state.ending,
            state.utterance,
            state.turn,
            start,
            run,
            detector,
            state.revision,
            state.spoke_until,
            state.spoke_at,
            state.halting,
            judged_from,
            state.quiet_at,
        )
    )


def from_bytes(session_id: str, data: bytes) -> Hearing:
    """The inverse of `to_bytes`; raises msgspec.DecodeError."""
    durable = msgspec.msgpack.decode(data, type=Durable)
    return Hearing(
        session_id,
        language=durable.language,
        ending=durable.ending,
        utterance=durable.utterance,
        turn=durable.turn,
        revision=durable.revision,
        spoke_until=durable.spoke_until,
        spoke_at=durable.spoke_at,
        halting=durable.halting,
        next_sample=durable.next_sample,
        detector=durable.detector,
        judged_from=durable.judged_from,
        quiet_at=durable.quiet_at,
        ring_run=durable.run,
        run=durable.run,
    )

"""A call's playback rebuilt from its log: what is sent again, what is not, what is made up for."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.dialect import Playout, Received, Resume
from api.history import Dated, History, Marks
from api.playback import Act, Cut, Heard, Hush, Play, Playback, Tell
from api.replay import AGAIN_MS, Replayed, replay
from processors.stage import event_id
from schemas.event import Event
from schemas.events import (
    Control,
    ControlKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from tests.support.ear import Ear, run

CHUNK = 1600  # 100 ms
EPOCH_MS = 1_800_000_000_000


class Log:
    """The events of one session, written at times given in milliseconds from the start of the call."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.started = Session(**self._envelope(0), kind=SessionKind.STARTED)
        self.dated: list[Dated] = []

    def _envelope(self, turn: int) -> dict[str, Any]:
        number = next(self._count)
        return {
            "event_id": event_id("log", str(number)),
            "session_id": "s",
            "tenant_id": "demo",
            "agent_id": "shop",
            "turn": turn,
            "seq": number,
            "occurred_at": 0,
        }

    def add(self, at_ms: int, event_class: type[Event], turn: int, **fields: Any) -> Event:
        event = event_class(**self._envelope(turn), **fields)
        self.dated.append(Dated(EPOCH_MS + at_ms, event))
        return event

    def final(self, at_ms: int, turn: int) -> Event:
        return self.add(at_ms, Transcript, turn, kind=TranscriptKind.FINAL, utterance=turn - 1, text="words")

    def speech(self, at_ms: int, turn: int, count: int, first: int = 0, last: bool = False) -> list[Event]:
        """Chunks of 100 ms; samples tell their position, modulo 256."""
        return [
            self.add(
                at_ms,
                SpeechChunk,
                turn,
                kind=SpeechChunkKind.AUDIO,
                pcm=bytes([turn, number % 256]) * CHUNK,
                sample_index=number * CHUNK,
                last_of_sentence=last and number == first + count - 1,
            )
            for number in range(first, first + count)
        ]

    def end_of_turn(self, at_ms: int, turn: int) -> Event:
        return self.add(at_ms, SpeechChunk, turn, kind=SpeechChunkKind.END_OF_TURN)

    def control(self, at_ms: int, turn: int, kind: ControlKind, **fields: Any) -> Event:
        return self.add(at_ms, Control, turn, kind=kind, **fields)

    def replayed(self, resume: Resume, now_ms: int, last_frame_ms: int = 0) -> Replayed:
        dated = sorted(self.dated, key=lambda entry: entry.at_ms)
        history = History(self.started, None, Marks(), EPOCH_MS + last_frame_ms, dated)
        return replay(history, resume, 5_000_000.0 + now_ms, float(EPOCH_MS + now_ms))


def resume(turn: int, samples: int, *known: Event, heard: Playout | None = None) -> Resume:
    return Resume("", Received(turn, samples), heard, frozenset(event.event_id for event in known))


def played(replayed: Replayed) -> list[tuple[int, int, int]]:
    chunks = [effect.chunk for effect in replayed.effects if isinstance(effect, Play)]
    return [(chunk.turn, chunk.sample_index, len(chunk.pcm) // 2) for chunk in chunks]


@given(st.integers(0, 10 * CHUNK), st.integers(0, 10))
def test_what_was_received_and_what_is_sent_make_up_the_turn(samples: int, before_break: int) -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, before_break)
    log.speech(9000, 1, 10 - before_break, first=before_break)
    position = samples
    for turn, index, count in played(log.replayed(resume(1, samples), 10_000, 1000)):
        assert (turn, index) == (1, position)
        position += count
    assert position == 10 * CHUNK


def test_a_turn_that_was_heard_is_not_said_again_and_one_believed_heard_is() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 3, last=True)
    end = log.end_of_turn(110, 1)
    log.control(400, 1, ControlKind.PLAYOUT, heard_ms=300, reason="end_of_turn")
    assert played(log.replayed(resume(1, 3 * CHUNK, end), 1000, 500)) == []
    # By the gateway's clock it was heard, but the last chunk never arrived.
    again = log.replayed(resume(1, 2 * CHUNK), 1000, 500)
    assert played(again) == [(1, 2 * CHUNK, CHUNK)]
    assert again.playback.tick(5_001_101.0) == [Heard(1, 0, 300, end_of_turn=True)]


def test_a_turn_that_was_cut_stays_cut_and_is_cleared_again() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 20)
    log.control(500, 1, ControlKind.BARGE_IN, heard_ms=400)
    log.speech(600, 1, 20, first=20)
    replayed = log.replayed(resume(1, 5 * CHUNK), 1000, 700)
    assert played(replayed) == []
    assert replayed.cut == {1: 400}


def test_speech_over_the_agent_that_nobody_acted_upon_cuts_it_now() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 50)
    log.final(1100, 2)
    replayed = log.replayed(resume(1, 50 * CHUNK), 2000, 1100)
    (cut,) = [effect for effect in replayed.effects if isinstance(effect, Cut)]
    assert (cut.turn, cut.heard_ms) == (1, 1000)


def sound(log: Log, at_ms: int, kind: TranscriptKind, text: str = "") -> Event:
    """Something heard over turn 1."""
    return log.add(at_ms, Transcript, 2, kind=kind, utterance=1, text=text)


def test_a_turn_that_went_on_after_a_cough_is_where_the_client_has_it() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 20)
    sound(log, 600, TranscriptKind.SPEECH_STARTED)
    sound(log, 1600, TranscriptKind.PARTIAL)
    replayed = log.replayed(resume(1, 15 * CHUNK), 1800, 1700)
    assert played(replayed) == [(1, number * CHUNK, CHUNK) for number in range(15, 20)]
    assert not [effect for effect in replayed.effects if isinstance(effect, Hush)]
    # A second in which nothing was heard does not count.
    assert replayed.playback.heard_until(5_001_800.0) == (1, 700.0)


@pytest.mark.parametrize("text", ["", "stop"])
def test_a_turn_that_is_hushed_when_the_connection_breaks_is_cleared_anew_and_goes_on_or_not(text: str) -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 20)
    sound(log, 600, TranscriptKind.SPEECH_STARTED)
    replayed = log.replayed(resume(1, 20 * CHUNK), 1000, 700)
    assert replayed.effects == [Hush(1, 500)]
    assert replayed.playback.hushed
    reading = sound(log, 1100, TranscriptKind.PARTIAL, text)
    effects = replayed.playback.event(reading, 5_001_100.0)[1:]
    if text:
        assert effects == [Cut(1, 0, 500, reading)]
    else:
        replayed.effects = effects
        assert played(replayed) == [(1, number * CHUNK, CHUNK) for number in range(5, 20)]


def test_a_hush_from_which_nothing_came_is_over_when_the_caller_is_back_late() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 20)
    sound(log, 600, TranscriptKind.SPEECH_STARTED)
    replayed = log.replayed(Resume(""), 60_000, 700)
    replayed.effects += replayed.playback.tick(5_060_000.0)
    assert played(replayed)[0] == (1, (500 - AGAIN_MS) * 16, CHUNK)
    assert sum(count for _, _, count in played(replayed)) == 20 * CHUNK - (500 - AGAIN_MS) * 16


_SOUNDS = st.sampled_from(
    [
        (TranscriptKind.SPEECH_STARTED, ""),
        (TranscriptKind.PARTIAL, ""),
        (TranscriptKind.PARTIAL, "mm-hm"),
        (TranscriptKind.SPEECH_RESUMED, ""),
        (TranscriptKind.FINAL, "uh-huh"),
    ]
)


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 4)), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(0, 700), st.integers(1, 3), _SOUNDS), max_size=8),
    st.integers(0, 6000),
    st.integers(0, 3000),
)
def test_whenever_the_connection_breaks_over_whatever_sounds_the_turn_is_whole(
    made: list[tuple[int, int]], sounds: list[tuple[int, int, tuple[TranscriptKind, str]]], breaks: int, away: int
) -> None:
    log = Log()
    log.final(0, 1)
    at = count = 0
    for wait_ms, chunks in made:
        at += wait_ms
        log.speech(at, 1, chunks, first=count)
        count += chunks
    log.end_of_turn(at, 1)
    at = 0
    for wait_ms, utterance, (kind, text) in sounds:
        at += wait_ms
        log.add(at, Transcript, utterance + 1, kind=kind, utterance=utterance, text=text)
    dated = sorted(((entry.at_ms - EPOCH_MS + 5_000_000.0, entry.event) for entry in log.dated), key=lambda one: one[0])
    ear, playback = Ear(), Playback()
    broke, back = 5_000_000.0 + breaks, 5_000_000.0 + breaks + away
    _play(playback, ear, [(at, event) for at, event in dated if at <= broke], broke)
    if ear.over:
        return
    log.dated = [entry for entry in log.dated if entry.at_ms - EPOCH_MS <= breaks + away]
    replayed = log.replayed(resume(1, ear.samples), breaks + away, breaks)
    ear.take((back, effect) for effect in [*replayed.effects, *replayed.playback.tick(back)])
    _play(replayed.playback, ear, [(at, event) for at, event in dated if at > back], back + 1_000_000)
    assert not replayed.playback.hushed
    assert ear.samples == count * CHUNK


def _play(playback: Playback, ear: Ear, dated: list[tuple[float, Event]], until: float) -> None:
    for at, event in dated:
        ear.take(run(playback, at))
        ear.take([(at, effect) for effect in playback.event(event, at)])
    ear.take(run(playback, until))


def test_what_is_sent_again_keeps_the_lead() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 120)
    replayed = log.replayed(resume(1, 0), 20_000, 200)
    assert len(played(replayed)) == 51
    assert replayed.playback.due() == 5_020_100.0


def test_without_a_word_from_the_client_the_clock_says_what_was_heard() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(1000, 1, 40)
    log.speech(2500, 1, 10, first=40)
    # The last audio of the caller came 2 s into the turn.
    sent = played(log.replayed(Resume(""), 6000, 3000))
    assert sent[0] == (1, (2000 - AGAIN_MS) * 16, CHUNK)
    assert sent[-1] == (1, 49 * CHUNK, CHUNK)
    assert sum(count for _, _, count in sent) == (5000 - 2000 + AGAIN_MS) * 16


def test_what_a_mark_confirmed_is_not_said_again() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(1000, 1, 20, last=True)
    log.speech(1000, 1, 20, first=20)
    log.control(3010, 1, ControlKind.PLAYOUT, heard_ms=2000)
    assert played(log.replayed(Resume(""), 6000, 3050))[0][:2] == (1, 20 * CHUNK)


def test_a_turn_made_while_nobody_was_there_is_said_whole_and_heard_afterwards() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 1, last=True)
    log.end_of_turn(110, 1)
    log.control(300, 1, ControlKind.PLAYOUT, heard_ms=100, reason="end_of_turn")
    log.final(1000, 2)
    log.speech(2000, 2, 3, last=True)
    log.end_of_turn(2010, 2)
    replayed = log.replayed(Resume(""), 9000, 1000)
    assert played(replayed) == [(2, number * CHUNK, CHUNK) for number in range(3)]
    now = 5_009_000.0
    assert not [e for e in replayed.playback.tick(now + 299) if isinstance(e, Heard)]
    (heard,) = [e for e in replayed.playback.tick(now + 301) if isinstance(e, Heard)]
    assert (heard.turn, heard.heard_ms, heard.end_of_turn) == (2, 300, True)


def test_what_the_client_heard_meanwhile_counts_as_heard() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 5, last=True)
    end = log.end_of_turn(110, 1)
    replayed = log.replayed(resume(1, 5 * CHUNK, end, heard=Playout(1, 0, 500)), 800, 200)
    assert [effect for effect in replayed.effects if isinstance(effect, Heard)] == [Heard(1, 0, 500, True)]


@pytest.mark.parametrize("told", [True, False])
def test_a_sentence_whose_voice_failed_is_told_once_whoever_serves_the_call(told: bool) -> None:
    log = Log()
    log.final(0, 1)
    for number, (sentence, text) in enumerate(((0, "Your order is on its way"), (0, ""), (1, "Anything else?"))):
        fields = {"sentence": sentence, "text": text, "sample_index": 4 * number * CHUNK}
        pcm = bytes(8 * CHUNK)
        log.add(100, SpeechChunk, 1, kind=SpeechChunkKind.AUDIO, pcm=pcm, last_of_sentence=sentence == 1, **fields)
    end = log.end_of_turn(110, 1)
    if told:
        log.control(900, 1, ControlKind.PLAYOUT, sentence=0, heard_ms=800, heard_text="Your order")
    replayed = log.replayed(resume(1, 12 * CHUNK, end), 1000, 950)
    effects = [effect for _, effect in run(replayed.playback, 6_000_000.0)]
    first = [] if told else [Heard(1, 0, 800, False, "Your order")]
    assert effects == [*first, Heard(1, 1, 1200, True, "Anything else?")]


@pytest.mark.parametrize("heard", [True, False])
def test_the_agents_action_is_done_once_its_words_were_heard(heard: bool) -> None:
    log = Log()
    log.final(0, 1)
    log.add(50, Response, 1, kind=ResponseKind.COMPLETED, action="hang_up")
    log.speech(100, 1, 2, last=True)
    end = log.end_of_turn(110, 1)
    if heard:
        log.control(400, 1, ControlKind.PLAYOUT, heard_ms=200, reason="end_of_turn")
    replayed = log.replayed(resume(1, 2 * CHUNK if heard else 0, *([end] if heard else [])), 60_000, 500)
    assert bool([e for e in replayed.effects if isinstance(e, Act)]) is heard
    if not heard:
        now = 5_060_000.0
        assert not replayed.playback.tick(now + 150)
        assert [e for e in replayed.playback.tick(now + 201) if isinstance(e, Act)] == [Act(1, "hang_up", "")]


def test_an_action_waits_anew_for_words_that_are_still_being_made() -> None:
    log = Log()
    log.final(0, 1)
    log.add(50, Response, 1, kind=ResponseKind.COMPLETED, action="hang_up")
    replayed = log.replayed(resume(0, 0), 60_000, 500)
    assert replayed.playback.tick(5_069_000.0) == []
    assert Act(1, "hang_up", "") in replayed.playback.tick(5_070_001.0)


def test_events_after_the_last_known_one_of_their_topic_are_shown_in_order() -> None:
    log = Log()
    known = log.final(0, 1)
    log.add(10, Response, 1, kind=ResponseKind.SENTENCE, text="before the break")
    missed = log.final(2000, 2)
    answer = log.add(2100, Response, 2, kind=ResponseKind.SENTENCE, text="after it")
    replayed = log.replayed(resume(0, 0, known), 3000, 1000)
    assert replayed.missed == [missed, answer]


def test_the_end_of_a_turn_that_the_client_does_not_know_is_told_and_a_known_one_is_not() -> None:
    log = Log()
    log.final(0, 1)
    log.speech(100, 1, 1, last=True)
    end = log.end_of_turn(110, 1)
    assert Tell(end) in log.replayed(resume(1, CHUNK), 1000, 500).effects
    assert Tell(end) not in log.replayed(resume(1, CHUNK, end), 1000, 500).effects


def test_a_repeated_event_counts_once() -> None:
    log = Log()
    log.final(0, 1)
    chunks = log.speech(100, 1, 2)
    log.dated += [Dated(EPOCH_MS + 700, chunk) for chunk in chunks]
    assert len(played(log.replayed(resume(1, 0), 1000, 500))) == 2


def made_ahead(log: Log, at_ms: int, revision: int, turn: int = 1) -> SpeechChunk:
    """A chunk that was made before the words were final."""
    fields = {"kind": SpeechChunkKind.AUDIO, "pcm": bytes(2 * CHUNK), "sample_index": 0}
    event = log.add(at_ms, SpeechChunk, turn, **fields, revision=revision, committed=False)
    assert isinstance(event, SpeechChunk)
    return event


def heard(log: Log, at_ms: int, kind: TranscriptKind, revision: int, text: str = "words") -> None:
    log.add(at_ms, Transcript, 1, kind=kind, utterance=0, text=text, revision=revision)


def test_what_was_made_ahead_is_said_again_where_its_words_became_final() -> None:
    log = Log()
    heard(log, 0, TranscriptKind.PARTIAL, 1)
    made_ahead(log, 10, 1)
    heard(log, 50, TranscriptKind.PARTIAL, 2)
    made_ahead(log, 60, 2)
    heard(log, 200, TranscriptKind.FINAL, 2)
    replayed = log.replayed(resume(1, 0), 1000, 300)
    assert played(replayed) == [(1, 0, CHUNK)]
    assert [effect.chunk.revision for effect in replayed.effects if isinstance(effect, Play)] == [2]


def test_what_was_made_ahead_of_other_words_is_never_said() -> None:
    log = Log()
    heard(log, 0, TranscriptKind.PARTIAL, 1)
    made_ahead(log, 10, 1)
    heard(log, 200, TranscriptKind.FINAL, 1, "others")
    assert played(log.replayed(resume(1, 0), 1000, 300)) == []


def test_what_was_made_ahead_waits_for_the_final_after_a_resume_too() -> None:
    log = Log()
    heard(log, 0, TranscriptKind.PARTIAL, 1)
    chunk = made_ahead(log, 10, 1)
    said = log.add(5, Response, 1, kind=ResponseKind.SENTENCE, revision=1, committed=False)
    replayed = log.replayed(resume(0, 0), 1000, 5)
    assert played(replayed) == []
    assert said not in replayed.missed
    heard(log, 1100, TranscriptKind.FINAL, 1)
    effects = replayed.playback.event(log.dated[-1].event, 5_001_100.0)
    assert [effect for effect in effects if effect in (Play(chunk), Tell(said))] == [Tell(said), Play(chunk)]


def test_a_reply_made_ahead_counts_as_played_from_the_final_on() -> None:
    """It lay in the log for two seconds; nothing of it was heard before."""
    log = Log()
    heard(log, 0, TranscriptKind.PARTIAL, 1)
    for number in range(20):
        fields = {"kind": SpeechChunkKind.AUDIO, "pcm": bytes(2 * CHUNK), "sample_index": number * CHUNK}
        log.add(10, SpeechChunk, 1, **fields, revision=1, committed=False)
    heard(log, 2000, TranscriptKind.FINAL, 1)
    again = played(log.replayed(Resume("", None, None, frozenset()), 3000, 2500))
    assert again[0] == (1, (500 - AGAIN_MS) * 16, CHUNK)

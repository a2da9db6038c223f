"""The ear, with a scripted detector and engine: tables, and properties over audio cut and crashed anywhere."""

import array
import itertools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors.agents import load_agents
from processors.engine import HeardWord, Transcribe, Transcribed
from processors.stage import (
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
    Wake,
    Woken,
    event_id,
)
from processors.stt.core import LAST_WORDS_S, STALLED_S, SttCore
from processors.stt.endpoint import SttRules, pause_needed_ms, rules_of
from processors.stt.pace import PartialPace
from processors.stt.state import WINDOW_BYTES, WINDOW_SAMPLES, Hearing
from schemas.event import Event
from schemas.events import AudioFrame, Control, ControlKind, Session, SessionKind, Transcript, TranscriptKind
from streams.settings import REPOSITORY

SESSION = "5b0f5a1e-3c55-4a30-9d4c-0d1a40a5a111"
TOPIC = "voice.audio.in"
RATE = 16000


class ScriptedDetector:
    """Loud samples are speech. Its state counts windows and shakes the answer, so that a lost state shows."""

    def __call__(self, state: bytes, windows: bytes) -> tuple[list[float], bytes]:
        found = []
        for at in range(0, len(windows), WINDOW_BYTES):
            count, tail = struct.unpack("<if", state) if state else (0, 0.0)
            samples = array.array("h", windows[at : at + WINDOW_BYTES])
            level = max(max(samples), -min(samples)) / 10000
            shake = (count * 7919 % 13 - 6) / 100
            found.append(min(1.0, max(0.0, max(level, tail * 0.4) + shake)))
            state = struct.pack("<if", count + 1, level)
        return found, state


def speech(ms: int, level: int = 9000) -> bytes:
    return struct.pack("<h", level) * (ms * RATE // 1000)


def murmur(ms: int) -> bytes:
    return speech(ms, 4600)


def silence(ms: int) -> bytes:
    return bytes(2 * ms * RATE // 1000)


def frame(pcm: bytes, index: int, number: int, agent: str = "shop") -> AudioFrame:
    return AudioFrame(
        event_id=event_id(SESSION, f"frame-{index}"),
        session_id=SESSION,
        tenant_id="demo",
        agent_id=agent,
        turn=0,
        seq=number,
        occurred_at=index * 1000 // 16,
        pcm=pcm,
        sample_index=index,
        captured_at=(index + len(pcm) // 2) * 1000 // 16,
    )


def cut(pcm: bytes, sizes: list[int]) -> list[AudioFrame]:
    """The audio as frames of these sizes in samples, over and over."""
    frames: list[AudioFrame] = []
    at = 0
    while at < len(pcm) // 2:
        size = sizes[len(frames) % len(sizes)]
        frames.append(frame(pcm[2 * at : 2 * (at + size)], at, len(frames)))
        at += size
    return frames


def read(request: Transcribe) -> Transcribed:
    """As many words as there is speech: one for each 200 ms that is loud."""
    loud = sum(1 for value in array.array("h", request.pcm)[::16] if abs(value) > 3000) * 16
    count = round(loud / (0.2 * RATE))
    words = tuple(HeardWord("word", 100 * n, 100 * n + 90, 0.9) for n in range(count))
    return Transcribed(" ".join(["word"] * count) + "." * bool(count), words, 0.9, "en", "scripted", 50.0)


@dataclass
class Ear:
    """A little runner: performs outcomes, keeps what is held and what is in the log."""

    core: SttCore = field(default_factory=lambda: SttCore(ScriptedDetector()))
    answer: Any = read
    log: list[Transcript] = field(default_factory=list)
    state: Hearing = field(init=False)
    asks: list[Ask] = field(default_factory=list)
    asked: int = 0
    held: list[int] = field(default_factory=list)
    wakes: dict[str, int] = field(default_factory=dict)
    drops: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    requests: list[Transcribe] = field(default_factory=list)
    recorded: dict[str, list[Transcript]] = field(default_factory=dict)
    ended: bool = False
    now_us: int = 1

    def __post_init__(self) -> None:
        self.state = self.core.start(SESSION)

    def step(self, happening: Happening) -> None:
        step = self.core.apply(self.state, happening, self.now_us)
        self.state = step.state
        known = {event.event_id for event in self.log}
        for outcome in step.outcomes:
            match outcome:
                case Emit(event):
                    assert isinstance(event, Transcript)
                    if event.event_id not in known:
                        self.log.append(event)
                case Ask():
                    self.asks.append(outcome)
                    self.requests.append(outcome.request)
                case Cancel(ask_id):
                    self.asks = [ask for ask in self.asks if ask.ask_id != ask_id]
                case Drop(reason):
                    self.drops.append(reason)
                case Refuse(reason, _):
                    self.refusals.append(reason)
                case _:
                    self.account(outcome, happening)
        assert len(self.asks) <= 1, "one ask at a time"

    def account(self, outcome: Outcome, happening: Happening) -> None:
        match outcome:
            case Hold():
                assert isinstance(happening, Received)
                self.held.append(happening.position.offset)
            case Release(_, before):
                self.held = [offset for offset in self.held if offset >= before]
            case Wake(name, at_us):
                self.wakes.pop(name, None)
                if at_us is not None:
                    self.wakes[name] = at_us
            case End():
                self.ended = True

    def receive(self, event: Event, offset: int = 0) -> None:
        recorded = tuple(self.recorded.pop(event.event_id, ()))
        self.step(Received(event, Position(event.TOPIC, 0, offset), recorded))

    def reply(self) -> None:
        while self.asks:
            ask = self.asks.pop(0)
            self.tell(ask, self.answer(ask.request))

    def tell(self, ask: Ask, reply: Transcribed | str) -> None:
        """What the engine says, or why it failed."""
        self.step(Failed(ask.ask_id, reply) if isinstance(reply, str) else Answered(ask.ask_id, reply, last=True))

    def hear(self, frames: list[AudioFrame], first_offset: int = 0, answer_every: int = 1) -> None:
        for number, event in enumerate(frames):
            self.now_us = max(self.now_us, event.captured_at)
            self.receive(event, first_offset + number)
            if number % answer_every == answer_every - 1:
                self.reply()

    def stall(self) -> None:
        """No more frames: the timers run out."""
        for _ in range(3):
            self.reply()
            at_us = self.wakes.pop("stalled", None)
            if at_us is not None:
                self.now_us = max(self.now_us, at_us)
                self.step(Woken("stalled"))
        self.reply()

    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.log]

    def finals(self) -> list[Transcript]:
        return [event for event in self.log if event.kind is TranscriptKind.FINAL]


def heard(pcm: bytes, frame_ms: int = 20, **ear: Any) -> Ear:
    listener = Ear(**ear)
    listener.hear(cut(pcm, [frame_ms * 16]))
    return listener


def test_an_utterance_from_onset_to_final() -> None:
    ear = heard(silence(500) + speech(1600) + silence(1000))
    assert ear.kinds()[0] == "speech_started"
    assert ear.kinds()[-1] == "final"
    assert "partial" in ear.kinds()
    final = ear.finals()[0]
    assert (final.turn, final.utterance, final.text) == (1, 0, " ".join(["word"] * 8) + ".")
    assert abs(final.audio_start_ms - 500) <= 32
    assert abs(final.audio_end_ms - 2100) <= 64
    assert 288 <= final.pause_ms <= 352
    assert final.words[0].start_ms >= 100
    speculated = ear.log[-2]
    assert speculated.kind is TranscriptKind.PARTIAL
    assert 90 <= speculated.pause_ms <= 160
    assert speculated.revision == final.revision
    assert {event.causation_id for event in ear.log} == {ear.log[0].causation_id}


def test_a_turns_final_has_one_id_however_it_was_heard() -> None:
    turns = silence(500) + speech(800) + silence(1000) + speech(800) + silence(1000)
    finals, others = heard(turns).finals(), heard(silence(5000) + turns, frame_ms=100).finals()
    assert {final.causation_id for final in finals}.isdisjoint(final.causation_id for final in others)
    assert [final.event_id for final in finals] == [final.event_id for final in others]
    assert len({final.event_id for final in finals}) == 2


def test_the_final_takes_the_reading_of_the_hesitation() -> None:
    ear = heard(silence(500) + speech(400) + silence(1000))
    assert [request.partial for request in ear.requests] == [False]


def test_speech_that_goes_on_makes_the_revision_void() -> None:
    ear = heard(silence(400) + speech(600) + silence(220) + speech(600) + silence(1000))
    kinds = ear.kinds()
    assert kinds.count("final") == 1
    resumed = ear.log[kinds.index("speech_resumed")]
    assert resumed.revision == max(event.revision for event in ear.log[: kinds.index("speech_resumed")])
    assert ear.finals()[0].text.count("word") == 6
    assert ear.finals()[0].revision > resumed.revision


@pytest.mark.parametrize(
    ("text", "pause_ms"),
    [
        ("Where is my order?", 300),
        ("No.", 300),
        ("Yes, please.", 300),
        ("", 300),
        ("I would like to return the", 900),
        ("I want a tent and", 900),
        ("My order number is 1234.", 900),
        ("It is one two", 900),
        ("Well, um.", 900),
        ("I would like...", 900),
        ("Do you have boots in size 10?", 300),
        ("And Mr.", 900),
        ("where is my order", 900),
        ("I want to know where it is.", 600),
    ],
)
def test_words_decide_how_long_a_pause_must_be(text: str, pause_ms: int) -> None:
    assert pause_needed_ms(text, SttRules()) == pause_ms


@pytest.mark.parametrize(
    ("text", "sure", "pause_ms"),
    [
        ("He was not.", 0.9, 300),
        ("He was not.", 0.75, 600),
        ("Had he married?", 0.75, 600),
        ("He was not.", 0.6, 600),
        ("He was not.", 0.4, 600),
        ("He was not.", 0.39, 900),
        ("I want to return it.", 0.75, 900),
        ("He was not an illness.", 0.2, 900),
        ("Do you have boots in size 10?", 0.6, 900),
        ("No, that is all. Goodbye.", 0.6, 300),
        ("", 0.0, 300),
    ],
)
def test_an_unsure_end_is_waited_for(text: str, sure: float, pause_ms: int) -> None:
    assert pause_needed_ms(text, SttRules(), sure) == pause_ms


@pytest.mark.parametrize(
    ("text", "pause_ms"),
    [
        ("My order number is 1.", 900),
        ("My order number is one, zero, four.", 900),
        ("My order number is one zero four two.", 300),
        ("It is 1-0-4-2.", 300),
        ("It is 10425.", 900),
    ],
)
def test_a_number_of_known_form_is_over_with_its_last_digit(text: str, pause_ms: int) -> None:
    assert pause_needed_ms(text, SttRules(numbers=("[0-9]{4}",)), 0.5) == pause_ms


@pytest.mark.parametrize(
    ("text", "pause_ms"),
    [
        ("I will take the cheaper one.", 300),
        ("I mean that one.", 300),
        ("Is there another one?", 300),
        ("One.", 900),
        ("It is four one.", 900),
        ("The order number is one.", 900),
        ("It is a hundred one.", 900),
    ],
)
def test_one_is_not_always_a_number(text: str, pause_ms: int) -> None:
    assert pause_needed_ms(text, SttRules(), 0.9, 0.5) == pause_ms


def test_an_agents_numbers_and_sentences_are_known_to_its_ear() -> None:
    rules = rules_of(load_agents(REPOSITORY / "infra" / "agents"))("shop")
    assert rules.numbers == ("[0-9]{4}",)
    # A language model would hardly end a sentence there.
    assert pause_needed_ms("I want a human.", SttRules(), 0.89, 0.002) == rules.completion_ms
    assert pause_needed_ms("I want a human.", rules, 0.89, 0.002) == rules.turn_ms
    assert pause_needed_ms("I want a.", rules, 0.9, 0.002) == rules.completion_ms


@pytest.mark.parametrize(
    ("text", "sure", "complete", "pause_ms"),
    [
        ("Where is my order?", 0.95, 0.5, 300),
        ("Where is my order?", 0.95, 0.05, 300),
        ("Where is my order?", 0.85, 0.25, 300),
        ("Where is my order?", 0.6, 0.5, 300),  # the mark is in doubt, the words are not
        ("Had he married a more amiable.", 0.95, 0.001, 600),  # and the other way round
        ("Where is my order?", 0.85, 0.2, 600),
        ("Where is my order?", 0.7, 0.25, 600),
        ("Where is my order?", 0.7, 0.05, 600),
        ("Where is my order?", 0.4, 0.25, 600),
        ("Had he married a more amiable.", 0.85, 0.001, 900),
        ("Where is my order?", 0.7, 0.04, 900),
        ("Where is my order?", 0.5, 0.2, 900),
        ("Where is my order?", 0.3, 0.9, 900),  # a sentence that the voice goes on after
        ("Where is my order?", math.nan, math.nan, 900),
        ("Where is my order,", 0.95, 0.9, 900),
        ("Where is my", 0.95, 0.9, 900),
        ("The number is 10", 0.95, 0.9, 900),
        ("I have seen it.", 0.95, 0.3, 300),
        ("I have seen it.", 0.95, 0.05, 600),
        ("I have seen it.", 0.85, 0.2, 900),
        ("Yes, please.", 0.6, 0.0, 300),
        ("Could you please.", 0.2, 0.0, 600),
    ],
)
def test_whether_the_words_are_a_sentence_counts_beside_the_mark(
    text: str, sure: float, complete: float, pause_ms: int
) -> None:
    assert pause_needed_ms(text, SttRules(), sure, complete) == pause_ms


@pytest.mark.parametrize(("sure", "least_ms"), [(0.9, 272), (0.75, 592), (0.3, 880)])
def test_the_last_words_confidence_decides_the_pause(sure: float, least_ms: int) -> None:
    def doubtful(request: Transcribe) -> Transcribed:
        reply = read(request)
        words = tuple(HeardWord(word.word, word.start_ms, word.end_ms, sure) for word in reply.words)
        return Transcribed(reply.text, words, reply.confidence, reply.language, reply.model, reply.compute_ms)

    ear = heard(silence(400) + speech(900) + silence(1000), answer=doubtful)
    assert least_ms <= ear.finals()[0].pause_ms <= least_ms + 70


def test_an_open_end_waits_for_the_completion_pause() -> None:
    def unfinished(request: Transcribe) -> Transcribed:
        return replace_text(read(request), "I would like to return the")

    ear = heard(silence(400) + speech(900) + silence(700), answer=unfinished)
    assert not ear.finals()
    ear.hear(cut_from(silence(300), ear))
    assert 880 <= ear.finals()[0].pause_ms <= 950


def replace_text(reply: Transcribed, text: str) -> Transcribed:
    return Transcribed(text, (), reply.confidence, reply.language, reply.model, reply.compute_ms)


def cut_from(pcm: bytes, ear: Ear) -> list[AudioFrame]:
    """Further frames of 20 ms after what the ear has heard."""
    begin = ear.state.next_sample
    return [frame(event.pcm, event.sample_index + begin, event.seq) for event in cut(pcm, [320])]


def test_an_agents_pauses_vocabulary_and_language_rule() -> None:
    rules = SttRules(hesitation_ms=200, turn_ms=600, completion_ms=900, vocabulary=("Trailhead",), language="de")
    core = SttCore(ScriptedDetector(), lambda agent_id: rules if agent_id == "shop" else SttRules())
    ear = heard(silence(400) + speech(500) + silence(1200), core=core)
    assert 590 <= ear.finals()[0].pause_ms <= 640
    assert ear.requests[-1].vocabulary == ("Trailhead",)
    assert ear.requests[-1].language == "de"


@pytest.mark.parametrize("doubtful", [True, False])
def test_what_a_reading_says_of_itself_is_told_with_the_next_ask_of_the_utterance(doubtful: bool) -> None:
    def answer(request: Transcribe) -> Transcribed:
        return msgspec.structs.replace(read(request), doubtful=doubtful)

    ear = heard(silence(500) + speech(1600) + silence(1500) + speech(400) + silence(1000), answer=answer)
    told = [(request.partial, request.doubtful) for request in ear.requests]
    assert told[0] == (True, False)
    assert told[-2] == (False, doubtful)
    assert told[-1] == (False, False)


def test_the_sessions_language_comes_before_the_agents() -> None:
    ear = Ear()
    ear.receive(session(SessionKind.STARTED, language="fr"))
    ear.hear(cut(silence(400) + speech(500) + silence(800), [320]))
    assert ear.requests[-1].language == "fr"


def in_german(request: Transcribe) -> Transcribed:
    return msgspec.structs.replace(read(request), language="de")


@pytest.mark.parametrize(("languages", "expected"), [(("en", "de"), ["en", "de", "de"]), ((), ["en", "en", "en"])])
def test_a_caller_who_changes_the_language_is_expected_to_go_on_in_it(
    languages: tuple[str, ...], expected: list[str]
) -> None:
    core = SttCore(ScriptedDetector(), lambda agent_id: SttRules(languages=languages))
    ear = Ear(core=core, answer=in_german)
    ear.receive(session(SessionKind.STARTED, language="en"))
    ear.hear(cut(silence(400) + 3 * (speech(500) + silence(1200)), [320]))
    whole = [request for request in ear.requests if not request.partial]
    assert [request.language for request in whole] == expected
    assert {request.languages for request in whole} == {languages}
    assert [final.language for final in ear.finals()] == ["de", "de", "de"]
    again = core.load(SESSION, core.save(ear.state))
    assert again.language == expected[-1]
    ear.receive(session(SessionKind.UPDATED, language="en"))
    assert ear.state.language == expected[-1]


def session(kind: SessionKind, language: str = "en") -> Session:
    return Session(
        event_id=event_id(SESSION, str(kind)),
        session_id=SESSION,
        tenant_id="demo",
        agent_id="shop",
        turn=0,
        seq=0,
        occurred_at=0,
        kind=kind,
        language=language,
    )


def control(kind: ControlKind) -> Control:
    return Control(
        event_id=event_id(SESSION, str(kind)),
        session_id=SESSION,
        tenant_id="demo",
        agent_id="shop",
        turn=0,
        seq=0,
        occurred_at=0,
        kind=kind,
    )


def test_a_click_is_no_utterance() -> None:
    assert heard(silence(400) + speech(60) + silence(1000)).log == []


def test_noise_without_words_takes_no_turn() -> None:
    def nothing(request: Transcribe) -> Transcribed:
        return Transcribed("", (), 0.0, "en", "scripted", 1.0)

    ear = heard(silence(400) + speech(500) + silence(1000), answer=nothing)
    assert ear.kinds() == ["speech_started", "partial"]
    assert ear.log[-1].text == ""
    ear.answer = read
    ear.hear(cut_from(speech(500) + silence(1000), ear))
    assert [(final.turn, final.utterance) for final in ear.finals()] == [(1, 1)]


def test_two_utterances_are_two_turns() -> None:
    one = speech(700) + silence(1000)
    ear = heard(silence(400) + one + one)
    assert [(final.turn, final.utterance) for final in ear.finals()] == [(1, 0), (2, 1)]


def test_a_slow_engine_does_not_join_utterances() -> None:
    frames = cut(silence(400) + speech(700) + silence(1200) + speech(700) + silence(1200), [320])
    ear = Ear()
    ear.hear(frames, answer_every=10_000)
    assert ear.finals() == []
    ear.stall()
    assert [final.text.count("word") for final in ear.finals()] == [4, 4]


def quiet(at_us: int) -> Control:
    return replace(control(ControlKind.QUIET), occurred_at=at_us)


def test_frames_that_stop_end_the_utterance() -> None:
    ear = heard(silence(400) + speech(700))
    assert not ear.finals()
    ear.stall()
    assert len(ear.finals()) == 1


def test_a_client_that_sends_no_silence_is_answered_soon() -> None:
    ear = heard(silence(400) + speech(700))
    frames_stopped_us = ear.wakes["stalled"]
    ear.receive(quiet(ear.now_us + 1_000_000))
    assert ear.wakes["stalled"] < frames_stopped_us
    ear.stall()
    assert len(ear.finals()) == 1


@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("known", [0, 20, 45])
def test_frames_that_come_after_quiet_are_the_last_ones(known: int, crashed: bool) -> None:
    frames = cut(silence(400) + speech(700), [320])
    ear = Ear()
    ear.hear(frames[:known])
    ear.receive(quiet(frames[-1].captured_at + 1_000_000))
    if crashed:
        ear.state = ear.core.load(SESSION, ear.core.save(ear.state))
        ear.hear(frames)
    else:
        ear.hear(frames[known:], first_offset=known)
    assert ear.wakes["stalled"] - ear.now_us == LAST_WORDS_S * 1e6
    ear.stall()
    assert len(ear.finals()) == 1


def test_frames_that_are_younger_than_quiet_are_waited_for_as_ever() -> None:
    frames = cut(silence(400) + speech(1400), [320])
    ear = Ear()
    ear.hear(frames[:40])
    ear.receive(quiet(frames[39].captured_at))
    ear.hear(frames[40:60], first_offset=40)
    assert ear.wakes["stalled"] - ear.now_us == STALLED_S * 1e6
    ear.receive(quiet(frames[39].captured_at))
    assert ear.wakes["stalled"] - ear.now_us == STALLED_S * 1e6


@pytest.mark.parametrize("message", [session(SessionKind.ENDED), control(ControlKind.HANG_UP)])
def test_the_end_of_the_call_waits_for_the_last_words(message: Event) -> None:
    ear = heard(silence(400) + speech(700))
    ear.receive(message)
    assert not ear.ended
    ear.stall()
    assert len(ear.finals()) == 1
    assert ear.ended


def test_audio_that_comes_after_the_end_of_the_session_is_heard() -> None:
    ear = Ear()
    ear.receive(session(SessionKind.ENDED))
    ear.hear(cut(silence(400) + speech(700), [320]))
    ear.stall()
    assert len(ear.finals()) == 1
    assert ear.ended


@pytest.mark.parametrize("kind", [ControlKind.ERASE, ControlKind.ERASED])
def test_an_erased_call_is_forgotten_at_once(kind: ControlKind) -> None:
    ear = heard(silence(400) + speech(700))
    ear.receive(control(kind))
    assert ear.ended


def test_other_controls_change_nothing() -> None:
    ear = heard(silence(400) + speech(300))
    before = ear.state
    for kind in (ControlKind.BARGE_IN, ControlKind.DTMF, ControlKind.PLAYOUT):
        ear.receive(control(kind))
    assert ear.state == before


def wait_out(ear: Ear) -> None:
    """Nothing more comes, until no timer is left that waits for what is held."""
    while (at_us := ear.wakes.pop("abandoned", None)) is not None:
        ear.now_us = at_us
        ear.step(Woken("abandoned"))


@pytest.mark.parametrize("begun", [True, False], ids=["a call", "nobody began it"])
def test_frames_that_nobody_continues_are_held_for_two_minutes_at_most(begun: bool) -> None:
    ear = Ear()
    if begun:
        ear.receive(session(SessionKind.STARTED))
    ear.hear(cut(silence(400) + speech(100), [320]))
    last_us = ear.now_us
    ear.now_us = ear.wakes.pop("abandoned")
    ear.step(Woken("abandoned"))
    assert ear.held, "the last frame came less than a minute ago"
    wait_out(ear)
    assert not ear.held
    assert not ear.ended
    assert ear.now_us - last_us <= 120_000_000


@pytest.mark.parametrize("crashed", [False, True])
def test_a_caller_who_comes_back_after_that_is_heard(crashed: bool) -> None:
    audio = silence(700) + speech(700) + silence(1000)
    frames = cut(audio, [330])
    (undisturbed,) = heard(audio).finals()
    ear = Ear()
    ear.hear(frames[:20])
    wait_out(ear)
    assert not ear.held
    if crashed:
        ear.state = ear.core.load(SESSION, ear.core.save(ear.state))
    ear.hear(frames[20:], first_offset=20)
    assert "abandoned" in ear.wakes
    (final,) = ear.finals()
    assert (final.text, final.turn) == (undisturbed.text, undisturbed.turn)
    assert abs(final.audio_end_ms - undisturbed.audio_end_ms) <= 32


def test_speech_that_is_being_read_is_not_let_go() -> None:
    ear = Ear()
    ear.hear(cut(silence(400) + speech(700), [320]), answer_every=10_000)
    for _ in range(3):
        ear.now_us = ear.wakes.pop("abandoned")
        ear.step(Woken("abandoned"))
    assert ear.held
    ear.stall()
    assert len(ear.finals()) == 1
    wait_out(ear)
    assert not ear.held


@pytest.mark.parametrize("talk_ms", [40_000, 65_000])
def test_endless_speech_is_cut_and_none_of_it_lost(talk_ms: int) -> None:
    ear = heard(silence(400) + speech(talk_ms) + silence(1200), frame_ms=100)
    finals = ear.finals()
    assert len(finals) >= 2
    assert all(final.audio_end_ms - final.audio_start_ms <= 28_000 for final in finals)
    assert abs(sum(final.text.count("word") for final in finals) - talk_ms / 200) <= len(finals)
    for first, second in itertools.pairwise(finals):
        assert first.audio_end_ms == second.audio_start_ms
    assert max(len(request.pcm) for request in ear.requests) <= 2 * RATE * 30


def test_a_long_utterance_is_cut_at_a_short_pause() -> None:
    ear = heard(silence(400) + speech(21_000) + silence(130) + speech(3000) + silence(1200), frame_ms=100)
    assert abs(ear.finals()[0].audio_end_ms - 21_400) <= 64


def test_repeated_and_overlapping_frames_are_heard_once() -> None:
    pcm = silence(400) + speech(700) + silence(1000)
    frames = cut(pcm, [320])
    doubled = [event for event in frames for _ in range(2)]
    overlapping = [
        frame(pcm[2 * max(0, at - 160) : 2 * (at + 320)], max(0, at - 160), 0) for at in range(0, 33600, 320)
    ]
    for sent in (doubled, overlapping):
        ear = Ear()
        ear.hear(sent)
        assert [final.text for final in ear.finals()] == [final.text for final in heard(pcm).finals()]
    ear = Ear()
    ear.hear(doubled)
    assert ear.drops.count("repeated") == len(frames)


def test_a_short_gap_is_silence_and_a_long_one_a_new_beginning() -> None:
    frames = cut(silence(400) + speech(1400) + silence(1000), [320])
    ear = Ear()
    ear.hear(frames[:40] + frames[42:])
    assert ear.drops == ["gap_filled"]
    assert ear.finals()[0].audio_end_ms == heard(silence(400) + speech(1400) + silence(1000)).finals()[0].audio_end_ms
    late = [frame(event.pcm, event.sample_index + 80_000, event.seq) for event in frames]
    ear = Ear()
    ear.hear(frames[:60])
    ear.hear(late, first_offset=60)
    assert ear.drops == ["gap"]
    assert [final.utterance for final in ear.finals()] == [0, 1]
    assert abs(ear.finals()[1].audio_start_ms - 5400) <= 32


def test_two_gaps_while_the_engine_is_slow_are_two_beginnings() -> None:
    frames = cut(silence(400) + speech(1400) + silence(1000), [320])
    ear = Ear()
    for number in range(3):
        moved = [frame(event.pcm, event.sample_index + number * 80_000, event.seq) for event in frames]
        ear.hear(moved[: 60 if number < 2 else None], first_offset=100 * number, answer_every=1000)
    ear.reply()
    assert ear.drops == ["gap", "gap"]
    assert [final.utterance for final in ear.finals()] == [0, 1, 2]
    assert [round(final.audio_start_ms / 5000) for final in ear.finals()] == [0, 1, 2]


@pytest.mark.parametrize("frame_ms", [20, 96])
def test_a_frame_is_held_while_some_of_it_is_heard_after_a_recorded_final(frame_ms: int) -> None:
    frames = cut(silence(400) + speech(30_000), [frame_ms * 16])
    first = Ear()
    first.hear(frames)
    (final,) = first.finals()
    assert final.pause_ms == 0
    again = Ear()
    for said in first.log:
        again.recorded.setdefault(str(said.causation_id), []).append(said)
    for number, event in enumerate(frames):
        again.receive(event, number)
        assert again.state.needed_offset >= min(again.held, default=again.state.needed_offset)
        assert again.state.needed_offset in (*again.held, again.state.offset_next)


@pytest.mark.parametrize(
    "bad",
    [
        replace(frame(b"\0\0", 0, 0), pcm=b"\0"),
        replace(frame(b"\0\0", 0, 0), pcm=b""),
        replace(frame(b"\0\0", 0, 0), sample_rate_hz=8000),
        replace(frame(b"\0\0", 0, 0), sample_index=-1),
        replace(frame(b"\0\0", 0, 0), sample_index=2**53),
        replace(frame(b"\0\0", 0, 0), pcm=bytes(2 * RATE * 3)),
    ],
)
def test_bad_frames_are_refused_and_change_nothing(bad: AudioFrame) -> None:
    ear = Ear()
    ear.receive(bad)
    assert ear.refusals == ["bad_frame"]
    assert ear.held == []
    assert ear.state == Ear().state


def test_a_failed_reading_is_tried_again() -> None:
    failures = iter(["crashed"])
    ear = heard(
        silence(400) + speech(500) + silence(1000), answer=lambda request: next(failures, None) or read(request)
    )
    assert len(ear.finals()) == 1


def test_speech_that_no_engine_reads_is_a_turn_without_words() -> None:
    """So that the caller is asked to say it again, rather than left without a word."""
    ear = heard(silence(400) + speech(700) + silence(1000), answer=lambda request: "crashed")
    assert ear.kinds() == ["speech_started", "final"]
    final = ear.log[-1]
    assert (final.text, final.failure, final.turn, ear.drops) == ("", "crashed", 1, ["unheard"])
    assert len([request for request in ear.requests if not request.partial]) == 2
    assert (ear.state.speech, ear.state.turn) == (None, 1)


def test_a_cough_that_no_engine_reads_takes_no_turn() -> None:
    ear = heard(silence(400) + speech(200) + silence(1000), answer=lambda request: "crashed")
    assert ear.kinds() == ["speech_started", "partial"]
    assert (ear.log[-1].failure, ear.state.turn) == ("", 0)


def test_what_was_read_names_no_failure() -> None:
    answers = iter(["timeout"])
    ear = heard(
        silence(400) + speech(500) + silence(1000),
        answer=lambda request: next(answers, "") or read(request),
    )
    assert [(final.failure, bool(final.text)) for final in ear.finals()] == [("", True)]


def test_a_partial_that_missed_nothing_stands_in_for_a_failed_reading() -> None:
    ear = heard(
        silence(400) + speech(660) + silence(1000),
        answer=lambda request: read(request) if request.partial else "timeout",
    )
    assert [final.text.count("word") for final in ear.finals()] == [3]


def test_silence_is_released_and_speech_is_held() -> None:
    ear = heard(silence(3000))
    assert len(ear.held) <= 26, "no more than the pre-roll"
    ear.hear(cut_from(speech(2000), ear), first_offset=150)
    assert len(ear.held) >= 100
    ear.hear(cut_from(silence(1000), ear), first_offset=250)
    assert len(ear.held) <= 50


# ---- properties


pieces = st.lists(
    st.one_of(
        st.tuples(st.just("speech"), st.integers(200, 1800)),
        st.tuples(st.just("silence"), st.integers(40, 1500)),
        st.tuples(st.just("murmur"), st.integers(40, 400)),
    ),
    min_size=1,
    max_size=6,
)
sizes = st.lists(st.integers(300, 1600), min_size=1, max_size=5)
# As the gateway's in a crowd: what is judged together then ends amid pauses, and an end of turn waits for its frame.
all_sizes = st.lists(st.integers(300, 4000) | st.sampled_from([16_000, 18_400]), min_size=1, max_size=5)
relaxed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def sound(parts: list[tuple[str, int]]) -> bytes:
    """Audio of such parts, between silences."""
    makers: dict[str, Callable[[int], bytes]] = {"speech": speech, "silence": silence, "murmur": murmur}
    return silence(300) + b"".join(makers[name](ms) for name, ms in parts) + silence(1200)


def facts(ear: Ear) -> list[tuple[Any, ...]]:
    kept = (TranscriptKind.SPEECH_STARTED, TranscriptKind.FINAL)
    return [
        (str(event.kind), event.utterance, event.turn, event.audio_start_ms, event.text)
        + ((event.audio_end_ms,) if event.kind is TranscriptKind.FINAL else ())
        for event in ear.log
        if event.kind in kept
    ]


@relaxed
@given(pieces, sizes, sizes)
def test_the_cut_into_frames_does_not_matter(parts: list[tuple[str, int]], one: list[int], other: list[int]) -> None:
    pcm = sound(parts)
    first, second = Ear(), Ear()
    first.hear(cut(pcm, one))
    second.hear(cut(pcm, other))
    assert facts(first) == facts(second)


def crashed(frames: list[AudioFrame], delay: int, data: st.DataObject) -> tuple[list[Transcript], Ear]:
    """Hears the frames, dies somewhere, and hears again what was held: what the log held then, and the second ear."""
    crash = data.draw(st.integers(1, len(frames)), label="crash")
    ear = Ear()
    snapshots: list[tuple[int, bytes, int]] = [(0, b"", 0)]
    for number, event in enumerate(frames[:crash]):
        ear.now_us = max(ear.now_us, event.captured_at)
        ear.receive(event, number)
        if number % delay == delay - 1:
            ear.reply()
        if not ear.asks and data.draw(st.booleans(), label="snapshot"):
            snapshots.append((len(ear.log), ear.core.save(ear.state), ear.held[0] if ear.held else number + 1))
    lost = data.draw(st.integers(0, min(2, len(ear.log))), label="events that did not reach the log")
    kept = ear.log[: len(ear.log) - lost]
    # A snapshot is written only when everything emitted before it is in the log.
    _, snapshot, first = next(taken for taken in reversed(snapshots) if taken[0] <= len(kept))
    again = Ear(log=list(kept))
    again.state = again.core.load(SESSION, snapshot)
    for past in kept:
        again.recorded.setdefault(past.causation_id or "", []).append(past)
    again.hear(frames[first:], first_offset=first, answer_every=delay)
    again.stall()
    return kept, again


@relaxed
@given(pieces, all_sizes, st.data())
def test_a_crash_anywhere_repeats_nothing(parts: list[tuple[str, int]], cuts: list[int], data: st.DataObject) -> None:
    frames = cut(sound(parts), cuts)
    whole = Ear()
    whole.hear(frames)
    whole.stall()
    _, again = crashed(frames, 1, data)
    assert facts(again) == facts(whole)
    for kind in (TranscriptKind.SPEECH_STARTED, TranscriptKind.FINAL):
        assert [e.event_id for e in again.log if e.kind is kind] == [e.event_id for e in whole.log if e.kind is kind]


@relaxed
@given(pieces, all_sizes, st.integers(2, 12), st.data())
def test_a_crash_under_a_slow_engine_keeps_what_was_said(
    parts: list[tuple[str, int]], cuts: list[int], delay: int, data: st.DataObject
) -> None:
    """When answers come at other moments, an open utterance may end elsewhere; what the log holds stays true."""
    frames = cut(sound(parts), cuts)
    whole = Ear()
    whole.hear(frames, answer_every=delay)
    whole.stall()
    kept, again = crashed(frames, delay, data)
    assert again.log[: len(kept)] == kept
    finals = again.finals()
    assert len({final.utterance for final in finals}) == len(finals), "never two finals for one utterance"
    assert [final.turn for final in finals] == list(range(1, len(finals) + 1))
    for first, second in itertools.pairwise(finals):
        assert first.audio_end_ms <= second.audio_start_ms
    for final in whole.finals():
        assert any(f.audio_start_ms <= final.audio_start_ms <= f.audio_end_ms for f in finals), "no speech is lost"


@relaxed
@given(st.lists(st.tuples(st.integers(250, 1500), st.integers(1000, 1600)), min_size=1, max_size=5), st.integers(1, 40))
def test_every_stretch_of_speech_gets_exactly_one_final(talk: list[tuple[int, int]], delay: int) -> None:
    ear = Ear()
    pcm = silence(400) + b"".join(speech(loud_ms) + silence(quiet_ms) for loud_ms, quiet_ms in talk)
    ear.hear(cut(pcm, [640]), answer_every=delay)
    ear.stall()
    assert [final.turn for final in ear.finals()] == list(range(1, len(talk) + 1))
    for final, (loud_ms, _) in zip(ear.finals(), talk, strict=True):
        assert abs(final.audio_end_ms - final.audio_start_ms - loud_ms) <= 3 * WINDOW_SAMPLES / 16
        assert final.text.count("word") == round(loud_ms / 200)


@relaxed
@given(pieces, sizes)
def test_revisions_grow_and_a_final_commits_the_latest(parts: list[tuple[str, int]], cuts: list[int]) -> None:
    ear = Ear()
    ear.hear(cut(sound(parts), cuts))
    ear.stall()
    for utterance in {event.utterance for event in ear.log}:
        events = [event for event in ear.log if event.utterance == utterance]
        revisions = [event.revision for event in events if event.kind is TranscriptKind.PARTIAL and event.text]
        assert revisions == sorted(set(revisions))
        assert events[0].kind is TranscriptKind.SPEECH_STARTED
        for final in (event for event in events if event.kind is TranscriptKind.FINAL):
            assert event_is_last(final, events)
            assert final.revision >= max(revisions, default=0)


def event_is_last(final: Transcript, events: list[Transcript]) -> bool:
    return events[-1] is final


def partials(apart: int) -> int:
    """How many partials six seconds of speech make while words are still being said."""
    ear = heard(speech(6000) + silence(1000), core=SttCore(ScriptedDetector(), partials_apart=lambda: apart))
    assert len(ear.finals()) == 1
    return len([event for event in ear.log if event.kind is TranscriptKind.PARTIAL and not event.pause_ms])


def test_under_load_partials_are_rarer_and_the_final_is_the_same() -> None:
    assert partials(apart=1) >= 3 * partials(apart=4) > 0


def test_partials_of_all_sessions_share_what_they_may_take() -> None:
    def asked(callers: int) -> int:
        core = SttCore(ScriptedDetector(), pace=PartialPace(share=0.25))
        ears = [Ear(core=core) for _ in range(callers)]
        for one in cut(speech(9000) + silence(1000), [320]):
            for ear in ears:
                ear.hear([one])
        assert all(len(ear.finals()) == 1 for ear in ears)
        kinds = [event.kind for ear in ears for event in ear.log if not event.pause_ms]
        return kinds.count(TranscriptKind.PARTIAL)

    alone = asked(1)
    assert alone >= 10
    assert 2 * alone <= asked(8) <= 6 * alone


def test_the_pace_is_kept_as_time_and_cost_go() -> None:
    pace = PartialPace(share=0.25)
    assert [pace.take(0, first=False) for _ in range(8)] == [True] * 6 + [False] * 2
    assert pace.take(0, first=True), "a first partial runs into debt"
    assert not pace.take(100_000, first=False)
    assert pace.take(1_000_000, first=False)
    for _ in range(50):
        pace.took(1e9)
    assert pace.take(60_000_000, first=False), "the dearest partial is rare, but not ruled out"
    assert not pace.take(61_000_000, first=False)


def test_partials_that_were_recorded_are_not_said_again_at_another_pace() -> None:
    frames = cut(speech(3000) + silence(1000), [320])
    before, after = Ear(), Ear(core=SttCore(ScriptedDetector(), partials_apart=lambda: 4))
    before.hear(frames)
    after.log = list(before.log)
    for event in before.log:
        after.recorded.setdefault(event.causation_id or "", []).append(event)
    after.hear(frames)
    assert after.log == before.log

"""What the caller hears, as conversations in milliseconds."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.playback import (
    HELD_MAX,
    SOUND_LASTS_MS,
    SOUND_MS_MAX,
    WAITING_MS_MAX,
    Act,
    Cut,
    Effect,
    Heard,
    Hush,
    Play,
    Playback,
    Tell,
)
from api.track import words_within
from schemas.event import Event
from schemas.events import (
    Intent,
    IntentKind,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from tests.support.ear import Ear, run

STARTED, PARTIAL, RESUMED, FINAL = (
    TranscriptKind.SPEECH_STARTED,
    TranscriptKind.PARTIAL,
    TranscriptKind.SPEECH_RESUMED,
    TranscriptKind.FINAL,
)
_ids = itertools.count()


def _envelope(turn: int) -> dict[str, Any]:
    return {
        "event_id": f"e{next(_ids)}",
        "session_id": "s",
        "tenant_id": "t",
        "agent_id": "a",
        "turn": turn,
        "seq": 0,
        "occurred_at": 0,
    }


def audio(turn: int, ms: int, sentence: int = 0, **fields: Any) -> SpeechChunk:
    pcm = bytes(32 * ms)
    return SpeechChunk(**_envelope(turn), kind=SpeechChunkKind.AUDIO, pcm=pcm, sentence=sentence, **fields)


def end(turn: int) -> SpeechChunk:
    return SpeechChunk(**_envelope(turn), kind=SpeechChunkKind.END_OF_TURN)


def heard(kind: TranscriptKind, utterance: int, text: str = "", turn: int = 0, revision: int = 0) -> Transcript:
    turn = turn or utterance + 1
    return Transcript(**_envelope(turn), kind=kind, utterance=utterance, text=text, revision=revision)


def done(turn: int, action: str = "") -> Response:
    return Response(**_envelope(turn), kind=ResponseKind.COMPLETED, action=action, action_target="+1")


def without_tell(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Tell)]


def test_sentences_and_the_turn_are_reported_when_they_were_heard() -> None:
    playback = Playback()
    playback.event(audio(0, 300, last_of_sentence=True), 1000)
    playback.event(audio(0, 200, sentence=1, last_of_sentence=True), 1010)
    playback.event(end(0), 1020)
    assert run(playback, 9000) == [(1300, Heard(0, 0, 300, False)), (1500, Heard(0, 1, 500, True))]
    assert not playback.playing(1501)
    assert playback.due() is None


def test_an_end_of_turn_that_comes_late_is_reported_then() -> None:
    playback = Playback()
    playback.event(audio(0, 100, last_of_sentence=True), 0)
    assert run(playback, 500) == [(100, Heard(0, 0, 100, False))]
    assert without_tell(playback.event(end(0), 500)) == [Heard(0, 0, 100, True)]


def test_reports_overrule_the_clock() -> None:
    playback = Playback()
    playback.event(audio(0, 300, last_of_sentence=True), 0)
    playback.event(end(0), 0)
    assert playback.playout(0, 100, 400) == []  # it plays later than believed
    assert run(playback, 600) == []
    assert playback.playout(0, 300, 650) == [Heard(0, 0, 300, True)]
    assert playback.playout(0, 300, 700) == []
    assert playback.playout(7, 300, 700) == []


def test_reports_that_stop_coming_are_waited_for_only_so_long() -> None:
    playback = Playback()
    playback.event(audio(0, 300, last_of_sentence=True), 0)
    playback.event(end(0), 0)
    playback.playout(0, 100, 100)
    assert run(playback, 9000) == [(2300, Heard(0, 0, 300, True))]


def test_words_over_the_agent_cut_the_turn_at_once() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True), 0)
    playback.event(audio(0, 5000, sentence=1), 0)
    words = heard(PARTIAL, 0, "stop")
    effects = without_tell(playback.event(words, 700))
    assert effects == [Hush(0, 700), Heard(0, 0, 500, False), Cut(0, 1, 700, words)]
    assert playback.event(audio(0, 100, sentence=1), 710) == []
    assert not playback.playing(720)
    playback.event(heard(FINAL, 0, "stop"), 1500)
    reply = audio(1, 100)
    assert playback.event(reply, 1600) == [Play(reply)]


def test_the_sentence_being_heard_is_named() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True), 0)
    playback.event(audio(0, 500, sentence=1, last_of_sentence=True), 0)
    assert run(playback, 600) == [(500, Heard(0, 0, 500, False))]
    words = heard(PARTIAL, 0, "stop")
    assert without_tell(playback.event(words, 700)) == [Hush(0, 700), Cut(0, 1, 700, words)]


def test_what_was_heard_is_told_word_by_word() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True, text="Good morning."), 0)
    playback.event(audio(0, 900, sentence=1, text="Your order is on its way"), 0)
    playback.event(audio(0, 300, sentence=1, last_of_sentence=True), 0)
    assert run(playback, 600) == [(500, Heard(0, 0, 500, False, "Good morning."))]
    words = heard(PARTIAL, 0, "stop")
    assert without_tell(playback.event(words, 1250)) == [Hush(0, 1250), Cut(0, 1, 1250, words, "Your order is")]


def test_a_sentence_heard_to_its_end_is_not_forgotten_when_the_next_is_still_to_come() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True, text="Good morning."), 0)
    assert run(playback, 800) == [(500, Heard(0, 0, 500, False, "Good morning."))]
    words = heard(PARTIAL, 0, "stop")
    assert without_tell(playback.event(words, 900)) == [Hush(0, 500), Cut(0, 0, 500, words, "Good morning.")]


@given(st.text(alphabet="ab .", max_size=40), st.floats(min_value=-1, max_value=2))
def test_words_heard_are_whole_ones_from_the_beginning(text: str, share: float) -> None:
    found = words_within(text, share)
    assert text.startswith(found)
    assert found == text or text[len(found)].isspace() or not found


def test_a_sound_over_the_agent_hushes_it_at_once_and_words_cut_it_where_it_was_hushed() -> None:
    playback = Playback()
    playback.event(audio(0, 5000, text="Your order is on its way."), 0)
    assert without_tell(playback.event(heard(STARTED, 0), 1600)) == [Hush(0, 1600)]
    assert playback.event(audio(0, 100), 1650) == []
    assert playback.playing(1900)
    words = heard(PARTIAL, 0, "stop")
    assert without_tell(playback.event(words, 2300)) == [Cut(0, 0, 1600, words, "Your")]
    assert run(playback, 100_000) == []


@pytest.mark.parametrize("nothing", [heard(PARTIAL, 0, ""), heard(PARTIAL, 0, "Mm-hmm."), heard(FINAL, 0, "Uh-huh.")])
def test_a_cough_or_a_backchannel_hushes_and_the_rest_is_said_from_where_it_was_heard(nothing: Transcript) -> None:
    playback = Playback()
    playback.event(audio(0, 1000, last_of_sentence=True), 0)
    playback.event(end(0), 0)
    assert without_tell(playback.event(heard(STARTED, 0), 600)) == [Hush(0, 600)]
    effects = playback.event(nothing, 1400)
    (resumed,) = [effect.chunk for effect in effects if isinstance(effect, Play)]
    assert (resumed.sample_index, len(resumed.pcm)) == (600 * 16, 400 * 32)
    last = effects[-1]
    assert isinstance(last, Tell)
    assert isinstance(last.event, SpeechChunk)
    assert last.event.kind is SpeechChunkKind.END_OF_TURN
    assert run(playback, 9000) == [(1800, Heard(0, 0, 1000, True))]


def test_what_is_made_while_hushed_is_said_in_order_afterwards() -> None:
    playback = Playback()
    playback.event(audio(0, 400), 0)
    playback.event(heard(STARTED, 0), 300)
    second = audio(0, 200, sample_index=6400)
    assert playback.event(second, 310) == playback.event(end(0), 320) == []
    effects = [effect.chunk for effect in playback.event(heard(PARTIAL, 0, ""), 900) if isinstance(effect, Play)]
    assert [(chunk.sample_index, len(chunk.pcm) // 32) for chunk in effects] == [(4800, 100), (6400, 200)]
    assert run(playback, 9000) == [(1200, Heard(0, 0, 600, True))]


def test_speech_that_lasts_cuts_without_words_and_what_fell_silent_does_not() -> None:
    for lasts in (True, False):
        playback = Playback(barge_in_ms=1500)
        playback.event(audio(0, 5000), 0)
        started = heard(STARTED, 0)
        playback.event(started, 1000)
        playback.loud(2300 if lasts else 1400)
        ((at, effect),) = run(playback, 2600)
        assert at == 2500
        if lasts:
            assert effect == Cut(0, 0, 1000, started)
        else:
            assert isinstance(effect, Play)
            assert effect.chunk.sample_index == 16_000


def test_words_after_a_backchannel_hush_anew_and_cut() -> None:
    playback = Playback()
    playback.event(audio(0, 5000), 0)
    playback.event(heard(STARTED, 0), 1000)
    playback.event(heard(PARTIAL, 0, "Mm-hm"), 1600)
    assert without_tell(playback.event(heard(RESUMED, 0), 2000)) == [Hush(0, 1400)]
    words = heard(PARTIAL, 0, "Mm-hm, but where is it?")
    assert without_tell(playback.event(words, 2500)) == [Cut(0, 0, 1400, words)]


def test_an_echo_of_the_agent_is_not_the_caller_and_a_line_that_echoes_is_not_hushed_again() -> None:
    playback = Playback()
    playback.event(audio(0, 5000, text="Your parcel left the warehouse in Leeds on Monday."), 0)
    assert without_tell(playback.event(heard(STARTED, 0), 1500)) == [Hush(0, 1500)]
    effects = without_tell(playback.event(heard(PARTIAL, 0, "parcel left the warehouse"), 2200))
    assert [type(effect) for effect in effects] == [Play]
    assert without_tell(playback.event(heard(FINAL, 0, "parcel left the warehouse in Leeds"), 2600)) == []
    assert without_tell(playback.event(heard(STARTED, 1), 3000)) == []
    words = heard(PARTIAL, 1, "Which parcel do you mean?")
    assert without_tell(playback.event(words, 3500)) == [Hush(0, 2800), Cut(0, 0, 2800, words, "Your parcel left the")]


def test_a_backchannel_neither_holds_a_reply_back_nor_supersedes_it() -> None:
    playback = Playback()
    playback.event(heard(FINAL, 0, "where is it"), 0)
    playback.event(heard(PARTIAL, 1, "Hmm."), 200)
    reply = audio(1, 300)
    assert playback.event(reply, 300) == [Play(reply)]
    assert without_tell(playback.event(heard(FINAL, 1, "Hmm."), 900)) == []


def test_speech_is_handed_over_by_the_lead_before_it_is_heard() -> None:
    playback = Playback(lead_ms=1000)
    chunks = [audio(0, 400) for _ in range(6)]
    sent = [(0.0, effect) for chunk in chunks for effect in playback.event(chunk, 0)]
    playback.event(end(0), 0)
    sent += [(at, effect) for at, effect in run(playback, 1900) if isinstance(effect, Play)]
    assert sent == [(max(0.0, 400.0 * number - 1000), Play(chunk)) for number, chunk in enumerate(chunks)]
    assert run(playback, 9000) == [(2400, Heard(0, 0, 2400, True))]


def test_what_is_handed_over_follows_the_reports() -> None:
    playback = Playback(lead_ms=1000)
    for _ in range(4):
        playback.event(audio(0, 500), 0)
    playback.playout(0, 100, 400)  # it plays later than believed
    assert [at for at, _ in run(playback, 1500)] == [800]


def test_speech_that_waits_is_bounded_and_what_went_is_counted() -> None:
    playback = Playback()
    for _ in range(WAITING_MS_MAX // 10_000 + 5):
        playback.event(audio(0, 10_000), 0)
    assert playback.waiting_ms == WAITING_MS_MAX
    assert playback.truncated == 4


def test_speech_before_and_after_the_agent_speaks_cuts_nothing() -> None:
    playback = Playback()
    playback.event(heard(STARTED, 0), 0)
    playback.event(heard(PARTIAL, 0, "hello"), 200)
    playback.event(heard(FINAL, 0, "hello"), 900)
    playback.event(audio(1, 300, last_of_sentence=True), 1000)
    assert without_tell(playback.event(heard(PARTIAL, 0, "hello"), 1010)) == []  # its own utterance, late
    playback.event(end(1), 1020)
    assert [effect for _, effect in run(playback, 2000)] == [Heard(1, 0, 300, True)]
    assert without_tell(playback.event(heard(STARTED, 1), 2000)) == []
    assert without_tell(playback.event(heard(PARTIAL, 1, "and"), 2100)) == []


def test_a_reply_waits_while_the_caller_goes_on_and_is_said_if_nothing_comes_of_it() -> None:
    playback = Playback()
    playback.event(heard(FINAL, 0, "my order"), 0)
    playback.event(heard(PARTIAL, 1, "and"), 200)
    reply = audio(1, 300)
    assert playback.event(reply, 300) == []
    assert run(playback, 5000) == [(1200, Play(reply))]


def test_a_reply_waits_for_what_begins_before_it_and_is_said_when_that_was_a_noise() -> None:
    for noise in (False, True):
        playback = Playback()
        playback.event(heard(FINAL, 0, "my order"), 0)
        playback.event(heard(STARTED, 1), 200)
        reply = audio(1, 300)
        assert playback.event(reply, 300) == []
        if noise:
            assert without_tell(playback.event(heard(PARTIAL, 1, ""), 700)) == [Play(reply)]
        else:
            assert run(playback, 5000) == [(1200, Play(reply))]


def test_a_reply_that_was_overtaken_is_never_said() -> None:
    playback = Playback()
    playback.event(heard(FINAL, 0, "my order"), 0)
    playback.event(heard(PARTIAL, 1, "and"), 200)
    playback.event(audio(1, 300), 300)
    final = heard(FINAL, 1, "and my boots")
    assert without_tell(playback.event(final, 900)) == [Hush(1, 0), Cut(1, 0, 0, final)]
    assert playback.event(audio(1, 300), 950) == []


def test_speculation_is_held_until_its_revision_is_committed() -> None:
    playback = Playback()
    first, second = audio(1, 100, revision=1, committed=False), audio(1, 100, revision=2, committed=False)
    assert playback.event(first, 0) == playback.event(second, 0) == []
    final = heard(FINAL, 0, "yes", revision=2)
    assert playback.event(final, 10) == [Tell(final), Play(second)]
    later = audio(1, 100, revision=2, committed=False)
    assert playback.event(later, 20) == [Play(later)]
    assert playback.due() is None


def test_what_is_held_is_bounded_and_what_went_is_counted() -> None:
    playback = Playback()
    for number in range(HELD_MAX + 3):
        playback.event(audio(number + 1, 100, revision=1, committed=False), 0)
    assert (playback.held, playback.overflowed) == (HELD_MAX, 3)


def test_speech_that_resumes_voids_what_was_made_for_the_pause() -> None:
    playback = Playback()
    playback.event(audio(1, 100, revision=1, committed=False), 0)
    playback.event(heard(RESUMED, 0, revision=1), 10)
    final = heard(FINAL, 0, "yes", revision=1)
    assert without_tell(playback.event(final, 20)) == []


def test_the_action_follows_the_words() -> None:
    orders: tuple[tuple[Event, ...], ...] = (
        (done(0, "hang_up"), audio(0, 300, last_of_sentence=True), end(0)),
        (audio(0, 300, last_of_sentence=True), end(0), done(0, "hang_up")),
    )
    for events in orders:
        playback = Playback()
        for event in events:
            playback.event(event, 0)
        assert run(playback, 1000) == [(300, Heard(0, 0, 300, True)), (300, Act(0, "hang_up", "+1"))]


def test_an_action_without_words_and_one_whose_voice_failed() -> None:
    playback = Playback()
    playback.event(done(0, "transfer"), 0)
    assert without_tell(playback.event(end(0), 5)) == [Heard(0, 0, 0, True), Act(0, "transfer", "+1")]
    playback = Playback()
    playback.event(done(0, "hang_up"), 0)
    assert run(playback, 60_000) == [(10_000, Heard(0, 0, 0, True)), (10_000, Act(0, "hang_up", "+1"))]
    playback = Playback()
    playback.event(end(0), 0)
    assert without_tell(playback.event(done(0, "hang_up"), 5)) == [Act(0, "hang_up", "+1")]


def test_a_caller_who_speaks_over_the_goodbye_stays() -> None:
    playback = Playback()
    for event in (done(0, "hang_up"), audio(0, 900), end(0)):
        playback.event(event, 0)
    playback.event(heard(PARTIAL, 0, "one more thing"), 100)
    assert run(playback, 60_000) == []


_STEPS = st.one_of(
    st.builds(
        audio,
        st.integers(0, 3),
        st.integers(0, 400),
        st.integers(0, 2),
        last_of_sentence=st.booleans(),
        committed=st.booleans(),
        revision=st.integers(0, 2),
    ),
    st.builds(end, st.integers(0, 3)),
    st.builds(
        heard,
        st.sampled_from(list(TranscriptKind)),
        st.integers(0, 3),
        st.sampled_from(["", "word", "mm-hm"]),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    st.builds(done, st.integers(0, 3), st.sampled_from(["", "hang_up"])),
    st.tuples(st.integers(0, 3), st.integers(0, 2000)),  # a report: turn, heard_ms
)


@given(st.lists(st.tuples(_STEPS, st.integers(0, 700)), max_size=40))
def test_in_any_order_of_events_time_comes_to_rest_and_cut_turns_stay_silent(steps: list[tuple[Any, int]]) -> None:
    playback = Playback()
    now = 0.0
    effects: list[Effect] = []
    for step, wait_ms in steps:
        new = playback.playout(step[0], step[1], now) if isinstance(step, tuple) else playback.event(step, now)
        effects += new
        effects += [effect for _, effect in run(playback, now + wait_ms)]
        now += wait_ms
    effects += [effect for _, effect in run(playback, now + 1_000_000)]
    cut: set[int] = set()
    for effect in effects:
        if isinstance(effect, Cut):
            assert effect.heard_ms >= 0
            assert effect.turn not in cut
            cut.add(effect.turn)
        elif isinstance(effect, Play):
            assert effect.chunk.turn not in cut
    ends = [effect.turn for effect in effects if isinstance(effect, Heard) and effect.end_of_turn]
    assert len(ends) == len(set(ends))


_SOUNDS = st.sampled_from(
    [(STARTED, ""), (PARTIAL, ""), (PARTIAL, "mm-hm"), (RESUMED, ""), (FINAL, "uh-huh"), (PARTIAL, "stop")]
)


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 400)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), _SOUNDS, st.booleans()), max_size=12),
    st.integers(200, 3000),
    st.booleans(),
)
def test_whatever_is_heard_over_a_turn_every_sample_is_played_once_or_the_turn_is_cut(
    made: list[tuple[int, int]], sounds: list[tuple[int, int, tuple[TranscriptKind, str], bool]], lead: int, tells: bool
) -> None:
    playback = Playback(lead_ms=lead)
    steps: list[tuple[float, Any]] = []
    at = made_samples = 0
    for wait_ms, length_ms in made:
        at += wait_ms
        steps.append((at, audio(0, length_ms, sample_index=made_samples)))
        made_samples += length_ms * 16
    steps.append((at, end(0)))
    at = 0
    for wait_ms, utterance, (kind, text), loud in sounds:
        at += wait_ms
        steps.append((at, (heard(kind, utterance, text), loud)))
    ear = Ear()
    for now, step in sorted(steps, key=lambda one: one[0]):
        ear.take(run(playback, now))
        if isinstance(step, tuple):
            step, loud = step
            if loud:
                playback.loud(now)
        ear.take([(now, effect) for effect in playback.event(step, now)])
        if tells and ear.samples:
            ear.take([(now, effect) for effect in playback.playout(0, ear.heard_ms(now), now)])
    ear.take(run(playback, 1_000_000))
    assert not playback.hushed
    assert playback.waiting_ms == 0
    assert not playback.playing(1_000_000)
    assert ear.cut or (ear.samples, ear.over) == (made_samples, 1)


# ---- speculation


def paused(revision: int, text: str = "where is it", turn: int = 1) -> Transcript:
    return heard(PARTIAL, turn - 1, text, turn, revision)


def ahead(revision: int, ms: int = 100) -> SpeechChunk:
    return audio(1, ms, revision=revision, committed=False)


def test_speech_made_ahead_is_heard_with_the_final_and_what_comes_later_at_once() -> None:
    playback = Playback()
    playback.event(paused(2), 0)
    first, second, third = ahead(2), ahead(2), audio(1, 100, revision=2)
    assert playback.event(first, 10) == playback.event(second, 20) == []
    effects = playback.event(heard(FINAL, 0, "where is it", 1, 2), 30)
    assert without_tell(effects) == [Play(first), Play(second)]
    assert playback.event(third, 40) == [Play(third)]
    late = ahead(2)
    assert playback.event(late, 50) == [Play(late)]


def test_speech_made_ahead_is_void_once_the_caller_goes_on_also_what_comes_late() -> None:
    playback = Playback()
    playback.event(paused(1), 0)
    playback.event(ahead(1), 10)
    playback.event(heard(RESUMED, 0, "", 1, 1), 20)
    assert playback.held == 0
    playback.event(ahead(1), 30)
    playback.event(paused(2, "where is it now"), 40)
    good = ahead(2)
    playback.event(good, 50)
    assert without_tell(playback.event(heard(FINAL, 0, "where is it now", 1, 2), 60)) == [Play(good)]
    assert playback.event(ahead(1), 70) == []
    assert playback.held == 0


def test_a_final_of_other_words_lets_nothing_pass_that_was_made_ahead() -> None:
    """As where two workers read the same audio differently."""
    playback = Playback()
    playback.event(paused(1, "where is it"), 0)
    playback.event(ahead(1), 10)
    assert without_tell(playback.event(heard(FINAL, 0, "wear it", 1, 1), 20)) == []
    anew = audio(1, 100, revision=1)
    assert playback.event(anew, 30) == [Play(anew)]


def test_nobody_is_told_of_intents_that_are_not_committed() -> None:
    known = Intent(**_envelope(1), kind=IntentKind.DETECTED, intent="stock", confidence=1.0)
    playback = Playback()
    assert playback.event(replace(known, committed=False), 0) == []
    assert playback.event(known, 0) == [Tell(known)]


@given(st.lists(st.sampled_from(["partial", "resumed", "chunk", "old", "final"]), max_size=30))
def test_whatever_comes_in_whatever_order_only_the_final_revision_is_heard(script: list[str]) -> None:
    playback, revision, final = Playback(), 0, False
    for at, step in enumerate([*script, "final"]):
        effects: list[Effect] = []
        if step == "chunk" and revision:
            effects = playback.event(ahead(revision), at)
        elif step == "old":
            effects = playback.event(ahead(max(0, revision - 1)), at)
        elif not final and step == "partial":
            revision += 1
            effects = playback.event(paused(revision), at)
        elif not final and step == "resumed" and revision:
            effects = playback.event(heard(RESUMED, 0, "", 1, revision), at)
        elif not final and step == "final":
            final, revision = True, revision + 1
            effects = playback.event(heard(FINAL, 0, "where is it", 1, revision), at)
        played = [effect.chunk.revision for effect in effects if isinstance(effect, Play)]
        assert set(played) <= ({revision} if final else set())
    assert playback.held == 0


def ended_at_1000() -> Playback:
    """The caller's turn is over."""
    playback = Playback()
    playback.event(heard(STARTED, 0), 0)
    playback.event(heard(FINAL, 0, "where is my order"), 1000)
    return playback


def test_a_reply_waits_until_a_sound_after_the_pause_is_over() -> None:
    playback = ended_at_1000()
    playback.sounds(begins=True, now=1010)
    reply = audio(1, 500)
    assert playback.event(reply, 1020) == []
    playback.sounds(begins=False, now=1050)
    assert run(playback, 1500) == [(1050 + SOUND_LASTS_MS, Play(reply))]


def test_a_reply_waits_no_longer_than_it_takes_to_know_speech() -> None:
    playback = ended_at_1000()
    reply = audio(1, 500)
    happened = []
    for at in range(1010, 1400, 20):
        happened += run(playback, at)
        playback.sounds(begins=at == 1010, now=at)
        if at == 1030:
            assert playback.event(reply, at) == []
    assert happened == [(1010 + SOUND_MS_MAX, Play(reply))]


def test_a_caller_who_goes_on_before_the_reply_was_heard_is_never_told_it() -> None:
    playback = ended_at_1000()
    playback.sounds(begins=True, now=1010)
    assert playback.event(audio(1, 500), 1020) == []
    assert without_tell(playback.event(heard(STARTED, 1), 1180)) == []
    assert run(playback, 1900) == []
    more = heard(FINAL, 1, "the one of last week")
    assert without_tell(playback.event(more, 1900)) == [Hush(1, 0), Cut(1, 0, 0, more)]


def test_who_has_sounded_all_the_while_is_not_taken_to_begin() -> None:
    playback = ended_at_1000()
    playback.sounds(begins=True, now=1010 - SOUND_MS_MAX)
    playback.sounds(begins=False, now=1010)
    reply = audio(1, 500)
    assert playback.event(reply, 1020) == [Play(reply)]


def test_a_reply_that_has_begun_goes_on_until_it_is_known_what_the_sound_is() -> None:
    playback = ended_at_1000()
    first, second = audio(1, 500), audio(1, 500)
    assert playback.event(first, 1010) == [Play(first)]
    playback.sounds(begins=True, now=1020)
    assert playback.event(second, 1030) == [Play(second)]


# ---- a voice that fails


def text(turn: int, sentence: int, words: str) -> SpeechChunk:
    return SpeechChunk(
        **_envelope(turn), kind=SpeechChunkKind.TEXT, sentence=sentence, text=words, last_of_sentence=True
    )


def test_a_turn_whose_voice_fails_amid_a_sentence_is_heard_out_and_each_sentence_told_as_far_as_it_was_said() -> None:
    playback = Playback()
    playback.event(audio(1, 500, last_of_sentence=True, text="Good morning."), 0)
    playback.event(audio(1, 800, sentence=1, text="Your order is on its way"), 0)
    for event in (text(1, 1, "Your order is on its way"), end(1)):
        playback.event(event, 0)
    assert run(playback, 1299) == [(500, Heard(1, 0, 500, False, "Good morning."))]
    assert playback.playing(1299)
    assert run(playback, 9000) == [(1300, Heard(1, 1, 1300, True, "Your order"))]
    assert playback.due() is None


def test_a_sentence_whose_voice_failed_is_told_before_the_next_one() -> None:
    playback = Playback()
    playback.event(audio(1, 800, text="Your order is on its way"), 0)
    playback.event(text(1, 0, "Your order is on its way"), 0)
    playback.event(audio(1, 500, sentence=1, last_of_sentence=True, text="Anything else?"), 0)
    playback.event(end(1), 0)
    assert run(playback, 9000) == [
        (800, Heard(1, 0, 800, False, "Your order")),
        (1300, Heard(1, 1, 1300, True, "Anything else?")),
    ]


def test_a_sentence_whose_voice_failed_and_that_was_hushed_is_told_once() -> None:
    playback = Playback()
    playback.event(audio(0, 800, text="Your order is on its way"), 0)
    playback.event(audio(0, 500, sentence=1, last_of_sentence=True, text="Anything else?"), 0)
    playback.event(end(0), 0)
    assert without_tell(playback.event(heard(STARTED, 0), 600)) == [Hush(0, 600)]
    playback.event(heard(PARTIAL, 0, ""), 1000)
    assert run(playback, 9000) == [
        (1200, Heard(0, 0, 800, False, "Your order")),
        (1700, Heard(0, 1, 1300, True, "Anything else?")),
    ]


def test_words_without_a_voice_are_not_heard() -> None:
    playback = Playback()
    playback.event(text(1, 0, "First sentence."), 0)
    assert without_tell(playback.event(end(1), 0)) == [Heard(1, 0, 0, True, "")]
    playback = Playback()
    playback.event(audio(1, 500, last_of_sentence=True, text="Good morning."), 0)
    playback.event(text(1, 1, "Second sentence."), 0)
    playback.event(end(1), 0)
    assert run(playback, 9000) == [(500, Heard(1, 0, 500, True, "Good morning."))]


_SENTENCES = ("Good morning to you.", "Your order is on its way", "It left on Monday.", "Anything else?")


def spoken(made: list[tuple[int, int, bool, int]]) -> list[tuple[float, Event]]:
    """A turn: of each sentence so many chunks of so many ms, whether its voice lasts, and how late each chunk comes."""
    steps: list[tuple[float, Event]] = []
    samples = at = 0
    for sentence, (chunks, ms, whole, wait_ms) in enumerate(made):
        words = _SENTENCES[sentence]
        for chunk in range(chunks):
            at += wait_ms
            fields = {"last_of_sentence": whole and chunk == chunks - 1, "sample_index": samples}
            steps.append((at, audio(0, ms, sentence, text="" if chunk else words, **fields)))
            samples += ms * 16
        if not (chunks and whole):
            steps.append((at, text(0, sentence, words)))
    return [*steps, (at, end(0))]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(40, 900), st.booleans(), st.integers(0, 700)), min_size=1, max_size=4
    ),
    st.lists(st.tuples(st.integers(0, 700), _SOUNDS), max_size=6),
    st.booleans(),
)
def test_whatever_fails_each_sentence_with_a_voice_is_told_in_order_and_none_before_it_was_heard(
    made: list[tuple[int, int, bool, int]], sounds: list[tuple[int, tuple[TranscriptKind, str]]], tells: bool
) -> None:
    playback, ear = Playback(lead_ms=500), Ear()
    begun = itertools.accumulate(wait_ms for wait_ms, _ in sounds)
    steps = [
        *spoken(made),
        *((at, heard(kind, 0, words)) for at, (_, (kind, words)) in zip(begun, sounds, strict=True)),
    ]
    told: list[Heard] = []

    def take(happened: list[tuple[float, Effect]]) -> None:
        for at, effect in happened:
            ear.take([(at, effect)])
            if isinstance(effect, Heard):
                told.append(effect)
                assert effect.heard_ms <= ear.heard_ms(at) + 1

    for now, step in sorted(steps, key=lambda one: one[0]):
        take(run(playback, now))
        take([(now, effect) for effect in playback.event(step, now)])
        if tells and ear.samples:
            take([(now, effect) for effect in playback.playout(0, ear.heard_ms(now), now)])
    take(run(playback, 1_000_000))
    voiced = [sentence for sentence, (chunks, *_) in enumerate(made) if chunks]
    known = list(dict.fromkeys(one.sentence for one in told if one.heard_ms))
    assert known == (voiced[: len(known)] if ear.cut else voiced)
    for one in told:
        words, (chunks, _, whole, _) = _SENTENCES[one.sentence], made[one.sentence]
        assert words.startswith(one.words)
        assert len(one.words) == len(words) or not (chunks and whole)
    ends = [number for number, one in enumerate(told, 1) if one.end_of_turn]
    assert ends == ([] if ear.cut else [len(told)])


# ---- replies with an action


def test_a_goodbye_does_not_begin_over_the_caller_and_nothing_is_done_before_it() -> None:
    playback = ended_at_1000()
    playback.event(done(1, "hang_up"), 1000)
    for at in range(1000, 15_000, 500):
        playback.event(heard(PARTIAL, 1, f"one more {at}"), at)
        goodbye = audio(1, 300, last_of_sentence=True)
        if at == 1000:
            assert playback.event(goodbye, at) == playback.event(end(1), at) == []
        assert run(playback, at + 499) == [], "longer than an action waits for its words"
    said = [effect for _, effect in run(playback, 60_000)]
    assert [type(effect) for effect in without_tell(said)] == [Play, Heard, Act]


def test_an_action_without_words_waits_for_the_caller_to_be_silent() -> None:
    playback = ended_at_1000()
    playback.event(done(1, "transfer"), 1000)
    for at in range(1000, 12_001, 500):
        playback.event(heard(PARTIAL, 1, f"one more {at}"), at)
        assert run(playback, at + 499) == []
    assert [at for at, _ in run(playback, 60_000)] == [13_000, 13_000]


def test_a_goodbye_waits_until_a_sound_after_the_pause_is_over() -> None:
    playback = ended_at_1000()
    playback.event(done(1, "hang_up"), 1000)
    playback.sounds(begins=True, now=1010)
    goodbye = audio(1, 500)
    assert playback.event(goodbye, 1020) == []
    assert run(playback, 1500) == [(1010 + SOUND_LASTS_MS, Play(goodbye))]


def test_who_asks_once_more_before_the_goodbye_has_begun_stays_and_is_answered() -> None:
    playback = ended_at_1000()
    playback.event(done(1, "hang_up"), 1000)
    playback.event(heard(PARTIAL, 1, "wait"), 1200)
    more = heard(FINAL, 1, "wait, one more question")
    assert without_tell(playback.event(more, 2000)) == [Hush(1, 0), Cut(1, 0, 0, more)]
    assert playback.event(audio(1, 300), 2010) == []
    answer = audio(2, 300)
    assert playback.event(answer, 2500) == [Play(answer)]
    assert [effect for _, effect in run(playback, 60_000) if isinstance(effect, Act)] == []


# ---- a client that is perhaps gone, and one that is


def test_to_a_client_that_is_perhaps_gone_all_is_sent_and_nothing_of_it_counts_as_heard() -> None:
    playback = Playback(lead_ms=1000)
    playback.event(done(0, "hang_up"), 0)
    sent = [effect for number in range(6) for effect in playback.event(audio(0, 400, number, last_of_sentence=True), 0)]
    playback.event(end(0), 0)
    playback.believes = False
    sent += [effect for _, effect in run(playback, 60_000)]
    assert [type(effect) for effect in without_tell(sent)] == [Play] * 6
    assert playback.playout(0, 400, 60_000) == [Heard(0, 0, 400, False)]
    playback.believes = True
    told = without_tell(playback.tick(70_000))
    assert [type(effect) for effect in told] == [Heard] * 5 + [Act]


def test_a_client_that_reports_is_believed_before_the_clock_when_it_is_back() -> None:
    playback = Playback(lead_ms=1000)
    playback.event(done(0, "hang_up"), 0)
    for number in range(6):
        playback.event(audio(0, 400, number, last_of_sentence=True), 0)
    playback.event(end(0), 0)
    playback.playout(0, 100, 100)
    playback.believes = False
    run(playback, 15_000)
    playback.believes, playback.believes_since = True, 15_000
    assert playback.tick(15_000) == []
    assert playback.playout(0, 800, 15_050) == [Heard(0, 0, 400, False), Heard(0, 1, 800, False)]
    told = [effect for _, effect in run(playback, 60_000)]
    assert [type(effect) for effect in told] == [Heard] * 4 + [Act]


def test_an_action_is_not_done_to_a_client_that_is_perhaps_gone() -> None:
    playback = Playback()
    playback.event(done(0, "hang_up"), 0)
    playback.believes = False
    assert run(playback, 60_000) == []
    assert playback.tick(60_000) == []
    playback.believes = True
    assert playback.tick(60_000) == [Heard(0, 0, 0, True), Act(0, "hang_up", "+1")]


def test_a_hush_is_settled_for_a_client_that_is_perhaps_gone() -> None:
    playback = Playback()
    playback.event(audio(0, 500), 0)
    playback.event(heard(STARTED, 0), 200)
    playback.believes = False
    (again,) = [effect.chunk for _, effect in run(playback, 9000) if isinstance(effect, Play)]
    assert again.sample_index == 200 * 16


def test_what_was_heard_when_the_call_ends_is_told_word_by_word_and_once() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True, text="Good morning."), 0)
    playback.event(audio(0, 400, sentence=1, last_of_sentence=True, text="Here we are."), 0)
    playback.event(audio(0, 1200, sentence=2, last_of_sentence=True, text="Your order is on its way"), 0)
    playback.event(audio(1, 500, last_of_sentence=True, text="Nobody heard this."), 0)
    assert run(playback, 600) == [(500, Heard(0, 0, 500, False, "Good morning."))]
    assert playback.stop(1550) == [
        Heard(0, 1, 900, False, "Here we are."),
        Heard(0, 2, 1550, False, "Your order is"),
    ]
    assert playback.stop(1600) == []


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (0, []),
        (499, [Heard(0, 0, 499, False, "Good")]),
        (500, [Heard(0, 0, 500, False, "Good morning.")]),
        (501, [Heard(0, 0, 500, False, "Good morning.")]),
        (1000, [Heard(0, 0, 500, False, "Good morning."), Heard(0, 1, 1000, True, "Goodbye.")]),
    ],
)
def test_a_call_that_ends_says_of_a_turn_no_more_than_was_heard_by_then(at: float, told: list[Heard]) -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True, text="Good morning."), 0)
    playback.event(audio(0, 500, sentence=1, last_of_sentence=True, text="Goodbye."), 0)
    playback.event(end(0), 0)
    assert playback.stop(at) == told


def test_a_call_that_ends_has_nothing_more_to_say_of_what_was_told() -> None:
    playback = Playback()
    playback.event(audio(0, 500, last_of_sentence=True, text="Good morning."), 0)
    assert run(playback, 800) == [(500, Heard(0, 0, 500, False, "Good morning."))]
    assert playback.stop(900) == []


def test_what_is_held_back_when_the_call_ends_was_heard_up_to_there() -> None:
    playback = Playback()
    playback.event(audio(0, 1000, last_of_sentence=True, text="Your order is on its way"), 0)
    playback.event(heard(STARTED, 0), 600)
    assert playback.stop(1500) == [Heard(0, 0, 600, False, "Your order is")]

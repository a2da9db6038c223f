"""Patience with callers who think in mid-sentence: within an utterance, and with those taken for finished too early."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from processors.engine import Transcribe, Transcribed
from processors.stt.core import SttCore
from processors.stt.endpoint import SttRules, pause_needed_ms
from tests.unit.processors.test_stt_core import (
    SESSION,
    Ear,
    ScriptedDetector,
    cut_from,
    heard,
    read,
    replace_text,
    silence,
    speech,
)

WHOLE = "Where is my order?"
OPEN = "I would like to return the"


def saying(texts: Iterator[str]) -> Ear:
    """Who listens reads one text after the other, a new one for each pause."""

    def answer(request: Transcribe) -> Transcribed:
        return read(request) if request.partial else replace_text(read(request), next(texts))

    return Ear(answer=answer)


def pauses(ear: Ear) -> list[int]:
    """The pauses that ended turns, to the nearest 50 ms."""
    return [round(final.pause_ms / 50) * 50 for final in ear.finals()]


def test_after_a_pause_in_thought_the_next_one_may_be_twice_as_long() -> None:
    ear = saying(iter([OPEN, WHOLE, WHOLE]))
    ear.hear(cut_from(silence(400) + speech(600) + silence(400) + speech(600) + silence(650) + speech(600), ear))
    assert ear.finals() == []
    ear.hear(cut_from(silence(1000), ear))
    assert pauses(ear) == [900], "not longer than the completion pause"


def test_a_comma_is_no_pause_in_thought() -> None:
    ear = saying(iter([OPEN, WHOLE]))
    ear.hear(cut_from(silence(400) + speech(600) + silence(250) + speech(600) + silence(1000), ear))
    assert pauses(ear) == [300]


def test_who_was_taken_for_finished_is_listened_to_with_more_patience_for_some_turns() -> None:
    ear = heard(silence(400) + speech(600) + silence(400) + speech(600) + silence(1500))
    assert pauses(ear) == [300, 650]
    ear.hear(cut_from((speech(600) + silence(1500)) * 3, ear))
    assert pauses(ear)[2:] == [650, 300, 300]


def test_who_speaks_after_the_completion_pause_begins_a_turn_as_any_other() -> None:
    ear = heard(silence(400) + (speech(600) + silence(1200)) * 3)
    assert pauses(ear) == [300, 300, 300]


def test_patience_is_remembered_over_a_crash() -> None:
    ear = heard(silence(400) + speech(600) + silence(400) + speech(600) + silence(1500))
    core = SttCore(ScriptedDetector())
    again = Ear(core=core)
    again.state = core.load(SESSION, core.save(ear.state))
    again.hear(cut_from(speech(600) + silence(1500), again))
    assert pauses(again) == [650]


@pytest.mark.parametrize("text", ["Yes, please.", "My order number is 1042.", "Where is my parcel?"])
def test_words_that_are_certainly_all_are_answered_at_once(text: str) -> None:
    rules = SttRules(numbers=("[0-9]{4}",), sentences=frozenset({"where is my parcel"}))
    assert pause_needed_ms(text, rules, 0.9, 0.9, patience_ms=800) == rules.turn_ms
    assert pause_needed_ms("Where is it?", rules, 0.9, 0.9, patience_ms=800) == 800


def test_a_sound_without_words_after_a_turn_teaches_nothing() -> None:
    ear = heard(silence(400) + speech(600) + silence(400))
    ear.answer = lambda request: Transcribed("", (), 0.0, "en", "scripted", 1.0)
    ear.hear(cut_from(speech(200) + silence(1500), ear))
    ear.answer = read
    ear.hear(cut_from(speech(600) + silence(1500), ear))
    assert pauses(ear) == [300, 300]


def test_who_says_mm_hm_after_a_turn_has_not_gone_on() -> None:
    ear = heard(silence(400) + speech(600) + silence(400))
    ear.answer = lambda request: replace_text(read(request), "Mm-hm.")
    ear.hear(cut_from(speech(300) + silence(1500), ear))
    ear.answer = read
    ear.hear(cut_from(speech(600) + silence(1500), ear))
    assert pauses(ear)[2:] == [300]


def test_a_client_that_sends_no_silence_has_not_gone_on() -> None:
    """Its samples stand still meanwhile; the frames' times do not."""
    ear = heard(silence(400) + speech(600) + silence(500))
    for turn in range(1, 3):
        later = 5_000_000 * turn
        frames = cut_from(speech(600) + silence(500), ear)
        ear.hear([replace(event, captured_at=event.captured_at + later) for event in frames])
    assert pauses(ear) == [300, 300, 300]


def test_an_answer_within_a_long_completion_pause_is_no_going_on() -> None:
    core = SttCore(ScriptedDetector(), lambda agent_id: SttRules(completion_ms=3000))
    ear = heard(silence(400) + (speech(600) + silence(2500)) * 2, core=core)
    assert pauses(ear) == [300, 300]


def test_who_is_cut_short_for_having_talked_so_long_was_not_taken_for_finished() -> None:
    ear = heard(silence(400) + speech(21_000) + silence(130) + speech(600) + silence(1200))
    assert len(ear.finals()) == 2
    assert pauses(ear)[1] == 300


def test_a_sound_without_words_is_judged_as_soon_as_ever() -> None:
    """What a sound over the agent was is waited for."""
    ear = heard(silence(400) + speech(600) + silence(400) + speech(600) + silence(1500))
    ear.answer = lambda request: Transcribed("", (), 0.0, "en", "scripted", 1.0)
    ear.hear(cut_from(speech(600) + silence(1500), ear))
    assert ear.kinds()[-1] == "partial"
    assert ear.log[-1].pause_ms < 400

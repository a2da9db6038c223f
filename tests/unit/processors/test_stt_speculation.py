"""What stt publishes for others to work ahead on: when, and under which revision."""

import pytest

from processors.engine import Transcribe, Transcribed
from processors.stt.core import SttCore
from schemas.events import TranscriptKind
from tests.unit.processors.test_stt_core import Ear, ScriptedDetector, cut, cut_from, heard, read, silence, speech


def test_a_reading_that_comes_when_the_turn_is_over_is_the_final_alone() -> None:
    """What would be begun for it ahead would be begun twice."""
    ear = Ear()
    ear.hear(cut(silence(400) + speech(500) + silence(600), [320]), answer_every=10_000)
    assert [request.partial for request in ear.requests] == [False]
    ear.reply()
    assert ear.kinds() == ["speech_started", "final"]


def test_revisions_grow_over_an_utterance_without_words_that_takes_no_turn() -> None:
    """They name what was begun for the turn, so that none may come back."""
    answers = iter([True, False])

    def at_first(request: Transcribe) -> Transcribed:
        return read(request) if next(answers, False) else Transcribed("", (), 0.0, "en", "scripted", 1.0)

    ear = heard(silence(400) + speech(300) + silence(200) + speech(300) + silence(1000), answer=at_first)
    assert ear.finals() == []
    used = [event.revision for event in ear.log if event.kind is TranscriptKind.PARTIAL]
    assert any(event.kind is TranscriptKind.SPEECH_RESUMED for event in ear.log)
    ear.answer = read
    ear.hear(cut_from(speech(500) + silence(1000), ear))
    (final,) = ear.finals()
    assert final.turn == 1
    assert final.revision > max(used) > 0


@pytest.mark.parametrize("turns", [2, 3])
def test_each_turn_counts_its_revisions_anew(turns: int) -> None:
    ear = heard(silence(400) + (speech(500) + silence(1000)) * turns)
    assert [final.revision for final in ear.finals()] == [1] * turns


def test_the_reading_is_begun_before_anybody_learns_of_it() -> None:
    ear = heard(silence(384) + speech(512) + silence(80))
    assert [request.partial for request in ear.requests] == [False]
    assert ear.kinds() == ["speech_started"]
    ear.hear(cut_from(silence(40), ear))
    assert ear.kinds() == ["speech_started", "partial"]
    assert len(ear.requests) == 1


def test_a_reading_that_speech_overtook_unpublished_leaves_no_trace() -> None:
    ear = heard(silence(384) + speech(512) + silence(80) + speech(304) + silence(1000))
    assert [request.partial for request in ear.requests] == [False, False]
    assert ear.kinds() == ["speech_started", "partial", "final"]
    assert ear.finals()[0].text.count("word") == 4


def test_under_load_nothing_is_read_before_the_hesitation() -> None:
    core = SttCore(ScriptedDetector(), partials_apart=lambda: 2)
    ear = heard(silence(384) + speech(512) + silence(80), core=core)
    assert ear.requests == []
    ear.hear(cut_from(silence(60), ear))
    assert len(ear.requests) == 1

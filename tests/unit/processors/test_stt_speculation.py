"""What stt publishes for others to work ahead on: when, and under which revision."""

import math
from typing import Any

import msgspec
import pytest

from processors.engine import HeardWord, Transcribe, Transcribed
from processors.stage import Ask
from processors.stt.core import SttCore
from processors.stt.pace import PartialPace
from processors.stt.state import ms
from schemas.events import Transcript, TranscriptKind
from tests.unit.processors.test_stt_core import (
    Ear,
    ScriptedDetector,
    cut,
    cut_from,
    heard,
    murmur,
    read,
    silence,
    speech,
)


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
    ear = heard(silence(384) + speech(288) + silence(80) + speech(128) + silence(1000))
    assert [request.partial for request in ear.requests] == [False, False]
    assert ear.kinds() == ["speech_started", "partial", "final"]
    assert ear.finals()[0].text.count("word") == 2


def test_under_load_nothing_is_read_before_the_hesitation() -> None:
    core = SttCore(ScriptedDetector(), partials_apart=lambda: 2)
    ear = heard(silence(384) + speech(512) + silence(80), core=core)
    assert ear.requests == []
    ear.hear(cut_from(silence(60), ear))
    assert len(ear.requests) == 1


# ---- voices that fade


class NothingLeft(PartialPace):
    """Lets nobody have a partial on credit, and everybody else have what he asks for."""

    def take(self, now_us: int, first: bool) -> bool:
        return not first


def test_the_reading_is_begun_while_the_voice_fades() -> None:
    ear = heard(silence(384) + speech(512) + murmur(32))
    assert [request.partial for request in ear.requests] == [False]
    assert ear.kinds() == ["speech_started"]
    ear.hear(cut_from(silence(400), ear))
    assert ear.kinds() == ["speech_started", "partial", "final"]
    assert len(ear.requests) == 1
    assert len(ear.requests[0].pcm) > 2 * 16 * 512, "what fades is read, too"


def test_what_is_begun_while_the_voice_fades_is_begun_anew_where_that_was_not_its_end() -> None:
    ear = heard(silence(384) + speech(512) + murmur(64) + silence(400))
    first, second = ear.requests
    assert len(second.pcm) == len(first.pcm) + 2 * 512
    assert ear.finals()[0].audio_end_ms >= 384 + 512 + 64 - 32


def test_a_gap_within_words_leaves_no_trace() -> None:
    ear = heard(silence(384) + speech(384) + murmur(32) + speech(96))
    assert ear.kinds() == ["speech_started"]
    waiting = Ear()
    waiting.hear(cut(silence(384) + speech(384) + murmur(32) + speech(32), [320]), answer_every=10_000)
    assert len(waiting.requests) == 1
    assert waiting.asks == [], "nobody waits for it any more"


@pytest.mark.parametrize("gap", [murmur(32), silence(64)])
def test_what_was_begun_in_a_gap_is_a_partial_where_one_is_due(gap: bytes) -> None:
    ear = Ear(core=SttCore(ScriptedDetector(), pace=NothingLeft()))  # for partials, but for what was begun in a gap
    ear.hear(cut(silence(384) + speech(768) + gap + speech(96), [320]), answer_every=10_000)
    (ask,) = ear.asks
    assert not ask.request.partial
    ear.tell(ask, provisionally())
    assert [(event.text, event.pause_ms) for event in ear.log[1:]] == [("a blue tent.", 0)]
    assert ear.asks == []


def test_a_reading_that_nobody_learnt_of_is_the_partial_that_is_due_when_speech_goes_on() -> None:
    ear = heard(silence(384) + speech(512) + silence(64) + speech(128))
    assert [request.partial for request in ear.requests] == [False]
    assert ear.kinds() == ["speech_started", "partial"]
    assert ear.log[1].pause_ms == 0


@pytest.mark.parametrize("answer", [read, lambda request: provisionally_read(request)], ids=["settled", "provisional"])
@pytest.mark.parametrize("gap", [murmur(32), silence(32), murmur(32) + silence(32)], ids=["fades", "pauses", "both"])
def test_a_voice_with_many_gaps_is_heard_in_partials_all_the_same(gap: bytes, answer: Any) -> None:
    ear = heard(silence(384) + (speech(320) + gap) * 20, answer=answer)
    partials = [event for event in ear.log if event.kind is TranscriptKind.PARTIAL]
    assert len(partials) >= 8
    assert [event.pause_ms for event in partials] == [0] * len(partials)


def test_partials_after_a_hesitation_are_no_closer_together_under_load() -> None:
    core = SttCore(ScriptedDetector(), partials_apart=lambda: 4)
    ear = heard(silence(384) + speech(512) + silence(200) + speech(4000), core=core)
    hesitation, *later = (ms(len(request.pcm) // 2) for request in ear.requests)
    assert min(later, default=math.inf) - hesitation >= 4 * 600


def test_in_a_long_frame_nothing_is_begun_that_it_shows_to_go_on() -> None:
    ear = heard(silence(384) + (speech(160) + murmur(32) + silence(32) + speech(160)) * 10, frame_ms=384)
    assert all(request.partial for request in ear.requests)


def test_readings_of_what_may_go_on_share_what_partials_may_take() -> None:
    core = SttCore(ScriptedDetector(), pace=PartialPace(share=0.0))
    ear = heard(silence(384) + (speech(160) + murmur(32)) * 50, core=core)
    asked_ms = [ms(len(request.pcm) // 2) for request in ear.requests]
    assert 0 < len(asked_ms) <= 13
    ear.hear(cut_from(silence(400), ear))
    assert len(ear.finals()) == 1


def test_a_gap_does_not_take_the_first_partial_from_anybody() -> None:
    """It may be had on credit, since it tells words from noise while the agent speaks."""
    pace = PartialPace(share=0.0)
    while pace.take(0, first=False):
        pass
    ear = heard(silence(384) + speech(320) + murmur(32) + speech(2000), core=SttCore(ScriptedDetector(), pace=pace))
    assert [request.partial for request in ear.requests] == [True]


def test_under_load_a_voice_that_fades_is_waited_for() -> None:
    core = SttCore(ScriptedDetector(), partials_apart=lambda: 2)
    assert heard(silence(384) + speech(512) + murmur(32), core=core).requests == []


# ---- provisional readings


def provisionally(text: str = "a blue tent.", compute_ms: float = 100.0) -> Transcribed:
    return said(text, compute_ms=compute_ms, provisional=True)


def provisionally_read(request: Transcribe) -> Transcribed:
    return msgspec.structs.replace(read(request), provisional=not request.partial)


def said(text: str, **fields: Any) -> Transcribed:
    words = tuple(HeardWord(word, 100 * n, 100 * n + 90, 0.9) for n, word in enumerate(text.split()))
    return Transcribed(text, words, 0.9, "en", "scripted", **{"compute_ms": 40.0, **fields})


def paused_after(reply: Transcribed, pause_ms: int = 200) -> tuple[Ear, Ask]:
    """A caller who has paused, and the ask whose first reply has come."""
    ear = Ear()
    ear.hear(cut(silence(384) + speech(512) + silence(pause_ms), [320]), answer_every=10_000)
    (ask,) = ear.asks
    ear.tell(ask, reply)
    return ear, ask


def test_a_provisional_reading_is_worked_on_ahead_and_the_same_words_are_the_same_revision() -> None:
    ear, ask = paused_after(provisionally())
    assert ear.kinds() == ["speech_started", "partial"]
    ear.tell(ask, said("a blue tent."))
    ear.asks.clear()
    ear.hear(cut_from(silence(300), ear))
    assert ear.kinds() == ["speech_started", "partial", "final"]
    partial, final = ear.log[1:]
    assert (final.text, final.revision, final.compute_ms) == (partial.text, partial.revision, 140.0)
    assert partial.pause_ms > 0


def test_no_turn_ends_with_a_provisional_reading() -> None:
    ear, ask = paused_after(provisionally(), pause_ms=200)
    ear.hear(cut_from(silence(1500), ear), answer_every=10_000)
    assert ear.finals() == []
    ear.tell(ask, said("a blue bag."))
    (final,) = ear.finals()
    assert (final.text, final.revision, final.compute_ms) == ("a blue bag.", 2, 40.0)


def test_other_words_while_the_pause_is_judged_are_another_revision() -> None:
    ear, ask = paused_after(provisionally("one"))
    ear.tell(ask, said("two"))
    assert [(event.text, event.revision) for event in ear.log[1:]] == [("one", 1), ("two", 2)]
    ear.asks.clear()
    ear.hear(cut_from(speech(300), ear))
    assert [event.revision for event in ear.log if event.kind is TranscriptKind.SPEECH_RESUMED] == [2]


def test_speech_makes_a_provisional_reading_void_and_its_ask_is_nobodys() -> None:
    ear, ask = paused_after(provisionally())
    ear.hear(cut_from(speech(96), ear), answer_every=10_000)
    assert ear.kinds() == ["speech_started", "partial", "speech_resumed"]
    ear.tell(ask, said("a blue tent now."))
    assert ear.kinds() == ["speech_started", "partial", "speech_resumed"]


def test_where_speech_has_overtaken_it_a_provisional_reading_will_do() -> None:
    ear = Ear()
    ear.hear(cut(silence(384) + speech(512) + silence(100) + speech(96), [320]), answer_every=10_000)
    (ask,) = ear.asks
    ear.tell(ask, provisionally())
    assert ear.asks == []
    assert (ear.log[-1].text, ear.log[-1].pause_ms) == ("a blue tent.", 0)


def test_nobody_waits_for_a_surer_reading_of_speech_that_goes_on() -> None:
    ear, _ = paused_after(provisionally())
    ear.hear(cut_from(silence(16) + speech(32), ear), answer_every=10_000)
    assert ear.kinds()[-1] == "speech_resumed"
    assert ear.asks == []


def test_what_others_work_on_already_a_further_provisional_reading_does_not_change() -> None:
    ear, ask = paused_after(provisionally("a blue tent."))
    ear.tell(ask, provisionally("a new tent."))
    ear.tell(ask, said("a blue tent."))
    ear.asks.clear()
    ear.hear(cut_from(silence(300), ear))
    assert [(event.text, event.revision) for event in ear.log[1:]] == [("a blue tent.", 1)] * 2
    assert ear.finals()[0].compute_ms == 240.0


def test_where_the_surer_reading_fails_the_provisional_one_counts() -> None:
    ear, ask = paused_after(provisionally())
    ear.tell(ask, "crashed")
    ear.asks.clear()
    ear.hear(cut_from(silence(300), ear))
    (final,) = ear.finals()
    assert (final.text, final.failure, len(ear.requests)) == ("a blue tent.", "", 1)
    # Whatever hides one of its words must not miss it.
    assert {(word.start_ms, word.end_ms) for word in final.words} == {(64, final.audio_end_ms)}


def test_words_that_were_heard_once_count_for_more_than_silence() -> None:
    ear, ask = paused_after(provisionally())
    ear.tell(ask, said(""))
    ear.asks.clear()
    ear.hear(cut_from(silence(300), ear))
    assert [final.text for final in ear.finals()] == ["a blue tent."]


def after_a_crash(log: list[Transcript]) -> Ear:
    """Who hears the same audio again, with what was in the log."""
    again = Ear(log=list(log))
    for event in log:
        again.recorded.setdefault(event.causation_id or "", []).append(event)
    return again


@pytest.mark.parametrize("fading", [b"", murmur(32)], ids=["at once", "fading"])
@pytest.mark.parametrize(("now", "revision"), [("a blue tent.", 1), ("a blue bag.", 2)])
def test_after_a_crash_a_provisional_reading_is_settled_anew(now: str, revision: int, fading: bytes) -> None:
    """What others work on is known from the log; that it was no more than provisional is not."""
    said_ = silence(384) + speech(512) + fading
    before = Ear()
    before.hear(cut(said_ + silence(200), [320]), answer_every=10_000)
    before.tell(before.asks[0], provisionally())
    again = after_a_crash(before.log)
    again.hear(cut(said_ + silence(400), [320]), answer_every=10_000)
    assert again.kinds() == ["speech_started", "partial"]
    (ask,) = again.asks
    again.tell(ask, said(now))
    assert [(final.text, final.revision) for final in again.finals()] == [(now, revision)]


@pytest.mark.parametrize("answer_every", [1, 10_000])
def test_after_a_crash_what_others_work_on_is_made_void_when_the_caller_goes_on(answer_every: int) -> None:
    said_ = silence(384) + speech(512) + murmur(32)
    before = heard(said_ + silence(200))
    assert before.kinds() == ["speech_started", "partial"]
    again = after_a_crash(before.log)
    again.hear(cut(said_ + silence(200) + speech(200), [320]), answer_every=answer_every)
    assert again.kinds() == ["speech_started", "partial", "speech_resumed"]
    assert len(again.requests) == 1
    assert again.log[2].revision == before.log[1].revision == 1

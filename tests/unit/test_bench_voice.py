"""What bench callers count as speech, as an answer, as too early, as twice, and as stopped."""

import json
import time

import numpy as np
import pytest

from api.wav import Pcm
from bench.caller import Call, Caller, Clear, Heard, Mark, NativeWire, Phone, Piece, Said, TwilioWire
from bench.utterances import Utterance, fragmented, quietest
from bench.voice import Turn, findings_of, scenes, turns_of

RATE_HZ = 8000


def tone(ms: int, level: int = 8000) -> Pcm:
    """A steady tone."""
    return (level * np.sin(np.arange(RATE_HZ * ms // 1000))).astype(np.int16)


def silence(ms: int) -> Pcm:
    return np.zeros(RATE_HZ * ms // 1000, np.int16)


def utterance(*parts: Pcm) -> Utterance:
    return Utterance("a.wav", "one two", "human", np.concatenate(parts), RATE_HZ)


def piece(from_s: float, to_s: float, label: str = "", audible: bool = True) -> Piece:
    return Piece(from_s, from_s, to_s, from_s if audible else None, to_s if audible else None, label)


def in_real_time(from_s: float, until_s: float) -> list[Piece]:
    """What a server sends that sends no more than is heard: 40 ms at a time, each a little late."""
    return [piece(at_s, at_s + 0.04) for at_s in np.arange(from_s, until_s - 0.01, 0.045)]


def turn(*pieces: Piece, clears_s: tuple[float, ...] = (), heard_s: float = 0.0, tells_clear: bool = True) -> Turn:
    """Speech from 10 to 12 s, in a call that interrupts; the agent was last audible at `heard_s`."""
    said = Said(utterance(tone(2000)), 10.0, 12.0, interrupts=True, agent_heard_s=heard_s)
    return Turn(said, 30.0, pieces, clears_s, tells_clear)


def test_speech_is_told_by_its_energy_beside_the_loudest() -> None:
    one = utterance(silence(100), tone(200), tone(100, 40), tone(100), silence(300))
    assert one.speech == (5, 24)
    with pytest.raises(ValueError, match="no speech"):
        _ = utterance(silence(200)).speech


def test_fragments_hold_the_same_speech_with_pauses_where_it_was_quiet() -> None:
    words = utterance(tone(500), silence(80), tone(500), silence(80), tone(500))
    parts = fragmented(words, (400, 600))
    assert len(parts.pcm) == len(words.pcm) + RATE_HZ - 2 * RATE_HZ * 80 // 1000, "silence that was there is part of it"
    assert np.count_nonzero(parts.pcm) == np.count_nonzero(words.pcm)
    cut = quietest(words.pcm, RATE_HZ // 2, RATE_HZ // 5, RATE_HZ)
    assert not words.pcm[cut - 100 : cut + 100].any()


def test_the_noise_of_the_room_around_the_words_is_no_speech() -> None:
    noise = np.random.default_rng(1).normal(0, 250, RATE_HZ).astype(np.int16)
    loud = noise.copy()
    loud[RATE_HZ // 4 : RATE_HZ // 2] += tone(250)
    assert utterance(loud).speech == (12, 24)


def test_soft_ends_between_digital_silence_are_speech() -> None:
    soft = (tone(200) * 0.2).astype(np.int16)
    assert utterance(silence(100), tone(300), soft, silence(400)).speech == (5, 29)


def test_a_cut_behind_the_last_sound_adds_the_whole_pause() -> None:
    short = utterance(tone(100), silence(500))
    assert len(fragmented(short, (400,)).pcm) == len(short.pcm) + RATE_HZ * 400 // 1000


def test_an_answer_counts_from_its_first_audible_sound_after_the_end_of_speech() -> None:
    one = turn(piece(12.2, 12.5, audible=False), piece(12.5, 13.0), piece(13.0, 13.5))
    assert (one.answered_s, one.answers, one.early) == (12.5, 1, False)
    assert turn(piece(12.2, 12.5, audible=False)).answered_s is None


def test_who_speaks_into_the_callers_speech_is_early() -> None:
    assert turn(piece(11.0, 11.5), piece(12.5, 13.0)).early
    assert not turn(piece(9.0, 11.5), heard_s=10.0).early
    assert not turn(piece(10.4, 11.5), heard_s=9.6).early, "the next sentence of what is spoken over is no early answer"
    assert turn(piece(10.4, 10.8), piece(11.9, 12.5), heard_s=9.6).early, "another answer after it is"
    polite = Said(utterance(tone(2000)), 10.0, 12.0, agent_heard_s=9.9)
    assert Turn(polite, 30.0, (piece(9.5, 9.9), piece(10.1, 11.0)), ()).early, "who does not interrupt has waited"
    assert not turn(piece(11.0, 11.5, audible=False)).early


def test_answers_are_told_apart_by_their_labels_else_by_silence() -> None:
    assert turn(piece(12.5, 13.0, "3"), piece(16.0, 17.0, "3")).answers == 1
    assert turn(piece(12.5, 13.0, "3"), piece(13.0, 13.5, "4")).answers == 2
    assert turn(piece(12.5, 13.0), piece(13.5, 14.0)).answers == 1
    assert turn(piece(12.5, 13.0), piece(14.5, 15.0)).answers == 2


def test_a_caller_speaks_over_an_agent_that_is_audible_whatever_it_has_sent_ahead() -> None:
    ahead, real_time = Phone(RATE_HZ), Phone(RATE_HZ)
    ahead.add(9.0, Heard(np.concatenate([tone(1000), silence(400), tone(600)])))
    for number in range(25):
        real_time.add(9.0 + number * 0.041, Heard(tone(40)))
    for phone in (ahead, real_time):
        assert phone.heard_until(8.0) == 0.0
        over = Said(utterance(tone(100)), 10.0, interrupts=True, agent_heard_s=phone.heard_until(10.0))
        assert over.over_agent
        after = Said(utterance(tone(100)), 13.0, interrupts=True, agent_heard_s=phone.heard_until(13.0))
        assert not after.over_agent
    assert ahead.heard_until(13.0) == pytest.approx(11.0, abs=0.01)
    assert not Said(utterance(tone(100)), 10.0, agent_heard_s=10.0).over_agent, "a polite caller does not mean to"


def test_the_onset_of_speech_decides_what_is_spoken_over() -> None:
    caller = Caller(TwilioWire("shop", "caller-1"), "caller-1", "interrupting")
    said = Said(utterance(silence(40), tone(100)), 0.0, interrupts=True)
    caller._call.phone.add(time.time(), Heard(tone(500)))
    caller._said = said
    caller._saying.extend(said.utterance.frames)
    while caller._saying:
        caller._note(caller._saying.popleft())
        assert bool(said.agent_heard_s) == (len(caller._saying) < len(said.utterance.frames) - 2)
    assert said.over_agent


def test_an_agent_is_stopped_when_it_is_told_so_before_it_has_finished() -> None:
    ahead = turn(piece(9.0, 10.2), clears_s=(10.2,), heard_s=10.0)
    assert ahead.stopped_ms == pytest.approx(200)
    assert not ahead.spoke_on
    real_time = turn(*in_real_time(9.0, 10.2), clears_s=(10.25,), heard_s=9.98)
    assert real_time.stopped_ms == pytest.approx(250)
    assert not real_time.early
    assert turn(piece(9.0, 14.0), clears_s=(14.5,), heard_s=10.0).stopped_ms is None
    assert turn(piece(9.0, 14.0), heard_s=10.0).spoke_on
    assert turn(piece(9.0, 14.0), clears_s=(9.9,), heard_s=10.0).stopped_ms is None
    about_to_end = turn(piece(9.0, 10.3), piece(12.4, 13.0), heard_s=10.0)
    assert about_to_end.stopped_ms is None
    assert not about_to_end.spoke_on


def test_an_agent_that_tells_nobody_is_stopped_when_it_is_silent() -> None:
    one = turn(*in_real_time(9.0, 10.3), piece(12.5, 13.0), heard_s=9.98, tells_clear=False)
    assert one.stopped_ms == pytest.approx(300, abs=50)
    assert turn(*in_real_time(9.0, 12.5), heard_s=9.98, tells_clear=False).stopped_ms is None
    assert turn(*in_real_time(9.0, 12.5), heard_s=9.98, tells_clear=False).spoke_on


def test_a_phone_plays_in_turn_and_forgets_what_is_cleared() -> None:
    phone = Phone(RATE_HZ)
    phone.add(1.0, Heard(np.concatenate([silence(100), tone(400)])))
    phone.add(1.1, Heard(tone(500)))
    phone.mark(1.2, "3/0/1000")
    assert [(one.from_s, one.to_s) for one in phone.pieces] == [(1.0, 1.5), (1.5, 2.0)]
    assert phone.pieces[0].audible_s == pytest.approx(1.1, abs=0.01)
    assert [one.label for one in phone.pieces] == ["3", "3"]
    assert phone.played(1.9) == []
    phone.clear(1.3)
    assert phone.played(1.3) == ["3/0/1000"]
    assert [(one.from_s, one.to_s) for one in phone.pieces] == [(1.0, 1.3)]
    phone.add(2.0, Heard(tone(100)))
    assert phone.pieces[-1].from_s == 2.0


def test_what_was_cut_off_is_another_answer_than_what_follows() -> None:
    phone = Phone(RATE_HZ)
    phone.add(1.0, Heard(tone(400)))
    phone.clear(1.2)
    phone.add(2.0, Heard(tone(400)))
    phone.mark(2.1, "4/0/400")
    assert [one.label for one in phone.pieces] == ["cut off 1", "4"]


def test_twilios_wire_as_its_documents_have_it() -> None:
    wire = TwilioWire("shop", "caller-1")
    start = json.loads(wire.opening()[1])
    assert start["start"]["customParameters"] == {"agent": "shop", "caller": "caller-1"}
    media = json.loads(wire.speech(tone(20)))
    assert (media["event"], media["media"]["chunk"], media["streamSid"]) == ("media", "1", start["streamSid"])
    (heard,) = wire.read(json.dumps({"event": "media", "media": {"payload": media["media"]["payload"]}}))
    assert isinstance(heard, Heard)
    assert np.abs(heard.pcm.astype(int) - tone(20)).max() < 300
    assert wire.read('{"event":"mark","mark":{"name":"x"}}') == (Mark("x"),)
    assert wire.read('{"event":"clear"}') == (Clear(),)


def test_the_native_wire_tells_how_much_of_a_turn_was_played() -> None:
    wire = NativeWire("shop", "caller-1")
    wire.read('{"type":"audio","turn":2,"sentence":0}')
    heard, mark = wire.read(np.zeros(1600, "<i2").tobytes())
    assert isinstance(heard, Heard)
    assert (heard.label, mark) == ("2", Mark("2/0/100"))
    _, mark = wire.read(np.zeros(1600, "<i2").tobytes())
    assert mark == Mark("2/0/200")


def test_early_turns_give_no_latency_and_failed_calls_are_counted() -> None:
    said = [Said(utterance(tone(2000)), 10.0, 12.0), Said(utterance(tone(2000)), 20.0, 22.0)]
    phone = Phone(RATE_HZ, [piece(11.0, 12.5, "1"), piece(22.4, 23.0, "2")])
    found = findings_of("g", [Call("a", said, phone), Call("b", error="refused")], {})
    facts = {fact.name: fact.value for fact in found.facts}
    assert found.rows[0].distribution.p50 == pytest.approx(400)
    assert found.rows[0].distribution.count == 1
    assert (facts["turns"], facts["answered too early"], facts["unanswered"]) == (2, 1, 0)
    assert facts["turns that can be answered too early"] == 2
    assert (facts["calls"], facts["calls failed"], facts["calls failed: refused"]) == (2, 1, 1)


def test_what_goes_on_after_the_caller_is_no_answer() -> None:
    assert turn(*in_real_time(9.0, 12.5), heard_s=9.98).answered_s is not None
    assert turn(*in_real_time(9.0, 12.5), heard_s=9.98).waited_ms is None
    assert turn(piece(9.0, 10.2), piece(12.5, 13.0), clears_s=(10.2,), heard_s=10.0).waited_ms == pytest.approx(500)


def test_turns_over_the_agent_are_no_turns_that_can_be_answered_too_early() -> None:
    said = [Said(utterance(tone(2000)), at_s, at_s + 2, True, at_s - 0.1) for at_s in (10.0, 20.0)]
    phone = Phone(RATE_HZ, [piece(9.0, 10.2), piece(13.0, 14.0), piece(19.0, 20.2), piece(23.0, 24.0)], [10.2, 20.2])
    facts = {fact.name: fact.value for fact in findings_of("g", [Call("a", said, phone)], {}).facts}
    assert (facts["turns"], facts["turns that can be answered too early"]) == (2, 0)
    assert (facts["interruptions"], facts["interruptions that did not stop the agent"]) == (2, 0)


def test_a_turn_ends_where_the_next_begins_and_what_was_not_said_is_none() -> None:
    said = [Said(utterance(tone(100)), 10.0, 12.0), Said(utterance(tone(100)), 20.0, 0.0)]
    (one,) = turns_of(Call("a", said, Phone(RATE_HZ, [piece(13.0, 14.0), piece(20.5, 21.0)])), tells_clear=True)
    assert one.pieces == (piece(13.0, 14.0),)


def test_both_wires_fragments_and_interruptions_are_measured() -> None:
    for quick in (True, False):
        wanted = scenes(quick)
        assert {scene.wire for scene in wanted} == {"twilio", "native"}
        assert any(scene.fragments for scene in wanted)
        assert any(scene.manner == "interrupting" for scene in wanted)
